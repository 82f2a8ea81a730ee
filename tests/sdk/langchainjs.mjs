// Client of npm `@langchain/mcp-adapters`; see checks.py for the arguments.

import { MultiServerMCPClient } from "@langchain/mcp-adapters";
import { run, server } from "./checks.mjs";

const client = new MultiServerMCPClient({ server: { transport: "http", url: String(server) } });
const tools = new Map();

await run({
  // It does not say which version was agreed on.
  connect: async () => void (await client.initializeConnections()),
  listTools: async () => {
    for (const tool of await client.getTools()) tools.set(tool.name, tool);
    return [...tools.keys()];
  },
  callTool: async (name, args) => {
    try {
      const said = await tools.get(name).invoke(args, { timeout: 19_000 });
      // A result with structured content is an object that has its text.
      return { words: said.text ?? said, isError: false };
    } catch (error) {
      if (error.name !== "ToolException") throw error;
      return { words: error.message, isError: true };
    }
  },
  close: () => client.close(),
});
