#!/usr/bin/env bash
# @modelcontextprotocol/sdk 1.32.2 (npm), a server with a tool whose taskSupport is "optional": a call that asks for no task leaves one for good.
#
# Such a tool has no handler of its own for plain calls. For these the SDK calls createTask too, polls the task until it is done, and answers with its
# result. The caller, who asked for nothing of the kind, then finds a task for each of its calls in tasks/list, and can read their results again. A
# call that asks for a task names a ttl, after which the store forgets it. A plain call names none, so `extra.taskRequestedTtl`, which the SDK's own
# examples pass on, is undefined; that becomes a ttl of null, which is no end. So it is the clients that know nothing of tasks whose results a server
# keeps for as long as it runs.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"name": "x", "version": "0.0.0", "private": true}' >package.json
npm install --silent --no-audit --no-fund --ignore-scripts @modelcontextprotocol/sdk@1.32.2 zod@4.6.7 >&2
cat >calls.mjs <<'END'
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { InMemoryTaskStore } from "@modelcontextprotocol/sdk/experimental/tasks/stores/in-memory.js";
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { z } from "zod";

const tasks = { list: {}, cancel: {}, requests: { tools: { call: {} } } };
const server = new McpServer({ name: "reports", version: "1" }, { capabilities: { tasks }, taskStore: new InMemoryTaskStore() });
server.experimental.tasks.registerToolTask("report", { inputSchema: { pages: z.number() }, execution: { taskSupport: "optional" } }, {
  createTask: async ({ pages }, { taskStore, taskRequestedTtl }) => {
    const task = await taskStore.createTask({ ttl: taskRequestedTtl, pollInterval: 5 });
    await taskStore.storeTaskResult(task.taskId, "completed", { content: [{ type: "text", text: `${pages} pages` }] });
    return { task };
  },
  getTask: (_, { taskStore, taskId }) => taskStore.getTask(taskId),
  getTaskResult: (_, { taskStore, taskId }) => taskStore.getTaskResult(taskId),
});
const client = new Client({ name: "reader", version: "1" });
const [one, other] = InMemoryTransport.createLinkedPair();
await Promise.all([server.connect(one), client.connect(other)]);
const call = (pages, more) => client.request({ method: "tools/call", params: { name: "report", arguments: { pages }, ...more } }, z.any());
const listed = async () => (await client.experimental.tasks.listTasks()).tasks;

for (const pages of [1, 2, 3, 4, 5]) await call(pages, { task: { ttl: 200 } });
console.log("tasks after 5 calls that ask for one:", (await listed()).length);
await sleep(600);
console.log("tasks 0.6 s later:", (await listed()).length);
for (const pages of [1, 2, 3, 4, 5]) console.log("plain call:", JSON.stringify(await call(pages)));
await sleep(600);
const left = await listed();
console.log("tasks 0.6 s after 5 plain calls:", left.length, "ttl:", left[0].ttl);
const { content } = await client.experimental.tasks.getTaskResult(left[0].taskId, z.any());
console.log("result of the first:", content[0].text);
process.exit(0);
END
said=$(node calls.mjs)
printf '%s\n' "$said"
grep -q '^tasks after 5 calls that ask for one: 5$' <<<"$said"
grep -q '^tasks 0.6 s later: 0$' <<<"$said"
grep -q '^plain call: {"content":\[{"type":"text","text":"5 pages"}\]}$' <<<"$said"
grep -q '^tasks 0.6 s after 5 plain calls: 5 ttl: null$' <<<"$said"
grep -q '^result of the first: 1 pages$' <<<"$said"
