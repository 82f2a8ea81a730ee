// Client of npm `@ai-sdk/mcp`; see checks.py for the arguments.

import { createMCPClient } from "@ai-sdk/mcp";
import { run, server } from "./checks.mjs";

let client, tools;

await run({
  connect: async () => {
    client = await createMCPClient({ transport: { type: "http", url: String(server) } });
    return client.initializeResult.protocolVersion;
  },
  listTools: async () => Object.keys((tools = await client.tools())),
  callTool: (name, args) => tools[name].execute(args, { toolCallId: "1", messages: [], abortSignal: AbortSignal.timeout(19_000) }),
  close: () => client.close(),
});
