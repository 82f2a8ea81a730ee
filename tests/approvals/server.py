"""An MCP server that writes down every message before it answers it.

    server.py FILE http PORT      Streamable HTTP at /mcp, HTTP+SSE at /sse
    server.py FILE stdio

FILE gets a line for each message, `{"ns": when it came, monotonic, "message": the message}`, in one write: it is whole, or not there. A call is answered
after `arguments.seconds`, or never, if `arguments.hang_up` says so.
"""

import asyncio
import json
import os
import sys
import time
import uuid

LOG = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
TOOLS = ("pay_invoice", "wire_money", "close_account", "send_note", "get_balance")
RESULTS = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "bank", "version": "1"},
    },
    "ping": {},
    "tools/list": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]},
}


async def answer(text):
    """The answer to a message; nothing to a notification."""
    message = json.loads(text)
    os.write(LOG, json.dumps({"ns": time.monotonic_ns(), "message": message}).encode() + b"\n")
    if "id" not in message:
        return None
    result = RESULTS.get(message["method"])
    if message["method"] == "tools/call":
        arguments = message["params"].get("arguments", {})
        if arguments.get("hang_up"):
            raise ConnectionResetError
        if seconds := arguments.get("seconds"):
            await asyncio.sleep(seconds)
        result = {"content": [{"type": "text", "text": f"{message['params']['name']} is done"}], "isError": False}
    if result is None:
        return json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}})
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})


STREAMS, TASKS = {}, set()


async def exchange(reader, writer):
    """One request and its response. Returns false where the connection ends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    if method == "GET" and path == "/sse":
        await stream(writer)
        return False
    status, said = "405 Method Not Allowed", None
    if path.startswith("/messages"):
        status = "202 Accepted"
        TASKS.add(asyncio.create_task(on_stream(body, STREAMS[path.partition("=")[2]])))
    elif method == "POST":
        said = await answer(body)
        status = "200 OK" if said else "202 Accepted"
    said = (said or "").encode()
    kind = "Content-Type: application/json\r\n" if said else ""
    writer.write(f"HTTP/1.1 {status}\r\n{kind}Content-Length: {len(said)}\r\n\r\n".encode() + said)
    await writer.drain()
    return True


async def on_stream(body, queue):
    if said := await answer(body):
        queue.put_nowait(said)


async def stream(writer):
    name, queue = uuid.uuid4().hex, asyncio.Queue()
    STREAMS[name] = queue
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    writer.write(f"event: endpoint\ndata: /messages?stream={name}\n\n".encode())
    while True:
        await writer.drain()
        writer.write(f"event: message\ndata: {await queue.get()}\n\n".encode())


async def connection(reader, writer):
    try:
        while await exchange(reader, writer):
            pass
    except (asyncio.IncompleteReadError, OSError):
        pass  # a sidecar that hung up, or was killed
    finally:
        writer.close()


async def serve_http(port):
    server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=512, limit=1 << 24)
    await server.serve_forever()


async def serve_stdio():
    lines = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def respond(line):
        if said := await answer(line):
            print(said, flush=True)

    async with asyncio.TaskGroup() as tasks:
        async for line in lines:
            tasks.create_task(respond(line))


asyncio.run(serve_stdio() if sys.argv[2] == "stdio" else serve_http(int(sys.argv[3])))
