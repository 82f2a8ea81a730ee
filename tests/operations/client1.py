"""A client of PyPI `mcp` 1.x; record.py says how it is called."""

import asyncio
import warnings
from contextlib import asynccontextmanager

from mcp import ClientSession, StdioServerParameters, types
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl

from record import run
from steps import FORM, ROOT, SAMPLED

warnings.simplefilter("ignore")


class Operations:
    def __init__(self, session, record):
        self.session, self.record = session, record
        self.list_tools, self.list_prompts = session.list_tools, session.list_prompts
        self.list_resources, self.list_templates = session.list_resources, session.list_resource_templates
        self.call, self.get_prompt, self.set_level = session.call_tool, session.get_prompt, session.set_logging_level
        self.list_tasks, self.get_task = session.experimental.list_tasks, session.experimental.get_task

    async def complete(self, ref, argument, value):
        kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self.session.complete(kind(**ref), {"name": argument, "value": value})

    async def read(self, uri):
        return await self.session.read_resource(AnyUrl(uri))

    async def subscribe(self, uri):
        return await self.session.subscribe_resource(AnyUrl(uri))

    async def unsubscribe(self, uri):
        return await self.session.unsubscribe_resource(AnyUrl(uri))

    async def task(self, tool, args):
        tasks = self.session.experimental
        started = await tasks.call_tool_as_task(tool, args)
        await tasks.get_task(started.task.taskId)
        # A task that asks goes on only while its result is waited for.
        result = await tasks.get_task_result(started.task.taskId, types.CallToolResult)
        ended = await tasks.get_task(started.task.taskId)
        return {"result": result.model_dump(by_alias=True, mode="json", exclude_none=True), "status": ended.status}

    async def cancel_task(self, tool, args):
        started = await self.session.experimental.call_tool_as_task(tool, args)
        return await self.session.experimental.cancel_task(started.task.taskId)


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
        # A task's status may be told or not by the time that its step ends.
        if isinstance(message, types.ServerNotification) and message.root.method != "notifications/tasks/status":
            record.told(message.root.method, message.root.params)

    if transport == "stdio":
        opened = stdio_client(StdioServerParameters(command=target[0], args=target[1:]))
    else:
        opened = {"http": streamable_http_client, "sse": sse_client}[transport](target)
    handlers = {"sampling_callback": sample, "elicitation_callback": elicit, "list_roots_callback": roots, "message_handler": message}
    async with opened as (read, write, *_), ClientSession(read, write, **handlers) as session:
        protocol = (await session.initialize()).protocolVersion
        yield protocol, Operations(session, record)


asyncio.run(run(connect))
