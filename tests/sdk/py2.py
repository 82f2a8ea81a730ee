"""Client of PyPI `mcp` 2.x; see checks.py for the arguments. MCP_MODE: auto or legacy."""

import os

from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client

import checks


async def session(target, transport, steps):
    server = {
        "http": lambda: target,
        "sse": lambda: sse_client(target),
        "stdio": lambda: StdioServerParameters(command=target[0], args=target[1:]),
    }[transport]()
    async with Client(server, mode=os.environ["MCP_MODE"]) as client:

        async def list_tools():
            # The client keeps lists; the second one must come through the sidecar too.
            return [tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools]

        async def call_tool(name, args):
            return (await client.call_tool(name, args)).model_dump(by_alias=True)

        await checks.run_steps(client.protocol_version, steps, list_tools, call_tool)


checks.main(session)
