// The twin of record.py for the clients of the TypeScript SDKs.

const [address, kind, given] = process.argv.slice(2);
export const transport = kind;
export const target = kind === "stdio" ? JSON.parse(address) : new URL(address);
export const options = { timeout: 20_000 };

// As in steps.py.
export const answers = {
  "sampling/createMessage": () => ({ role: "assistant", model: "none", content: { type: "text", text: "A model says yes." } }),
  "elicitation/create": ({ params }) => ({ action: "accept", ...(params.mode === "url" ? {} : { content: { name: "Ann" } }) }),
  "roots/list": () => ({ roots: [{ uri: "file:///home/agent" }] }),
};
export const capabilities = { sampling: {}, elicitation: { form: {}, url: {} }, roots: {} };

let events = [];
let arrived = () => {};

/** The server has asked for something; gives what it is answered. */
export function asked(method, request) {
  events.push({ asked: method, params: request.params ?? null });
  return answers[method](request);
}

/** The server has sent a notification. */
export function told({ method, params }) {
  events.push({ told: method, params });
  arrived();
}

const count = () => events.filter((event) => "told" in event).length;

/** Ends when so many notifications have come, or after so many seconds. */
function notified(expected, seconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    arrived = () => {
      if (count() < expected) return;
      clearTimeout(timer);
      resolve();
    };
    arrived();
  });
}

async function take(step, operations) {
  events = [];
  let outcome;
  try {
    outcome = { result: (await operations[step.op](...step.args)) ?? null };
  } catch (error) {
    outcome = { error: error.code ?? error.name, message: error.message };
    if (error.data !== undefined) outcome.data = error.data;
  }
  await notified(step.events, step.patience);
  return { ...outcome, events };
}

/** `connect()`: connects, and gives the version that was agreed on; `operations`: by their names in steps.py. */
export async function run({ connect, operations, close }) {
  const record = { protocol: null, steps: {}, ended: null };
  try {
    record.protocol = await connect();
    const era = record.protocol >= "2026" ? "modern" : "legacy";
    for (const step of JSON.parse(given)) {
      if (step.eras.includes(era)) record.steps[step.name] = await take(step, operations);
    }
    await close();
  } catch (error) {
    console.error(error);
    record.ended = String(error);
  }
  process.stdout.write(`${JSON.stringify(record)}\n`, () => process.exit());
}
