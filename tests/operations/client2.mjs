// A client of npm `@modelcontextprotocol/client` 2.x; record.mjs says how it is called. MCP_MODE: auto or legacy.

import { Client, LOG_LEVEL_META_KEY, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { asked, capabilities, options, run, target, told, transport as kind } from "./record.mjs";

const auto = process.env.MCP_MODE === "auto";
const client = new Client({ name: "ts2", version: "0" }, { capabilities, ...(auto ? { versionNegotiation: { mode: "auto" } } : {}) });
for (const method of ["sampling/createMessage", "elicitation/create", "roots/list"]) {
  client.setRequestHandler(method, (request) => asked(method, request));
}
for (const method of ["notifications/resources/updated", "notifications/message"]) client.setNotificationHandler(method, told);

const transport = {
  http: () => new StreamableHTTPClientTransport(target),
  sse: () => new SSEClientTransport(target),
  stdio: () => new StdioClientTransport({ command: target[0], args: target.slice(1) }),
}[kind]();

const modern = () => client.getNegotiatedProtocolVersion() >= "2026";
const listening = new Map();
// The client keeps what it got; all of it must come through the sidecar.
const fresh = { ...options, cacheMode: "refresh" };
const logged = () => (modern() ? { _meta: { [LOG_LEVEL_META_KEY]: "info" } } : {});

const operations = {
  list_tools: () => client.listTools({}, fresh),
  list_prompts: () => client.listPrompts({}, fresh),
  list_resources: () => client.listResources({}, fresh),
  list_templates: () => client.listResourceTemplates({}, fresh),
  call: (name, args) => client.callTool({ name, arguments: args, ...logged() }, options),
  get_prompt: (name, args) => client.getPrompt({ name, arguments: args }, options),
  complete: (ref, name, value) => client.complete({ ref, argument: { name, value } }, options),
  read: (uri) => client.readResource({ uri }, fresh),
  subscribe: async (uri) => {
    if (!modern()) return client.subscribeResource({ uri }, options);
    const subscription = await client.listen({ resourceSubscriptions: [uri] }, options);
    listening.set(uri, subscription);
    return subscription.honoredFilter;
  },
  unsubscribe: async (uri) => {
    if (!modern()) return client.unsubscribeResource({ uri }, options);
    // One that was denied was never open.
    await listening.get(uri)?.close();
  },
  set_level: (level) => client.setLoggingLevel(level, options),
};

await run({
  connect: async () => (await client.connect(transport, options), client.getNegotiatedProtocolVersion()),
  operations,
  close: () => client.close(),
});
