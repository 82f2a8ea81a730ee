"""Load: so many connections that call a tool again and again, each with a pause between.

load.py URL CONNECTIONS SECONDS PAUSE      prints {"calls", "failed": [texts], "slowest"} as JSON
"""

import asyncio
import json
import sys
import time
import urllib.parse

from agent import ACCEPT, body

url, connections, seconds, pause = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
calls, failed, slowest = 0, [], 0.0


async def answer_of(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if headers.get("transfer-encoding") == "chunked":
        text = b""
        while size := int(await reader.readline(), 16):
            text += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        text = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split(" ")[1]), text.decode()


async def connection(end):
    global calls, slowest
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    text = body()
    head = "".join(f"{name}: {value}\r\n" for name, value in ACCEPT.items())
    message = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n{head}Content-Length: {len(text)}\r\n\r\n{text}".encode()
    while time.monotonic() < end:
        began = time.monotonic()
        writer.write(message)
        status, answer = await asyncio.wait_for(answer_of(reader), 30)
        calls, slowest = calls + 1, max(slowest, time.monotonic() - began)
        if status != 200 or '"isError":true' in answer or '"error"' in answer:
            failed.append(f"HTTP {status}: {answer[:300]}")
        await asyncio.sleep(pause)
    writer.close()


async def one(number, end):
    # Not all at the same moment.
    await asyncio.sleep(pause * number / connections)
    try:
        await connection(end)
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        failed.append(f"{type(error).__name__}: {error}")


async def main():
    end = time.monotonic() + seconds
    await asyncio.gather(*(one(number, end) for number in range(connections)))
    print(json.dumps({"calls": calls, "failed": len(failed), "first": failed[:3], "slowest": slowest}))


asyncio.run(main())
