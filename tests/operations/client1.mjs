// A client of npm `@modelcontextprotocol/sdk` 1.x; record.mjs says how it is called.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  CreateTaskResultSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  LoggingMessageNotificationSchema,
  ResourceUpdatedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { asked, capabilities, options, run, target, told, transport as kind } from "./record.mjs";

const client = new Client({ name: "ts1", version: "0" }, { capabilities });
client.setRequestHandler(CreateMessageRequestSchema, (request) => asked("sampling/createMessage", request));
client.setRequestHandler(ElicitRequestSchema, (request) => asked("elicitation/create", request));
client.setRequestHandler(ListRootsRequestSchema, (request) => asked("roots/list", request));
client.setNotificationHandler(ResourceUpdatedNotificationSchema, told);
client.setNotificationHandler(LoggingMessageNotificationSchema, told);

const transport = {
  http: () => new StreamableHTTPClientTransport(target),
  sse: () => new SSEClientTransport(target),
  stdio: () => new StdioClientTransport({ command: target[0], args: target.slice(1) }),
}[kind]();

// The only place where this SDK tells which version was agreed on.
let protocol = "2025-11-25";
const setProtocolVersion = transport.setProtocolVersion?.bind(transport);
transport.setProtocolVersion = (version) => {
  protocol = version;
  setProtocolVersion?.(version);
};

const { tasks } = client.experimental;

async function start(name, args) {
  const params = { name, arguments: args };
  return (await client.request({ method: "tools/call", params }, CreateTaskResultSchema, { ...options, task: { ttl: 60_000 } })).task.taskId;
}

const operations = {
  list_tools: () => client.listTools({}, options),
  list_prompts: () => client.listPrompts({}, options),
  list_resources: () => client.listResources({}, options),
  list_templates: () => client.listResourceTemplates({}, options),
  call: (name, args) => client.callTool({ name, arguments: args }, undefined, options),
  get_prompt: (name, args) => client.getPrompt({ name, arguments: args }, options),
  complete: (ref, name, value) => client.complete({ ref, argument: { name, value } }, options),
  read: (uri) => client.readResource({ uri }, options),
  subscribe: (uri) => client.subscribeResource({ uri }, options),
  unsubscribe: (uri) => client.unsubscribeResource({ uri }, options),
  set_level: (level) => client.setLoggingLevel(level, options),
  task: async (name, args) => {
    const id = await start(name, args);
    await tasks.getTask(id, options);
    // A task that asks goes on only while its result is waited for.
    const result = await tasks.getTaskResult(id, CallToolResultSchema, options);
    return { result, status: (await tasks.getTask(id, options)).status };
  },
  cancel_task: async (name, args) => tasks.cancelTask(await start(name, args), options),
  list_tasks: () => tasks.listTasks(undefined, options),
  get_task: (id) => tasks.getTask(id, options),
};

await run({ connect: async () => (await client.connect(transport, options), protocol), operations, close: () => client.close() });
