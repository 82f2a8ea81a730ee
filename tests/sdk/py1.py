"""Client of PyPI `mcp` 1.x; see checks.py for the arguments."""

from contextlib import asynccontextmanager

from mcp import ClientSession, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

import checks


@asynccontextmanager
async def connect(target, transport):
    if transport == "stdio":
        opened = stdio_client(StdioServerParameters(command=target[0], args=target[1:]))
    else:
        opened = {"http": streamable_http_client, "sse": sse_client}[transport](target)
    async with opened as (read, write, *_), ClientSession(read, write) as session:
        yield session


async def session(target, transport, steps):
    async with connect(target, transport) as client:
        protocol = (await client.initialize()).protocolVersion

        async def list_tools():
            return [tool.name for tool in (await client.list_tools()).tools]

        async def call_tool(name, args):
            return (await client.call_tool(name, args)).model_dump(by_alias=True)

        await checks.run_steps(protocol, steps, list_tools, call_tool)


checks.main(session)
