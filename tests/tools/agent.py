"""An agent, as far as a policy can see one: a client of the official SDK that lists tools and calls them."""

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client


def connect(target, log):
    """A client for a command (a list), whose messages go to the file `log`, or for a URL."""
    if isinstance(target, str):
        return Client(target, mode="auto")
    return Client(stdio_client(StdioServerParameters(command=target[0], args=target[1:]), errlog=log), mode="auto")


async def pages(client):
    """All tools, page by page."""
    tools, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        if not (cursor := page.next_cursor):
            return tools


async def listed(target, log):
    """The definitions of all tools, as on the wire."""
    async with connect(target, log) as client:
        return [tool.model_dump(by_alias=True, exclude_none=True) for tool in await pages(client)]


def told(result):
    """What an agent is told: whether the call failed, the text, and the sidecar's words about a denial."""
    text = "".join(getattr(block, "text", "") for block in result.content)
    return bool(result.is_error), text, (result.meta or {}).get("toolweir.dev/denial", {})


async def call_all(target, log, calls, denied):
    """The tools that an agent sees; what became of these calls, and then of those of `denied`."""
    async with connect(target, log) as client:
        names = [tool.name for tool in await pages(client)]
        answers = [told(await client.call_tool(tool, arguments)) for tool, arguments, _ in calls]
        return names, answers, {tool: told(await client.call_tool(tool, arguments)) for tool, arguments in denied.items()}


async def call_often(target, log, tool, arguments, count):
    """Which of so many equal calls failed, in order, and the reasons of those that did."""
    async with connect(target, log) as client:
        answers = [told(await client.call_tool(tool, arguments)) for _ in range(count)]
        return [failed for failed, _, _ in answers], {denial.get("reason") for failed, _, denial in answers if failed}
