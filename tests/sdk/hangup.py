"""A forwarder `hangup.py PORT TARGET_PORT` of TCP connections: it hangs up on a client that says "please hang up"."""

import asyncio
import sys


async def copy(reader, writer, word=None):
    tail = b""
    try:
        while data := await reader.read(1 << 16):
            if word and word in tail + data:
                break
            tail = data[-len(word or b"x") :]
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve(client, answer):
    server, request = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    back = asyncio.create_task(copy(server, answer))
    await copy(client, request, b"please hang up")
    # Whatever else the server has to say is not passed on.
    answer.close()
    await back


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
