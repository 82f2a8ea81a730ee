"""A client of PyPI `fastmcp`, for the tasks of 2026-07-28; record.py says how it is called."""

import asyncio
from contextlib import asynccontextmanager

from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StdioTransport
from fastmcp_tasks.client import _send_get, call_tool_task

from record import run
from steps import FORM


class Operations:
    def __init__(self, client):
        self.client = client

    async def list_tools(self):
        return await self.client.list_tools_mcp(cache_mode="refresh")

    async def call(self, tool, args):
        return await self.client.call_tool_mcp(tool, args)

    async def task(self, tool, args):
        started = await call_tool_task(self.client, tool, args, raise_on_error=False)
        result = await asyncio.wait_for(started.result(), 10)
        words = "".join(block.text for block in result.content)
        return {"text": words, "isError": result.is_error, "status": (await started.status()).status}

    async def cancel_task(self, tool, args):
        started = await call_tool_task(self.client, tool, args)
        await started.cancel()
        return (await started.wait(timeout=10)).status

    async def get_task(self, name):
        return await _send_get(self.client.session, name)


@asynccontextmanager
async def connect(target, transport, record):
    async def elicit(message, response_type, params, context):
        record.asked("elicitation/create", params)
        return ElicitResult(action="accept", content=FORM)

    server = StdioTransport(command=target[0], args=target[1:]) if transport == "stdio" else target
    async with Client(server, elicitation_handler=elicit) as client:
        yield client.session.protocol_version, Operations(client)


asyncio.run(run(connect))
