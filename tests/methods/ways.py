"""The transports: for each a server, a sidecar in between, and a client. What one side says, the other's bytes show."""

import asyncio
import contextlib
import http.client
import json
import re
import ssl
import sys
from pathlib import Path

import http1
import http2
from http_parts import Request
from server import EVENT, JSON, STREAM, Plan, Server, event
from table import ALL, LEGACY, MODERN

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "shared"), str(HERE.parent / "intercept")]
from certificates import Authority, pem  # noqa: E402
from processes import Broken, NotInTime, Sidecar, free_port, tail  # noqa: E402

NAME = "office"
SSE = [("Accept", "text/event-stream")]
# What `Mcp-Name` repeats.
NAMES = {
    "tools/call": "name", "prompts/get": "name", "resources/read": "uri", "tasks/get": "taskId", "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
# For what must come. What must not come is shown by what comes after it.
WAIT = 5.0


async def soon(what, coming):
    try:
        return await asyncio.wait_for(coming, WAIT)
    except TimeoutError:
        raise NotInTime(f"not within {WAIT:g} s: {what}") from None
    except asyncio.IncompleteReadError as error:
        raise Broken(f"the stream ended: {what}; {error.partial!r}") from None


def headers(version, method=None, params=None):
    """What a client's request has, beside what HTTP needs."""
    found = [("Authorization", f"Bearer agent-of-{version}")]
    if version in MODERN:
        found.append(("Mcp-Method", method))
        if name := (params or {}).get(NAMES.get(method)):
            found.append(("Mcp-Name", name))
    else:
        found.append(("Mcp-Session-Id", f"session-of-{version}"))
    if version >= "2025-06-18":
        found.append(("MCP-Protocol-Version", version))
    return found


class Way:
    """One transport. `forms`: in which an answer can come. `streams`: on which a server can speak by itself, by version."""

    versions, forms = ALL, (JSON, EVENT)

    def __init__(self, stage, name, policy, flags=()):
        self.stage, self.name, self.policy, self.flags = stage, name, policy, flags
        self.server = Server()

    def streams(self, version):
        return ("POST", "GET") if version in LEGACY else ("POST", "listen")

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(OSError):
            await self.stop()

    # What the server got.

    async def arrival(self, what):
        """The next message that reached the server."""
        return await soon(f"the server gets {what}", self.server.arrived.get())

    def metrics(self):
        """`{name: [(labels, value)]}` of the sidecar."""
        found = {}
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M):
            found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
        return found

    # What is the same over HTTP/1.1 and HTTP/2.

    url, path = "http://127.0.0.1", "/mcp"

    async def start(self):
        port = free_port()
        self.listening = await self.serve(port)
        self.sidecar = Sidecar(self.stage, self.name, [self.policy(f"{self.url}:{port}{self.path}")], self.flags)
        self.client, self.metrics_port = self.new_client(self.sidecar.port), self.sidecar.metrics_port

    async def stop(self):
        await self.client.close()
        self.sidecar.process.terminate()
        self.sidecar.process.wait(10)
        self.listening.close()

    async def post(self, body, fields, path=f"/{NAME}"):
        fields = [("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream"), *fields]
        return await soon("the head of an answer", self.client.open("POST", path, fields, body))

    def framed(self, form, body):
        """An answer as the client must get it."""
        return body if form == JSON else event(body)

    async def ask(self, body, fields):
        """Sends a request, and gives the bytes of its answer."""
        incoming = await self.post(body, fields)
        found = await soon("an answer", incoming.whole())
        if incoming.status != 200:
            raise Broken(f"HTTP {incoming.status}: {found[:200]!r}")
        return found

    async def tell(self, body, fields):
        """Sends a notification, or an answer to the server."""
        incoming = await self.post(body, fields)
        found = await soon("the end of an answer", incoming.whole())
        if incoming.status != 202 or found:
            raise Broken(f"HTTP {incoming.status}: {found[:200]!r}; it must be 202")

    async def open(self, kind, version, body, fields):
        """Opens a stream of the server; `body` is the request that a POST opens it with."""
        if kind == "GET":
            coming = self.client.open("GET", f"/{NAME}", [*SSE, *fields])
        else:
            coming = self.post(body, fields)
        incoming = await soon("the head of a stream", coming)
        return Pair(await soon("a stream", self.server.opened.get()), incoming, self.path)

    async def forget(self):
        """Drops what the client did not read: each answer and each stream has a connection or a stream of its own."""


class Pair:
    """Both ends of one stream. `opening`: the request for it, as the server got it. `answers`: the path of answers to the server."""

    def __init__(self, stream, incoming, answers):
        self.stream, self.incoming, self.opening, self.answers = stream, incoming, stream.request, answers

    def framed(self, body, number=None):
        return event(body, number)

    async def say(self, piece):
        await self.stream.say(piece)

    async def next(self, what):
        """The next event at the client."""
        return await soon(f"the client gets {what}", self.incoming.block())

    async def close(self, last=None):
        """Ends it, with an answer to the request that opened it."""
        if last:
            await self.say(last)
            found = await self.next("the answer that ends the stream")
            if found != last:
                raise Broken(f"the answer that ends the stream is {found!r}, not {last!r}")
        self.stream.end()
        self.incoming.close()


class Http1(Way):
    """Streamable HTTP over HTTP/1.1."""

    versions = ALL[1:]
    new_client = http1.Client

    async def serve(self, port):
        return await http1.serve(port, self.server.handle)


