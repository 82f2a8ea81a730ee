// Client of npm `@modelcontextprotocol/sdk` 1.x; see checks.py for the arguments.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { options, run, server, transport as kind } from "./checks.mjs";

const client = new Client({ name: "ts1", version: "0" });
const transport = {
  http: () => new StreamableHTTPClientTransport(server),
  sse: () => new SSEClientTransport(server),
  stdio: () => new StdioClientTransport({ command: server[0], args: server.slice(1) }),
}[kind]();

// The only place where this SDK tells which version was agreed on.
let protocol;
const setProtocolVersion = transport.setProtocolVersion?.bind(transport);
transport.setProtocolVersion = (version) => {
  protocol = version;
  setProtocolVersion?.(version);
};

await run({
  connect: async () => (await client.connect(transport, options), protocol),
  listTools: async () => (await client.listTools({}, options)).tools.map((tool) => tool.name),
  callTool: (name, args) => client.callTool({ name, arguments: args }, undefined, options),
  close: () => client.close(),
});
