// Serves the page of app.jsx with one dashboard after the other, and takes a picture of each in headless Chromium.
//
//   node draw.mjs NODE_MODULES CHROMIUM PROMETHEUS OUT BOARDS.json
//
// BOARDS.json is what boards.py wrote: dashboards without variables, and the time that they show. Exit code 1: a panel is empty or
// says that something went wrong.
import { createServer } from 'node:http';
import { readFileSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [modules, chromium, prometheus, out, boards] = process.argv.slice(2);
const require = createRequire(join(modules, 'x.js'));
const { chromium: browsers } = require('playwright-core');
const { settings, list } = JSON.parse(readFileSync(boards, 'utf8'));
const bundle = readFileSync(join(modules, '../app.js'));
let board;

const server = createServer(async (request, response) => {
  try {
    if (request.url.startsWith('/prometheus/')) {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      const type = request.headers['content-type'];
      const answer = await fetch(prometheus + request.url.slice('/prometheus'.length), {
        method: request.method, headers: type ? { 'content-type': type } : {}, body: chunks.length ? Buffer.concat(chunks) : undefined,
      });
      const body = Buffer.from(await answer.arrayBuffer());
      response.writeHead(answer.status, { 'content-type': 'application/json' }).end(body);
    } else if (request.url === '/board.json') {
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ board, settings }));
    } else if (request.url === '/app.js') {
      response.writeHead(200, { 'content-type': 'text/javascript' }).end(bundle);
    } else {
      response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><meta charset="utf-8"><body style="margin:0 8px;background:#f4f5f7"><div id="root"></div><script type="module" src="/app.js"></script>');
    }
  } catch (error) {
    response.writeHead(502).end(String(error));
  }
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const page_url = `http://127.0.0.1:${server.address().port}/`;
const profile = mkdtempSync(join(tmpdir(), 'toolweir-draw-'));
const browser = await browsers.launchPersistentContext(profile, {
  executablePath: chromium,
  // Nothing but this page: a browser that looks for updates only waits where the network is closed.
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  viewport: { width: 1472, height: 1000 },
  deviceScaleFactor: 1,
  timezoneId: 'UTC',
});
const problems = [];
try {
  for (board of list) {
    const page = await browser.newPage();
    page.on('pageerror', (error) => problems.push(`${board.title}: ${error}`));
    await page.goto(page_url);
    await page.waitForSelector('#board', { timeout: 60_000 });
    // Panels draw when they come into view.
    const height = await page.evaluate(() => document.documentElement.scrollHeight);
    await page.setViewportSize({ width: 1472, height });
    const wanted = board.panels.filter(({ type }) => type !== 'row').length;
    const unfinished = () =>
      page.evaluate(() => {
        const busy = '[role=progressbar], .MuiSkeleton-root, .MuiCircularProgress-root';
        // Something but its title.
        const drawn = (panel) => panel.querySelector('canvas, table') || panel.innerText.trim() !== panel.dataset.title;
        return [...document.querySelectorAll('.panel')].filter((panel) => panel.querySelector(busy) || !drawn(panel)).map((panel) => panel.dataset.title);
      });
    for (const began = Date.now(); (await unfinished()).length || (await page.locator('.panel').count()) !== wanted; await page.waitForTimeout(250)) {
      if (Date.now() - began > 60_000) {
        problems.push(`${board.title}: not drawn within 60 s: ${await unfinished()}`);
        break;
      }
    }
    // Lines are drawn with an animation.
    await page.waitForTimeout(2500);
    const empty = await page.evaluate(() =>
      [...document.querySelectorAll('.panel')]
        .filter((panel) => panel.querySelector('[role=alert]') || /No data|No records/.test(panel.innerText) || (panel.querySelector('table') && !panel.querySelector('tbody tr, [role=row] td')))
        .map((panel) => `${panel.dataset.title}: ${panel.innerText.replaceAll('\n', ' ').slice(0, 200)}`)
    );
    problems.push(...empty.map((line) => `${board.title} / ${line}`));
    const picture = join(out, board.uid.replace('toolweir-', 'dashboard-'));
    await page.screenshot({ path: `${picture}.png`, fullPage: true });
    // What a page has room for: as much as is seen without scrolling.
    if (board.uid === 'toolweir-denials') await page.screenshot({ path: `${picture}-top.png`, clip: { x: 0, y: 0, width: 1472, height: 1090 } });
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}
if (problems.length) {
  console.error(problems.join('\n'));
  process.exit(1);
}