class Http2(Way):
    """Streamable HTTP over HTTP/2: with prior knowledge to the sidecar, with TLS to the server."""

    versions = ALL[1:]
    new_client = http2.Client
    url = "https://localhost"

    async def serve(self, port):
        authority = Authority.root("methods")
        roots, shown = self.stage.dir / f"{self.name}-roots.pem", self.stage.dir / f"{self.name}-server.pem"
        roots.write_text(pem(authority.certificate))
        shown.write_text(authority.leaf("localhost"))
        self.flags = [*self.flags, "--upstream-ca", roots]
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(shown)
        tls.set_alpn_protocols(["h2"])
        return await http2.serve(port, self.server.handle, tls)


class Sse(Way):
    """HTTP+SSE. Clients of later versions of the protocol use it with servers that have nothing else."""

    versions, forms = LEGACY, (EVENT,)
    new_client = http1.Client
    path = "/sse"

    def __init__(self, *args):
        super().__init__(*args)
        self.server = Server(legacy=True)
        self.pairs = {}

    async def serve(self, port):
        return await http1.serve(port, self.server.handle)

    def streams(self, version):
        return ("GET",)

    async def pair(self, fields):
        """The stream of these headers, and the path for messages to it."""
        key = tuple(fields)
        if key not in self.pairs:
            pair = await super().open("GET", None, None, fields)
            endpoint = (await pair.next("its endpoint")).decode()
            path = re.search(rf"^data: ?(/{NAME}/-/messages/\S+)$", endpoint, re.M)
            if not path:
                raise Broken(f"the client gets {endpoint!r} as its endpoint")
            pair.answers = f"/messages?stream={len(self.server.streams) - 1}"
            self.pairs[key] = (pair, path[1])
        return self.pairs[key]

    async def ask(self, body, fields):
        pair, _ = await self.pair(fields)
        await self.tell(body, fields)
        return await pair.next("an answer")

    async def tell(self, body, fields):
        _, path = await self.pair(fields)
        incoming = await self.post(body, fields, path)
        if incoming.status != 202:
            raise Broken(f"HTTP {incoming.status}: {await incoming.whole()!r}; it must be 202")
        incoming.close()

    async def open(self, kind, version, body, fields):
        pair, _ = await self.pair(fields)
        return Kept(pair)

    async def forget(self):
        """Ends its streams, so that new ones are opened."""
        for pair, _ in self.pairs.values():
            await pair.close()
        self.pairs.clear()

    async def stop(self):
        await self.forget()
        await super().stop()


class Kept:
    """A stream that stays open for what comes after."""

    def __init__(self, pair):
        self.framed, self.say, self.next = pair.framed, pair.say, pair.next
        self.opening, self.answers = pair.opening, pair.answers

    async def close(self, last=None):
        pass


class Stdio(Way):
    """stdio: one line for each message."""

    forms = ("line",)

    def streams(self, version):
        return ("stdout",)

    async def start(self):
        document = self.stage.dir / f"{self.name}.yaml"
        document.write_text(json.dumps(self.policy(None)))
        connected = asyncio.get_running_loop().create_future()

        async def connection(reader, writer):
            connected.set_result(writer)
            while line := await reader.readline():
                self.server.arrived.put_nowait(Request(None, None, [], line[:-1]))
                if plan := self.server.plan_for(line):
                    writer.write(plan.body + b"\n")

        # A path of a socket has at most 107 bytes.
        address = Path("/tmp") / f"toolweir-methods-{free_port()}.socket"
        self.listening = await asyncio.start_unix_server(connection, address, limit=1 << 22)
        self.metrics_port = free_port()
        command = [self.stage.sidecar_binary, "stdio", "--policy", document, "--server", NAME, *self.flags]
        command += ["--metrics-listen", f"127.0.0.1:{self.metrics_port}", "--", sys.executable, HERE / "stdio_server.py", address]
        with open(self.stage.dir / f"{self.name}.log", "ab") as log:
            pipe = asyncio.subprocess.PIPE
            words = map(str, command)
            self.process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=log, limit=1 << 22)
        try:
            self.writer = await soon("the server of stdio starts", connected)
        except Broken as error:
            raise Broken(f"{error}: {tail(self.stage.dir / f'{self.name}.log')}") from error
        finally:
            address.unlink()

    async def stop(self):
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
        self.writer.close()
        self.listening.close()

    def framed(self, form, body):
        return body + b"\n"

    async def ask(self, body, fields):
        await self.tell(body, fields)
        return await soon("an answer", self._line())

    async def _line(self):
        if not (line := await self.process.stdout.readline()):
            raise Broken("the sidecar closed its stdout")
        return line

    async def tell(self, body, fields):
        self.process.stdin.write(body + b"\n")
        await self.process.stdin.drain()

    async def open(self, kind, version, body, fields):
        return Lines(self)

    async def forget(self):
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(self._line(), 0.2)


class Lines:
    """Both ends of stdout."""

    opening = answers = None

    def __init__(self, way):
        self.way = way

    def framed(self, body, number=None):
        return body + b"\n"

    async def say(self, piece):
        self.way.writer.write(piece)

    async def next(self, what):
        return await soon(f"the client gets {what}", self.way._line())

    async def close(self, last=None):
        pass


WAYS = {"http1": Http1, "http2": Http2, "sse": Sse, "stdio": Stdio}
__all__ = ["NAME", "STREAM", "WAYS", "Broken", "NotInTime", "Plan", "headers"]
