"""HTTP/1.1 over sockets: a client and a server that send and record exactly these bytes."""

import asyncio

from http_parts import Incoming, Request


async def _head(reader):
    """The first line, and the headers in lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in lines[1:] if line]
    return lines[0], [(name.strip().lower(), value.strip()) for name, value in pairs]


async def _pieces(reader, headers, ends_with_connection):
    """The pieces of a body, as its headers say where it ends."""
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
    elif "content-length" in fields:
        yield await reader.readexactly(int(fields["content-length"]))
    elif ends_with_connection:
        while piece := await reader.read(1 << 16):
            yield piece


class Client:
    """Requests to a port, each on a connection of its own."""

    def __init__(self, port):
        self.port = port

    async def open(self, method, path, headers, body=b""):
        """Sends a request; what it gives has the head of the response, and gets its body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        fields = [("Host", f"127.0.0.1:{self.port}"), *headers]
        if method == "POST":
            fields.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        status, received = await _head(reader)
        incoming = Incoming(int(status.split()[1]), received, writer.close)

        async def feed():
            async for piece in _pieces(reader, received, True):
                incoming.body.feed_data(piece)

        incoming.fed_by(feed())
        return incoming

    async def close(self):
        pass


class Reply:
    """The response to a request, in chunks unless it is whole."""

    def __init__(self, writer):
        self.writer = writer

    async def whole(self, status, headers, body=b""):
        fields = "".join(f"{name}: {value}\r\n" for name, value in [*headers, ("Content-Length", len(body))])
        self.writer.write(f"HTTP/1.1 {status} Said\r\n{fields}\r\n".encode() + body)
        await self.writer.drain()

    async def begin(self, status, headers):
        fields = "".join(f"{name}: {value}\r\n" for name, value in [*headers, ("Transfer-Encoding", "chunked")])
        self.writer.write(f"HTTP/1.1 {status} Said\r\n{fields}\r\n".encode())
        await self.writer.drain()

    async def write(self, piece):
        self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await self.writer.drain()

    async def end(self):
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


async def serve(port, handle):
    """Serves `handle(request, reply)`."""

    async def connection(reader, writer):
        try:
            while True:
                line, headers = await _head(reader)
                method, path, _ = line.split(" ")
                body = b"".join([piece async for piece in _pieces(reader, headers, False)])
                await handle(Request(method, path, headers, body), Reply(writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connection, "127.0.0.1", port, limit=1 << 22, backlog=1024)
