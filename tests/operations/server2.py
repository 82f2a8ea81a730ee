"""A server of PyPI `mcp` 2.x, in both eras: `server2.py http PORT [HOST]` (Streamable HTTP at /mcp) or `server2.py stdio`. See server1.py.

In the era of 2026-07-28 its tools ask with an `input_required` result, and are called anew with the answers.
"""

import json
import sys
import warnings
from typing import Annotated

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, ListRoots, Resolve, Sample
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp_types import InputRequiredResult
from pydantic import BaseModel

# What is experimental or deprecated is tested all the same.
warnings.simplefilter("ignore")
server = MCPServer("operations", log_level="ERROR")

LANGUAGES, NOTES = ("python", "pyret", "rust"), ("apples", "apricots", "bread")
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
subscribed = set()


def modern(ctx):
    return ctx.protocol_version >= "2026"


def asked(text):
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=text))
    return [message]


def said(answer):
    return f"{answer.action} {json.dumps(answer.content)}"


def requested(request):
    return InputRequiredResult(input_requests={"it": request})


async def what_came_of(kind, work):
    try:
        return f"{kind}: {await work}"
    except MCPError as error:
        return f"{kind} failed: {error.error.message}"


@server.tool()
def greet(text: str) -> str:
    return f"Hello, {text}."


@server.tool()
def forbidden() -> str:
    return "forbidden is done."


@server.tool()
async def sample(text: str, ctx: Context) -> str | InputRequiredResult:
    if not modern(ctx):
        sampled = ctx.session.create_message(asked(text), max_tokens=100, related_request_id=ctx.request_id)
        return await what_came_of("sampling", content_of(sampled))
    if not ctx.input_responses:
        return requested(types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=asked(text), max_tokens=100)))
    return f"sampling: {ctx.input_responses['it'].content.text}"


async def content_of(sampled):
    return (await sampled).content.text


async def form(ctx):
    """What came of a form, or the result that asks for it."""
    if not modern(ctx):
        return await what_came_of("elicitation", said_by(ctx.session.elicit_form("Who are you?", FORM, ctx.request_id)))
    if not ctx.input_responses:
        params = types.ElicitRequestFormParams(message="Who are you?", requested_schema=FORM)
        return requested(types.ElicitRequest(params=params))
    return f"elicitation: {said(ctx.input_responses['it'])}"


async def said_by(work):
    return said(await work)


@server.tool()
async def ask_form(ctx: Context) -> str | InputRequiredResult:
    return await form(ctx)


@server.tool()
async def ask_url(ctx: Context) -> str | InputRequiredResult:
    if not modern(ctx):
        work = ctx.session.elicit_url("Please pay.", "https://pay.example/7", "pay-7", ctx.request_id)
        return await what_came_of("elicitation", said_by(work))
    if not ctx.input_responses:
        params = types.ElicitRequestURLParams(message="Please pay.", url="https://pay.example/7")
        return requested(types.ElicitRequest(params=params))
    return f"elicitation: {said(ctx.input_responses['it'])}"


@server.tool()
def ask_url_first() -> str:
    raise UrlElicitationRequiredError([types.ElicitRequestURLParams(message="Please pay.", url="https://pay.example/7", elicitation_id="pay-7")])


async def uris_of(listed):
    return " ".join(str(root.uri) for root in (await listed).roots)


@server.tool()
async def roots(ctx: Context) -> str | InputRequiredResult:
    if not modern(ctx):
        return await what_came_of("roots", uris_of(ctx.session.list_roots()))
    if not ctx.input_responses:
        return requested(types.ListRootsRequest())
    return "roots: " + " ".join(str(root.uri) for root in ctx.input_responses["it"].roots)


class Person(BaseModel):
    name: str


def sampled():
    return Sample(asked("all"), max_tokens=100)


def elicited():
    return Elicit("Who are you?", Person)


def listed():
    return ListRoots()


@server.tool()
def ask_all(
    answer: Annotated[types.CreateMessageResult, Resolve(sampled)],
    person: Annotated[Person, Resolve(elicited)],
    folders: Annotated[types.ListRootsResult, Resolve(listed)],
) -> str:
    # The SDK asks, in both eras, and passes on the error that it gets.
    return f"sampling: {answer.content.text}; elicitation: {person.name}; roots: {folders.roots[0].uri}"


@server.tool()
async def touch(uri: str, ctx: Context, everyone: bool = False) -> str:
    if modern(ctx):
        await ctx.notify_resource_updated(uri)
    elif everyone or uri in subscribed:
        await ctx.session.send_resource_updated(uri)
    return f"{uri} is touched."


@server.tool()
async def log(text: str, ctx: Context) -> str:
    await ctx.warning(text)
    return "It is logged."


@server.prompt()
def review(language: str) -> str:
    return f"Review this {language}."


@server.prompt()
def secret_review(language: str) -> str:
    return f"Review this {language}."


@server.prompt()
async def interview(ctx: Context) -> str | InputRequiredResult:
    return await form(ctx)


@server.resource("memo://open/a")
def open_memo() -> str:
    return "This is memo://open/a."


@server.resource("memo://secret/plan")
def secret_memo() -> str:
    return "This is memo://secret/plan."


@server.resource("memo://notes/{name}")
def note(name: str) -> str:
    return f"This is memo://notes/{name}."


@server.resource("memo://secret/{name}")
def secret_note(name: str) -> str:
    return f"This is memo://secret/{name}."


@server.completion()
async def complete(ref, argument, context):
    words = LANGUAGES if ref.type == "ref/prompt" else NOTES
    return types.Completion(values=[word for word in words if word.startswith(argument.value)])


# What only the legacy era has is not in the SDK's MCPServer.
async def subscribe(ctx, params):
    subscribed.add(params.uri)
    return types.EmptyResult()


async def unsubscribe(ctx, params):
    subscribed.discard(params.uri)
    return types.EmptyResult()


async def set_level(ctx, params):
    return types.EmptyResult()


lowlevel = server._lowlevel_server
lowlevel.add_request_handler("resources/subscribe", types.SubscribeRequestParams, subscribe)
lowlevel.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, unsubscribe)
lowlevel.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)

if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", host=(sys.argv[3:] or ["127.0.0.1"])[0], port=int(sys.argv[2]))
