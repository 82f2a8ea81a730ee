// Opens the bundled page of page.js in headless Chromium, on one origin after the other, and says what it saw through the sidecar.
//
//   node page.mjs CHROMIUM PAGE.js SIDECAR_URL
//
// `chat.example` is given to the sidecar with --allow-host, `evil.example` is not. Exit code 1: a page saw something else.
import { createServer } from 'node:http';
import { readFileSync, mkdtempSync, rmSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [chromium, script, target] = process.argv.slice(2);
const page = readFileSync(script);
let told;
const server = createServer(async (request, response) => {
  if (request.url === '/page.js') return response.writeHead(200, { 'content-type': 'text/javascript' }).end(page);
  if (request.url !== '/seen') return response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>');
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  response.writeHead(204).end();
  told(JSON.parse(Buffer.concat(chunks)));
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const { port } = server.address();

async function open(host) {
  const profile = mkdtempSync(join(tmpdir(), 'toolweir-page-'));
  const seen = new Promise((resolve) => { told = resolve; });
  const browser = spawn(chromium, [
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
    '--disable-sync', '--no-proxy-server', `--user-data-dir=${profile}`, '--host-resolver-rules=MAP *.example 127.0.0.1', `http://${host}:${port}/#${target}`,
  ], { stdio: 'ignore', detached: true });
  const late = new Promise((resolve) => setTimeout(resolve, 60_000, { error: 'the page told nothing within 60 s' }).unref());
  try {
    return await Promise.race([seen, late]);
  } finally {
    // With all its processes, which else write on while the profile is removed.
    process.kill(-browser.pid, 'SIGKILL');
    await once(browser, 'exit');
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 });
  }
}

const good = { session: true, tools: ['echo'], called: 'Echo: from a page', missing: 404 };
let failed = 0;
for (const [host, accepted] of [['localhost', true], ['127.0.0.1', true], ['chat.example', true], ['evil.example', false]]) {
  const { denied, error, ...seen } = await open(host);
  const right = accepted
    ? !error && denied?.startsWith('Denied by policy tests/page') && JSON.stringify(seen) === JSON.stringify(good)
    : error && Object.keys(seen).length === 0;
  console.log(`${right ? 'ok  ' : 'FAIL'} ${host.padEnd(13)} ${accepted ? 'lists, calls, is denied, reads a failure' : `reads nothing: ${error}`}`);
  if (!right) {
    failed += 1;
    console.log(`     ${JSON.stringify({ denied, error, ...seen })}`);
  }
}
server.close();
server.closeAllConnections();
process.exit(failed ? 1 : 0);
