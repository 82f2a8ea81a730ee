"""A client of PyPI `mcp` 2.x; record.py says how it is called. MCP_MODE: auto or legacy."""

import asyncio
import os
import warnings
from contextlib import AsyncExitStack, asynccontextmanager

import mcp_types as types
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client

from record import run
from steps import FORM, ROOT, SAMPLED

warnings.simplefilter("ignore")


class Operations:
    def __init__(self, client, record, stack):
        self.client, self.record, self.stack = client, record, stack
        self.listening = {}
        self.call, self.get_prompt, self.set_level = client.call_tool, client.get_prompt, client.set_logging_level

    # The client keeps what it got; all of it must come through the sidecar.
    async def list_tools(self):
        return await self.client.list_tools(cache_mode="refresh")

    async def list_prompts(self):
        return await self.client.list_prompts(cache_mode="refresh")

    async def list_resources(self):
        return await self.client.list_resources(cache_mode="refresh")

    async def list_templates(self):
        return await self.client.list_resource_templates(cache_mode="refresh")

    async def read(self, uri):
        return await self.client.read_resource(uri, cache_mode="refresh")

    async def complete(self, ref, argument, value):
        kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self.client.complete(kind(**ref), {"name": argument, "value": value})

    async def subscribe(self, uri):
        if self.client.protocol_version < "2026":
            return await self.client.subscribe_resource(uri)
        opened = AsyncExitStack()
        subscription = await opened.enter_async_context(self.client.listen(resource_subscriptions=[uri]))
        self.listening[uri] = opened
        return subscription.honored

    async def unsubscribe(self, uri):
        if self.client.protocol_version < "2026":
            return await self.client.unsubscribe_resource(uri)
        # One that was denied was never open.
        if opened := self.listening.pop(uri, None):
            await opened.aclose()


@asynccontextmanager
async def connect(target, transport, record):
    async def sample(_, params):
        record.asked("sampling/createMessage", params)
        return types.CreateMessageResult(role="assistant", content=types.TextContent(type="text", text=SAMPLED), model="none")

    async def elicit(_, params):
        record.asked("elicitation/create", params)
        return types.ElicitResult(action="accept", content=FORM if params.mode == "form" else None)

    async def roots(_):
        record.asked("roots/list", None)
        return types.ListRootsResult(roots=[types.Root(uri=ROOT)])

    async def message(message):
        if not isinstance(message, Exception):
            record.told(message.method, message.params)

    server = {
        "http": lambda: target,
        "sse": lambda: sse_client(target),
        "stdio": lambda: StdioServerParameters(command=target[0], args=target[1:]),
    }[transport]()
    handlers = {"sampling_callback": sample, "elicitation_callback": elicit, "list_roots_callback": roots, "message_handler": message}
    async with AsyncExitStack() as stack, Client(server, mode=os.environ["MCP_MODE"], log_level="info", **handlers) as client:
        yield client.protocol_version, Operations(client, record, stack)


asyncio.run(run(connect))
