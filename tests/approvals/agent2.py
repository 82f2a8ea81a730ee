"""An agent with PyPI `mcp` 2.x; agent_lines.py says how it is spoken to."""

import asyncio

from agent_lines import serve, target
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client


async def main():
    server, transport = target()
    if transport == "stdio":
        server = StdioServerParameters(command=server[0], args=server[1:])
    elif transport == "sse":
        server = sse_client(server)
    async with Client(server, mode="legacy") as client:
        await serve(client.protocol_version, client.call_tool)


asyncio.run(main())
