"""An agent with PyPI `mcp` 1.x; agent_lines.py says how it is spoken to."""

import asyncio
from contextlib import asynccontextmanager

from agent_lines import serve, target
from mcp import ClientSession, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client


@asynccontextmanager
async def connect():
    server, transport = target()
    if transport == "stdio":
        opened = stdio_client(StdioServerParameters(command=server[0], args=server[1:]))
    else:
        opened = {"http": streamable_http_client, "sse": sse_client}[transport](server)
    async with opened as (read, write, *_), ClientSession(read, write) as session:
        yield session


async def main():
    async with connect() as session:
        await serve((await session.initialize()).protocolVersion, session.call_tool)


asyncio.run(main())
