// The checks of one client against one server, for the TypeScript SDKs. checks.py, its twin, says what the arguments are:
// keep them alike.

import assert from "node:assert/strict";

const [target, transport, protocol, steps] = process.argv.slice(2);
export { transport };
export const server = transport === "stdio" ? JSON.parse(target) : new URL(target);
// One step that hangs must not hide what the others say.
export const options = { timeout: 20_000 };

function checkList({ present, absent }, names) {
  assert.deepEqual(present.filter((name) => !names.includes(name)), [], `missing from ${names}`);
  assert.deepEqual(absent.filter((name) => names.includes(name)), [], `should not be in ${names}`);
}

function checkCall({ call, text: wanted, denied, failed }, result) {
  const seen = JSON.stringify(result);
  const words = result.words;
  const text = words ?? result.content.map((item) => item.text ?? "").join("");
  const wrong = Boolean(denied || failed);
  assert.equal(Boolean(result.isError), wrong, `isError is wrong in ${seen}`);
  if (!wrong) return assert.equal(text, wanted, `expected ${wanted}, got ${seen}`);
  assert.ok(text.includes(wanted), `"${wanted}" is not in ${text}`);
  const told = result._meta?.["toolweir.dev/denial"] ?? {};
  if (!denied) return words === undefined && assert.deepEqual(told, failed);
  const begin = `Denied by policy ${denied.policy}: `;
  // A framework may put words of its own around the policy's.
  assert.ok(words === undefined ? text.startsWith(begin) : text.includes(begin), `text is not the policy's: ${text}`);
  if (words !== undefined) return;
  for (const [key, value] of Object.entries({ tool: call, ...denied }))
    assert.deepEqual(told[key], value, `${key} is not ${value} in ${JSON.stringify(told)}`);
  // A minute, and the 1/64 of it by which a place may come free late.
  const wait = told.retryAfterSeconds;
  if (denied.reason === "rate_limit") assert.ok(wait > 0 && wait <= 61, `retryAfterSeconds is ${wait}`);
}

async function check(what, body) {
  try {
    await body();
    console.log(`ok ${what}`);
  } catch (error) {
    const cause = error.cause ? ` (${error.cause})` : "";
    console.log(`FAIL ${what}: ${`${error.message}${cause}`.replace(/\s+/g, " ").slice(0, 600)}`);
  }
}

// connect(): the version agreed on, if the client tells it; listTools(): names; callTool(name, args): the result as on the
// wire, or of a framework that hands over less, `words` and `isError`.
export async function run({ connect, listTools, callTool, close }) {
  await check("connect", async () => assert.equal((await connect()) ?? protocol, protocol, "the version agreed on"));
  for (const step of JSON.parse(steps))
    await check(step.what, async () =>
      step.list ? checkList(step.list, await listTools()) : checkCall(step, await callTool(step.call, step.args)));
  await close();
  // Some leave a connection open that would keep the process for seconds.
  process.exit();
}
