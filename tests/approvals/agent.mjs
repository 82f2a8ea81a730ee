// An agent with npm `@modelcontextprotocol/sdk` 1.x or `@modelcontextprotocol/client` 2.x, as SDK=1 or SDK=2 says; agent_lines.py, the twin,
// says how it is spoken to.

import { createInterface } from "node:readline";

const [target, transport] = process.argv.slice(2);
const first = process.env.SDK === "1";
const sdk = first
  ? {
      ...(await import("@modelcontextprotocol/sdk/client/index.js")),
      ...(await import("@modelcontextprotocol/sdk/client/sse.js")),
      ...(await import("@modelcontextprotocol/sdk/client/stdio.js")),
      ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
    }
  : { ...(await import("@modelcontextprotocol/client")), ...(await import("@modelcontextprotocol/client/stdio")) };

const opened = {
  http: () => new sdk.StreamableHTTPClientTransport(new URL(target)),
  sse: () => new sdk.SSEClientTransport(new URL(target)),
  stdio: () => {
    const [command, ...args] = JSON.parse(target);
    return new sdk.StdioClientTransport({ command, args });
  },
}[transport]();
const client = new sdk.Client({ name: `ts${process.env.SDK}`, version: "0" });
const say = (words) => process.stdout.write(`${JSON.stringify(words)}\n`);

async function respond({ id, call, args }) {
  try {
    const params = { name: call, arguments: args };
    say({ id, result: await (first ? client.callTool(params, undefined) : client.callTool(params)) });
  } catch (error) {
    say({ id, error: String(error) });
  }
}

await client.connect(opened);
// Neither tells the same way which version was agreed on; that is what tests/sdk is for.
say({ protocol: null });
for await (const line of createInterface({ input: process.stdin })) void respond(JSON.parse(line));
await client.close();
process.exit();
