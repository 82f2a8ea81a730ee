// Client of npm `@modelcontextprotocol/client` 2.x; see checks.py for the arguments. MCP_MODE: default or auto.

import { Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { options, run, server, transport as kind } from "./checks.mjs";

const mode = process.env.MCP_MODE;
const client = new Client({ name: "ts2", version: "0" }, mode === "default" ? {} : { versionNegotiation: { mode } });
const transport = {
  http: () => new StreamableHTTPClientTransport(server),
  sse: () => new SSEClientTransport(server),
  stdio: () => new StdioClientTransport({ command: server[0], args: server.slice(1) }),
}[kind]();

await run({
  connect: async () => (await client.connect(transport, options), client.getNegotiatedProtocolVersion()),
  // The client keeps lists; the second one must come through the sidecar too.
  listTools: async () => (await client.listTools({}, { ...options, cacheMode: "refresh" })).tools.map((tool) => tool.name),
  callTool: (name, args) => client.callTool({ name, arguments: args }, options),
  close: () => client.close(),
});
