"""A server of PyPI `fastmcp` with its tasks of 2026-07-28 (SEP-2663): `server_tasks.py http PORT` or `server_tasks.py stdio`.

The result of its `tasks/get` holds what a task asks the client, which answers with `tasks/update`.
"""

import asyncio
import json
import sys

import mcp_types as types
from fastmcp import Context, FastMCP
from fastmcp_tasks import TasksExtension
from mcp_types import InputRequiredResult

server = FastMCP("operations")
server.add_extension(TasksExtension())
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@server.tool
def greet(text: str) -> str:
    return f"Hello, {text}."


@server.tool(task=True)
async def slow(text: str) -> str:
    await asyncio.sleep(float(text))
    return "slow is done."


@server.tool(task=True)
async def forbidden() -> str:
    return "forbidden is done."


@server.tool(task=True)
async def slow_ask(ctx: Context) -> str | InputRequiredResult:
    if not ctx.input_responses:
        params = types.ElicitRequestFormParams(message="Who are you?", requested_schema=FORM)
        return InputRequiredResult(input_requests={"it": types.ElicitRequest(params=params)})
    answer = ctx.input_responses["it"]
    return f"elicitation: {answer.action} {json.dumps(answer.content)}"


if sys.argv[1] == "http":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), path="/mcp", show_banner=False, log_level="error")
else:
    server.run(transport="stdio", show_banner=False)
