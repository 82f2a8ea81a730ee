// A server of npm `@modelcontextprotocol/sdk` 1.x: `server1.mjs http PORT` (Streamable HTTP at /mcp) or `server1.mjs stdio`. See server1.py.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { InMemoryTaskMessageQueue, InMemoryTaskStore } from "@modelcontextprotocol/sdk/experimental/tasks/stores/in-memory.js";
import { completable } from "@modelcontextprotocol/sdk/server/completable.js";
import { McpServer, ResourceTemplate } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import {
  CreateMessageResultSchema,
  ElicitResultSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
  UrlElicitationRequiredError,
} from "@modelcontextprotocol/sdk/types.js";
import { z } from "zod";
import { FORM, LANGUAGES, NOTES, starting, text, whatCameOf } from "./content.mjs";

const PAY = { mode: "url", message: "Please pay.", url: "https://pay.example/7", elicitationId: "pay-7" };

/** A server for one session. */
function operations() {
  const server = new McpServer(
    { name: "operations", version: "0" },
    {
      capabilities: { logging: {}, resources: { subscribe: true }, tasks: { list: {}, cancel: {}, requests: { tools: { call: {} } } } },
      taskStore: new InMemoryTaskStore(),
      taskMessageQueue: new InMemoryTaskMessageQueue(),
    },
  );
  const subscribed = new Set();
  const sample = async (extra, words) => {
    const params = { messages: [{ role: "user", content: { type: "text", text: words } }], maxTokens: 100 };
    return (await extra.sendRequest({ method: "sampling/createMessage", params }, CreateMessageResultSchema)).content.text;
  };
  const elicit = async (extra, params, options) => {
    const { action, content } = await extra.sendRequest({ method: "elicitation/create", params }, ElicitResultSchema, options);
    return `${action} ${JSON.stringify(content ?? null)}`;
  };
  const form = (extra, options) => elicit(extra, { mode: "form", message: "Who are you?", requestedSchema: FORM }, options);
  // On the GET stream: not as part of the call.
  const roots = async () => (await server.server.listRoots()).roots.map((root) => root.uri).join(" ");

  const tool = (name, inputSchema, work) => server.registerTool(name, { inputSchema }, async (args, extra) => text(await work(args, extra)));
  tool("greet", { text: z.string() }, (args) => `Hello, ${args.text}.`);
  tool("sample", { text: z.string() }, (args, extra) => whatCameOf("sampling", sample(extra, args.text)));
  tool("ask_form", {}, (_, extra) => whatCameOf("elicitation", form(extra)));
  tool("ask_url", {}, (_, extra) => whatCameOf("elicitation", elicit(extra, PAY)));
  tool("ask_url_first", {}, () => {
    throw new UrlElicitationRequiredError([PAY]);
  });
  tool("roots", {}, () => whatCameOf("roots", roots()));
  tool("ask_all", {}, async (_, extra) => {
    const work = [whatCameOf("sampling", sample(extra, "all")), whatCameOf("elicitation", form(extra)), whatCameOf("roots", roots())];
    return (await Promise.all(work)).join("; ");
  });
  tool("touch", { uri: z.string(), everyone: z.boolean().optional() }, async ({ uri, everyone }) => {
    if (everyone || subscribed.has(uri)) await server.server.sendResourceUpdated({ uri });
    return `${uri} is touched.`;
  });
  tool("log", { text: z.string() }, async (args, extra) => {
    await extra.sendNotification({ method: "notifications/message", params: { level: "warning", data: args.text } });
    return "It is logged.";
  });

  const task = (name, inputSchema, work) =>
    server.experimental.tasks.registerToolTask(name, { inputSchema, execution: { taskSupport: "optional" } }, {
      createTask: async (args, extra) => {
        const task = await extra.taskStore.createTask({ ttl: extra.taskRequestedTtl, pollInterval: 100 });
        void work(args, extra, task.taskId).then(
          (words) => extra.taskStore.storeTaskResult(task.taskId, "completed", text(words)),
          // It was cancelled.
          () => {},
        );
        return { task };
      },
      getTask: (_, extra) => extra.taskStore.getTask(extra.taskId),
      getTaskResult: (_, extra) => extra.taskStore.getTaskResult(extra.taskId),
    });
  const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000).unref());
  task("slow", { text: z.string().optional() }, async (args) => (await pause(Number(args.text ?? 0.1)), "slow is done."));
  task("slow_ask", {}, (_, extra, taskId) => whatCameOf("elicitation", form(extra, { relatedTask: { taskId } })));
  task("forbidden", {}, async () => "forbidden is done.");

  const say = (words) => ({ messages: [{ role: "user", content: { type: "text", text: words } }] });
  const argsSchema = { language: completable(z.string(), starting(LANGUAGES)) };
  for (const name of ["review", "secret_review"]) {
    server.registerPrompt(name, { argsSchema }, ({ language }) => say(`Review this ${language}.`));
  }
  server.registerPrompt("interview", {}, async (extra) => say(await whatCameOf("elicitation", form(extra))));

  const memo = (uri) => ({ contents: [{ uri: uri.href, mimeType: "text/plain", text: `This is ${uri.href}.` }] });
  for (const uri of ["memo://open/a", "memo://secret/plan"]) server.registerResource(uri, uri, {}, memo);
  for (const kind of ["notes", "secret"]) {
    const template = new ResourceTemplate(`memo://${kind}/{name}`, { list: undefined, complete: { name: starting(NOTES) } });
    server.registerResource(kind, template, {}, memo);
  }
  server.server.setRequestHandler(SubscribeRequestSchema, ({ params }) => (subscribed.add(params.uri), {}));
  server.server.setRequestHandler(UnsubscribeRequestSchema, ({ params }) => (subscribed.delete(params.uri), {}));
  return server;
}

const sessions = new Map();

async function serve(request, response) {
  let transport = sessions.get(request.headers["mcp-session-id"]);
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => sessions.set(id, transport),
    });
    await operations().connect(transport);
  }
  await transport.handleRequest(request, response);
}

if (process.argv[2] === "stdio") {
  await operations().connect(new StdioServerTransport());
  // The store of tasks would keep it alive.
  process.stdin.on("end", () => process.exit());
} else {
  createServer(serve).listen(Number(process.argv[3]), "127.0.0.1");
}
