"""Clients of the Python frameworks that bring MCP tools to agents; see checks.py for the arguments. FRAMEWORK: which.

No model is asked. A tool is called through the object that the framework hands to an agent, where it has one; what comes back
are `words`, with `isError` where the framework tells an error from an answer.
"""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import checks


def told(words, is_error=False):
    return {"words": str(words), "isError": is_error}


def plain(name):
    """The name as a framework shows it that makes a Python function of each tool."""
    return name.replace("-", "_")


@asynccontextmanager
async def langchain(url):
    from langchain_mcp_adapters.client import MultiServerMCPClient

    client = MultiServerMCPClient({"server": {"transport": "http", "url": url}})
    tools = {}

    async def list_tools():
        tools.update({tool.name: tool for tool in await client.get_tools()})
        return list(tools)

    async def call_tool(name, args):
        message = await tools[name].ainvoke({"type": "tool_call", "id": "1", "name": name, "args": args})
        return told(message.text, message.status == "error")

    yield list_tools, call_tool


@asynccontextmanager
async def mcp_use(url):
    from mcp_use import MCPClient

    client = MCPClient.from_dict({"mcpServers": {"server": {"url": url}}})
    session = await client.create_session("server")

    async def list_tools():
        return [tool.name for tool in await session.list_tools()]

    async def call_tool(name, args):
        return (await session.call_tool(name, args)).model_dump(by_alias=True)

    yield list_tools, call_tool
    await client.close_all_sessions()


@asynccontextmanager
async def haystack(url):
    from haystack.tools.errors import ToolInvocationError
    from haystack_integrations.tools.mcp import MCPToolset, StreamableHttpServerInfo

    toolsets, tools = [], {}

    def load():
        toolset = MCPToolset(StreamableHttpServerInfo(url=url))
        toolset.warm_up()
        toolsets.append(toolset)
        return {tool.name: tool for tool in toolset}

    async def list_tools():
        loaded = await asyncio.to_thread(load)
        tools.clear()
        tools.update(loaded)
        return list(tools)

    async def call_tool(name, args):
        try:
            said = await asyncio.to_thread(tools[name].invoke, **args)
        except ToolInvocationError as error:
            return told(error, True)
        # It hands the whole result to the model, as JSON.
        return told("".join(item["text"] for item in json.loads(said)["content"]))

    yield list_tools, call_tool
    for toolset in toolsets:
        await asyncio.to_thread(toolset.close)


@asynccontextmanager
async def smolagents(url):
    from smolagents import MCPClient

    clients, tools = [], {}

    async def list_tools():
        clients.append(await asyncio.to_thread(MCPClient, {"url": url, "transport": "streamable-http"}, None, False))
        tools.update({tool.name: tool for tool in clients[-1].get_tools()})
        return [tool.name for tool in clients[-1].get_tools()]

    async def call_tool(name, args):
        said = await asyncio.to_thread(lambda: tools[plain(name)](**args))
        return {"words": str(said)}

    yield list_tools, call_tool
    for client in clients:
        await asyncio.to_thread(client.disconnect)


@asynccontextmanager
async def openai_agents(url):
    from agents.mcp import MCPServerStreamableHttp

    async with MCPServerStreamableHttp(params={"url": url}, client_session_timeout_seconds=20) as server:

        async def list_tools():
            return [tool.name for tool in await server.list_tools()]

        async def call_tool(name, args):
            return (await server.call_tool(name, args)).model_dump(by_alias=True)

        yield list_tools, call_tool


@asynccontextmanager
async def google_adk(url):
    from google.adk.tools.mcp_tool import McpToolset, StreamableHTTPConnectionParams

    toolset = McpToolset(connection_params=StreamableHTTPConnectionParams(url=url))
    tools = {}

    async def list_tools():
        listed = await toolset.get_tools()
        tools.update({tool.name: tool for tool in listed})
        return [tool.name for tool in listed]

    async def call_tool(name, args):
        said = await tools[name].run_async(args=args, tool_context=None)
        if "error" in said:
            return told(said["error"], True)
        return told("".join(item["text"] for item in said["content"]), said["isError"])

    yield list_tools, call_tool
    await toolset.close()


@asynccontextmanager
async def pydantic_ai(url):
    from pydantic_ai import ModelRetry
    from pydantic_ai.mcp import MCPToolset

    async with MCPToolset(url) as toolset:

        async def list_tools():
            return [tool.name for tool in await toolset.list_tools()]

        async def call_tool(name, args):
            try:
                return told(await toolset.direct_call_tool(name, args))
            except ModelRetry as error:
                return told(error, True)

        yield list_tools, call_tool


@asynccontextmanager
async def fastmcp(url):
    from fastmcp import Client

    async with Client(url) as client:

        async def list_tools():
            return [tool.name for tool in await client.list_tools()]

        async def call_tool(name, args):
            return (await client.call_tool_mcp(name, args)).model_dump(by_alias=True)

        yield list_tools, call_tool


@asynccontextmanager
async def llama_index(url):
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    spec = McpToolSpec(BasicMCPClient(url))
    tools = {}

    async def list_tools():
        listed = await spec.to_tool_list_async()
        tools.update({tool.metadata.name: tool for tool in listed})
        return [tool.metadata.name for tool in listed]

    async def call_tool(name, args):
        return (await tools[name].acall(**args)).raw_output.model_dump(by_alias=True)

    yield list_tools, call_tool


async def session(target, _transport, steps):
    if os.environ["FRAMEWORK"] == "smolagents":
        for step in steps:
            for names in step.get("list", {}).values():
                names[:] = map(plain, names)
    async with globals()[os.environ["FRAMEWORK"].replace("-", "_")](target) as (list_tools, call_tool):
        # None of them says which version was agreed on.
        await checks.run_steps(None, steps, list_tools, call_tool)


if __name__ == "__main__":
    checks.main(session)
