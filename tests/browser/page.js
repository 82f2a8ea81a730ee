// The page: the SDK's client in a browser, at a server behind the sidecar. It tells its own server what it saw.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';

const url = new URL(location.hash.slice(1));
const seen = {};
try {
  const client = new Client({ name: 'page', version: '1' });
  const transport = new StreamableHTTPClientTransport(url, { requestInit: { headers: { authorization: 'Bearer x' } } });
  await client.connect(transport);
  // Read from a header that a page sees only if it is exposed.
  seen.session = Boolean(transport.sessionId);
  seen.tools = (await client.listTools()).tools.map((tool) => tool.name).sort();
  seen.called = (await client.callTool({ name: 'echo', arguments: { message: 'from a page' } })).content[0].text;
  seen.denied = (await client.callTool({ name: 'get-sum', arguments: { a: 2, b: 3 } })).content[0].text;
  const missing = await fetch(new URL('/no/such/path', url), { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"jsonrpc":"2.0","id":1,"method":"ping"}' });
  seen.missing = missing.status;
  await transport.terminateSession();
  await client.close();
} catch (error) {
  seen.error = String(error);
}
await fetch('/seen', { method: 'POST', body: JSON.stringify(seen) });
