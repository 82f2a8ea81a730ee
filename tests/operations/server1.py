"""A server of PyPI `mcp` 1.x that asks its client for all that MCP lets a server ask, and serves prompts, resources and tasks:
`server1.py http PORT` (Streamable HTTP at /mcp, HTTP+SSE at /sse) or `server1.py stdio`. server2.py and server*.mjs have the same tools.

A tool that asks returns what it got, or the text of the error that it got instead.
"""

import asyncio
import contextlib
import json
import sys
import time
import warnings

import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import McpError, UrlElicitationRequiredError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

# What is experimental or deprecated is tested all the same.
warnings.simplefilter("ignore")
server = Server("operations")
server.experimental.enable_tasks()

LANGUAGES, NOTES = ("python", "pyret", "rust"), ("apples", "apricots", "bread")
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
PAY = {"mode": "url", "message": "Please pay.", "url": "https://pay.example/7", "elicitationId": "pay-7"}
URI = {"type": "object", "properties": {"uri": {"type": "string"}, "everyone": {"type": "boolean"}}}
NOTHING = {"type": "object"}
TOOLS = {
    "greet": TEXT, "forbidden": NOTHING, "sample": TEXT, "ask_form": NOTHING, "ask_url": NOTHING, "ask_url_first": NOTHING,
    "roots": NOTHING, "ask_all": NOTHING, "touch": URI, "log": TEXT, "slow": TEXT, "slow_ask": NOTHING,
}
subscribed = set()


def request():
    return server.request_context


async def what_came_of(kind, work):
    try:
        return f"{kind}: {await work}"
    except McpError as error:
        return f"{kind} failed: {error.error.message}"


async def sample(text):
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=text))
    answer = await request().session.create_message([message], max_tokens=100, related_request_id=request().request_id)
    return answer.content.text


def said(answer):
    return f"{answer.action} {json.dumps(answer.content)}"


async def ask_form():
    return said(await request().session.elicit_form("Who are you?", FORM, request().request_id))


async def ask_url():
    return said(await request().session.elicit_url(PAY["message"], PAY["url"], PAY["elicitationId"], request().request_id))


async def roots():
    # This SDK sends it on the GET stream: there is no way to name the call that it belongs to.
    return " ".join(str(root.uri) for root in (await request().session.list_roots()).roots)


@server.list_tools()
async def list_tools():
    execution = types.ToolExecution(taskSupport="optional")
    return [
        types.Tool(name=name, inputSchema=schema, execution=execution if name.startswith("slow") or name == "forbidden" else None)
        for name, schema in TOOLS.items()
    ]


@server.call_tool()
async def call_tool(name, arguments):
    if request().experimental.is_task:
        return await request().experimental.run_task(lambda task: run_task(task, name, arguments))
    return [types.TextContent(type="text", text=await run_tool(name, arguments))]


async def run_tool(name, arguments):
    match name:
        case "greet":
            return f"Hello, {arguments['text']}."
        case "sample":
            return await what_came_of("sampling", sample(arguments["text"]))
        case "ask_form":
            return await what_came_of("elicitation", ask_form())
        case "ask_url":
            return await what_came_of("elicitation", ask_url())
        case "ask_url_first":
            raise UrlElicitationRequiredError([types.ElicitRequestURLParams(**PAY)])
        case "roots":
            return await what_came_of("roots", roots())
        case "ask_all":
            work = [what_came_of("sampling", sample("all")), what_came_of("elicitation", ask_form()), what_came_of("roots", roots())]
            return "; ".join(await asyncio.gather(*work))
        case "touch":
            uri = arguments["uri"]
            # A server may tell of what nobody has subscribed to.
            if arguments.get("everyone") or (id(request().session), uri) in subscribed:
                await request().session.send_resource_updated(uri)
            return f"{uri} is touched."
        case "log":
            await request().session.send_log_message("warning", arguments["text"], related_request_id=request().request_id)
            return "It is logged."
        case _:
            return f"{name} is done."


async def run_task(task, name, arguments):
    if name == "slow_ask":
        text = await what_came_of("elicitation", ask_in(task))
    else:
        await task.update_status("halfway")
        await pause(task, float(arguments.get("text", 0.1)))
        text = f"{name} is done."
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


async def pause(task, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(0.02)
        if (await server.experimental.task_support.store.get_task(task.task_id)).status == "cancelled":
            # The SDK tells nobody. However the work of a cancelled task ends, it ends the session.
            await asyncio.Event().wait()


async def ask_in(task):
    return said(await task.elicit("Who are you?", FORM))


@server.list_prompts()
async def list_prompts():
    arguments = [types.PromptArgument(name="language", required=True)]
    prompts = [types.Prompt(name=name, arguments=arguments) for name in ("review", "secret_review")]
    return [*prompts, types.Prompt(name="interview")]


@server.get_prompt()
async def get_prompt(name, arguments):
    text = await what_came_of("elicitation", ask_form()) if name == "interview" else f"Review this {arguments['language']}."
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))])


@server.list_resources()
async def list_resources():
    return [types.Resource(name=uri, uri=uri) for uri in ("memo://open/a", "memo://secret/plan")]


@server.list_resource_templates()
async def list_templates():
    return [types.ResourceTemplate(name=kind, uriTemplate=f"memo://{kind}/{{name}}") for kind in ("notes", "secret")]


@server.read_resource()
async def read_resource(uri):
    return [ReadResourceContents(content=f"This is {uri}.", mime_type="text/plain")]


@server.subscribe_resource()
async def subscribe(uri):
    subscribed.add((id(request().session), str(uri)))


@server.unsubscribe_resource()
async def unsubscribe(uri):
    subscribed.discard((id(request().session), str(uri)))


@server.set_logging_level()
async def set_level(level):
    pass


@server.completion()
async def complete(ref, argument, context):
    words = LANGUAGES if ref.type == "ref/prompt" else NOTES
    return types.Completion(values=[word for word in words if word.startswith(argument.value)])


async def serve_stdio():
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http(port):
    manager, sse = StreamableHTTPSessionManager(server), SseServerTransport("/messages/")

    async def events(incoming):
        async with sse.connect_sse(incoming.scope, incoming.receive, incoming._send) as (read, write):
            await server.run(read, write, server.create_initialization_options())
        return Response()

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with manager.run():
            yield

    class Streamable:
        async def __call__(self, scope, receive, send):
            await manager.handle_request(scope, receive, send)

    routes = [Route("/mcp", Streamable()), Route("/sse", events), Mount("/messages/", app=sse.handle_post_message)]
    uvicorn.run(Starlette(routes=routes, lifespan=lifespan), port=port, log_level="warning")


if sys.argv[1] == "stdio":
    asyncio.run(serve_stdio())
else:
    serve_http(int(sys.argv[2]))
