// A server of npm `@modelcontextprotocol/server` 2.x, in both eras: `server2.mjs http PORT` (Streamable HTTP at /mcp) or `server2.mjs stdio`.
// See server1.py. Its tools return what they want to know of the client; the SDK sends that in the way of the era.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { NodeStreamableHTTPServerTransport, toNodeHandler, toWebRequest } from "@modelcontextprotocol/node";
import {
  completable,
  createMcpHandler,
  inputRequired,
  isLegacyRequest,
  McpServer,
  ResourceTemplate,
  UrlElicitationRequiredError,
} from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";
import { z } from "zod";
import { FORM, LANGUAGES, NOTES, starting, text } from "./content.mjs";

const PAY = { message: "Please pay.", url: "https://pay.example/7" };
const sampling = (words) =>
  inputRequired.createMessage({ messages: [{ role: "user", content: { type: "text", text: words } }], maxTokens: 100 });
const form = () => inputRequired.elicit({ message: "Who are you?", requestedSchema: FORM });

// What an answer says, and what it was asked for with.
const QUESTIONS = {
  sampling: { ask: () => sampling("all"), said: (answer) => answer.content.text },
  elicitation: { ask: form, said: ({ action, content }) => `${action} ${JSON.stringify(content ?? null)}` },
  roots: { ask: () => inputRequired.listRoots(), said: ({ roots }) => roots.map((root) => root.uri).join(" ") },
};

/** What the client has said to all of these questions, or the result that asks those that it has not answered. */
function answersTo(questions, ctx, tell) {
  const given = { ...ctx.mcpReq.requestState(), ...ctx.mcpReq.inputResponses };
  const open = Object.entries(questions).filter(([kind]) => !(kind in given));
  if (open.length === 0) return tell(Object.keys(questions).map((kind) => `${kind}: ${QUESTIONS[kind].said(given[kind])}`).join("; "));
  // What was answered in an earlier round is not sent again.
  const requestState = JSON.stringify(given);
  return inputRequired({ requestState, inputRequests: Object.fromEntries(open.map(([kind, ask]) => [kind, ask()])) });
}

const ask = (...kinds) => Object.fromEntries(kinds.map((kind) => [kind, QUESTIONS[kind].ask]));
const subscribed = new Set();
// Streams of subscriptions/listen: of HTTP, where each request has a server of its own.
let handler;

function operations({ era }) {
  const capabilities = { logging: {}, resources: { subscribe: true } };
  const requestState = { verify: (state) => JSON.parse(state) };
  const server = new McpServer({ name: "operations", version: "0" }, { capabilities, requestState });
  const tool = (name, shape, work) =>
    server.registerTool(name, { inputSchema: z.object(shape) }, async (args, ctx) => {
      const result = await work(args, ctx);
      return typeof result === "string" ? text(result) : result;
    });
  tool("greet", { text: z.string() }, (args) => `Hello, ${args.text}.`);
  tool("forbidden", {}, () => "forbidden is done.");
  tool("sample", { text: z.string() }, (args, ctx) => answersTo({ sampling: () => sampling(args.text) }, ctx, text));
  tool("ask_form", {}, (_, ctx) => answersTo(ask("elicitation"), ctx, text));
  tool("ask_url", {}, (_, ctx) => answersTo({ elicitation: () => inputRequired.elicitUrl(PAY) }, ctx, text));
  tool("ask_url_first", {}, () => {
    throw new UrlElicitationRequiredError([{ mode: "url", ...PAY, elicitationId: "pay-7" }]);
  });
  tool("roots", {}, (_, ctx) => answersTo(ask("roots"), ctx, text));
  tool("ask_all", {}, (_, ctx) => answersTo(ask("sampling", "elicitation", "roots"), ctx, text));
  tool("touch", { uri: z.string(), everyone: z.boolean().optional() }, async ({ uri, everyone }) => {
    if (era === "modern" && handler) handler.notify.resourceUpdated(uri);
    else if (era === "modern" || everyone || subscribed.has(uri)) await server.server.sendResourceUpdated({ uri });
    return `${uri} is touched.`;
  });
  tool("log", { text: z.string() }, async (args, ctx) => {
    await ctx.mcpReq.log("warning", args.text);
    return "It is logged.";
  });

  const say = (words) => ({ messages: [{ role: "user", content: { type: "text", text: words } }] });
  const argsSchema = z.object({ language: completable(z.string(), starting(LANGUAGES)) });
  for (const name of ["review", "secret_review"]) {
    server.registerPrompt(name, { argsSchema }, ({ language }) => say(`Review this ${language}.`));
  }
  server.registerPrompt("interview", {}, (ctx) => answersTo(ask("elicitation"), ctx, say));

  const memo = (uri) => ({ contents: [{ uri: uri.href, mimeType: "text/plain", text: `This is ${uri.href}.` }] });
  for (const uri of ["memo://open/a", "memo://secret/plan"]) server.registerResource(uri, uri, {}, memo);
  for (const kind of ["notes", "secret"]) {
    const template = new ResourceTemplate(`memo://${kind}/{name}`, { list: undefined, complete: { name: starting(NOTES) } });
    server.registerResource(kind, template, {}, memo);
  }
  if (era === "legacy") {
    server.server.setRequestHandler("resources/subscribe", ({ params }) => (subscribed.add(params.uri), {}));
    server.server.setRequestHandler("resources/unsubscribe", ({ params }) => (subscribed.delete(params.uri), {}));
  }
  return server;
}

const sessions = new Map();

async function serveLegacy(request, response, body) {
  let transport = sessions.get(request.headers["mcp-session-id"]);
  if (!transport) {
    transport = new NodeStreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => sessions.set(id, transport),
    });
    await operations({ era: "legacy" }).connect(transport);
  }
  await transport.handleRequest(request, response, body);
}

async function read(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return parts.length ? JSON.parse(Buffer.concat(parts)) : undefined;
}

if (process.argv[2] === "stdio") serveStdio(operations);
else {
  handler = createMcpHandler(operations, { legacy: "reject" });
  const serveModern = toNodeHandler(handler);
  createServer(async (request, response) => {
    const body = await read(request);
    const legacy = await isLegacyRequest(await toWebRequest(request, body), body);
    await (legacy ? serveLegacy : serveModern)(request, response, body);
  }).listen(Number(process.argv[3]), "127.0.0.1");
}
