"""The MCP server of the sidecar's scenarios. Its path says how it misbehaves.

    upstream.py PORT [lists] [events]       with these it makes its large answers first, so that nobody waits for them later
"""

import asyncio
import sys

MOST = 4 * 2**20
# What the frame of an answer may take of a list that is as large as is read.
FRAME = 4096
BIG = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"%s"}]}}' % (b"x" * 2**20)
SMALL = b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}'


def listed(items):
    return b'{"jsonrpc":"2.0","id":1,"result":{"tools":[%s]}}' % items


def filled(item, most=MOST - FRAME):
    """As many of these items as fit."""
    return b",".join([item] * (most // (len(item) + 1)))


def numbered(template, most=MOST - FRAME):
    """The same, each with a number of its own."""
    parts, length, number = [], 0, 0
    while length < most - 64:
        parts.append(template % number)
        length, number = length + len(parts[-1]) + 1, number + 1
    return b",".join(parts)


LISTS = {
    # A list of tools, 4 MiB of it, with as many items as fit: by the last part of the path.
    "zeros": lambda: listed(filled(b"0")),
    "objects": lambda: listed(filled(b"{}")),
    "named": lambda: listed(numbered(b'{"name":"small%d"}')),
    "keys": lambda: listed(b'{"name":"small",%s}' % numbered(b'"%x":0')),
    "deep": lambda: listed(filled(b"[" * 100 + b"]" * 100)),
    "result-keys": lambda: b'{"jsonrpc":"2.0","id":1,"result":{%s,"tools":[]}}' % numbered(b'"%x":0'),
}
_made = {}


def made(name):
    if name not in _made:
        _made[name] = LISTS[name]()
    return _made[name]


EVENTS = {
    # An event that must be read, 4 MiB of it.
    "line": lambda most: b"data: " + listed(filled(b'{"name":"small","description":"%s"}' % (b"x" * 900), most)) + b"\n\n",
    # The same in as many lines as fit, and with line ends of which each could be the first half of another.
    "lines": lambda most: b"data:" + listed(b"").replace(b"[]", b"[" + b"\ndata:" * (most // 6) + b"]") + b"\n\n",
    "returns": lambda most: b"data:" + listed(b"").replace(b"[]", b"[" + b"\rdata:" * (most // 6) + b"]") + b"\r\r",
    # Fields that nobody reads.
    "comments": lambda most: b":\n" * (most // 2) + b"data: " + listed(b"") + b"\n\n",
}


def in_single_bytes(event):
    """As chunks of HTTP/1.1."""
    chunks = bytearray(6 * len(event))
    for place, byte in enumerate(b"1\r\n"):
        chunks[place::6] = bytes([byte]) * len(event)
    chunks[3::6] = event
    for place, byte in enumerate(b"\r\n", 4):
        chunks[place::6] = bytes([byte]) * len(event)
    return bytes(chunks)


_pieces = {}


def pieces(name):
    """An event of 4 MiB; with -quarter behind its name, of one."""
    if name not in _pieces:
        event, _, less = name.partition("-")
        _pieces[name] = in_single_bytes(EVENTS[event]((MOST - 2 * FRAME) // (4 if less else 1)))
    return _pieces[name]


async def serve(reader, writer):
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split()[1].decode()
            length = 0
            chunked = b"transfer-encoding: chunked" in request.lower()
            for line in request.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = b""
            if chunked:
                while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            elif length:
                body = await reader.readexactly(length)
            _, kind, *rest = path.split("/")
            if kind == "stall":
                content = b"text/event-stream" if rest[0] == "event" else b"application/json"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (content, MOST))
                writer.write((b"data: " if rest[0] == "event" else b"") + b'{"jsonrpc":"2.0","id":1,"result":{"tools":[' + b" " * (MOST * 3 // 4))
                await asyncio.sleep(60)
            elif kind == "dribble":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(pieces(rest[0]) + b"0\r\n\r\n")
            else:
                is_list = b'"tools/list"' in body[:200]
                if kind == "items" and is_list:
                    answer = made(rest[0])
                elif kind == "events" and is_list:
                    answer = b"data: " + made(rest[0]) + b"\n\n"
                else:
                    answer = BIG if b'"name":"big"' in body[:200] else SMALL
                content = b"text/event-stream" if kind == "events" and is_list else b"application/json"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (content, len(answer)))
                writer.write(answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port, first):
    for name in LISTS if "lists" in first else ():
        made(name)
    for name in EVENTS if "events" in first else ():
        pieces(name)
        pieces(f"{name}-quarter")
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096, limit=2**20)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
