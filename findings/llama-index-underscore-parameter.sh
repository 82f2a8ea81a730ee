#!/usr/bin/env bash
# llama-index-tools-mcp 0.6.0 (PyPI), and a server of PyPI mcp 2.3.0.
#
# A server has two tools. One has an optional parameter whose name begins with an underscore, as JSON Schema and MCP allow.
# The library makes a pydantic model of each tool's parameters, and pydantic takes such a field for a private one. The error is
# not that of the one tool: no tool of the server can be had, neither the other one. A policy (or allowed_tools) that leaves
# the one tool out of the list brings the rest back.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check llama-index-tools-mcp==0.6.0 mcp==2.3.0 pydantic==2.14.4

cat >"$work/server.py" <<'END'
import asyncio

from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool


async def list_tools(context, params):
    def tool(name, parameter):
        return Tool(name=name, input_schema={"type": "object", "properties": {parameter: {"type": "string"}}})

    return ListToolsResult(tools=[tool("weather", "town"), tool("export", "_format")])


async def call_tool(context, params):
    return CallToolResult(content=[TextContent(type="text", text=f"{params.name} got {params.arguments}")])


async def main():
    server = Server("two tools", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


asyncio.run(main())
END

cat >"$work/agent.py" <<'END'
import asyncio
import sys

from llama_index.tools.mcp import BasicMCPClient, McpToolSpec


async def main():
    client = BasicMCPClient(sys.executable, args=[sys.argv[1]])
    print("RESULT the server's list:", [tool.name for tool in (await client.list_tools()).tools])
    try:
        print("RESULT all tools:", [tool.metadata.name for tool in await McpToolSpec(client).to_tool_list_async()])
    except Exception as error:
        print(f"RESULT all tools: {type(error).__name__}: {str(error).splitlines()[0]}")
    spec = McpToolSpec(client, allowed_tools=["weather"])
    print("RESULT weather alone:", [tool.metadata.name for tool in await spec.to_tool_list_async()])
    called = await client.call_tool("export", {"_format": "csv"})
    print("RESULT the parameter itself:", called.content[0].text)


asyncio.run(main())
END

seen=$(timeout 100 "$work/env/bin/python" "$work/agent.py" "$work/server.py" 2>/dev/null | sed -n 's/^RESULT //p')
wanted="the server's list: ['weather', 'export']
all tools: PydanticUserError: Fields must not use names with leading underscores; e.g., use 'format' instead of '_format'.
weather alone: ['weather']
the parameter itself: export got {'_format': 'csv'}"
echo "$seen"
[ "$seen" = "$wanted" ] || { printf 'this has changed; it was:\n%s\n' "$wanted" >&2; exit 1; }
