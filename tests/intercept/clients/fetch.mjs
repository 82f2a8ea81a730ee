// fetch of Node, Bun and Deno; libraries.py says what is printed. BUILT_IN=1: trusts the roots that came with Node alone.

import process from "node:process";

async function builtIn(url) {
  const https = await import("node:https");
  const tls = await import("node:tls");
  return new Promise((resolve, reject) => {
    const request = https.get(url, { ca: tls.rootCertificates, timeout: 10_000 }, (answer) => {
      answer.resume();
      resolve({ status: answer.statusCode, text: "" });
    });
    request.on("error", reject);
  });
}

async function get(url) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(10_000) });
  return { status: answer.status, text: await answer.text() };
}

for (const url of process.argv.slice(2)) {
  let said;
  try {
    said = await (process.env.BUILT_IN ? builtIn(url) : get(url));
  } catch (error) {
    // Two addresses, two errors.
    const causes = [error, error.cause, ...(error.cause?.errors ?? error.errors ?? [])].filter(Boolean);
    said = { error: causes.map((one) => `${one.code ?? one.name}: ${one.message}`).join(" < ") };
  }
  console.log(JSON.stringify(said));
}
process.exit();
