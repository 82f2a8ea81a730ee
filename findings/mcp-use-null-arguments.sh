#!/usr/bin/env bash
# mcp-use 1.7.1 (PyPI), the tools that its LangChainAdapter hands to an agent, and a server of PyPI mcp 1.30.0.
#
# A tool has one required and one optional parameter, a text. The agent gives the required one alone. The adapter builds a
# model of the tool's schema, and what was left out goes out as null. That is no text, so the server, which checks arguments
# by the same schema, answers that the input is not valid: the tool can be used only by an agent that fills in everything.
# Without the adapter the same call passes. And an amount that the agent gave as 5 goes out as 5.0.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check mcp-use==1.7.1 mcp==1.30.0

cat >"$work/server.py" <<'END'
import asyncio
import json

import mcp.server.stdio
from mcp.server import Server
from mcp.types import TextContent, Tool

server = Server("search")


@server.list_tools()
async def list_tools():
    properties = {"query": {"type": "string"}, "language": {"type": "string"}}
    amount = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}
    return [
        Tool(name="search", inputSchema={"type": "object", "properties": properties, "required": ["query"]}),
        Tool(name="pay", inputSchema=amount),
    ]


@server.call_tool()
async def call_tool(name, arguments):
    return [TextContent(type="text", text="got " + json.dumps(arguments))]


async def main():
    async with mcp.server.stdio.stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


asyncio.run(main())
END

cat >"$work/agent.py" <<'END'
import asyncio
import logging
import sys

from mcp_use import MCPClient
from mcp_use.agents.adapters import LangChainAdapter


async def main():
    logging.disable()
    client = MCPClient.from_dict({"mcpServers": {"search": {"command": sys.executable, "args": [sys.argv[1]]}}})
    tools = {tool.name: tool for tool in await LangChainAdapter().create_tools(client)}
    session = client.get_session("search")
    said = {
        "the adapter's tool, language left out": await tools["search"].ainvoke({"query": "bread"}),
        "the same call without the adapter": (await session.call_tool("search", {"query": "bread"})).content[0].text,
        "the adapter's tool, amount of 5": await tools["pay"].ainvoke({"amount": 5}),
    }
    for what, result in said.items():
        text = result["details"] if isinstance(result, dict) else result
        print(f"RESULT {what}: {str(text).splitlines()[0]}", flush=True)
    await client.close_all_sessions()


asyncio.run(main())
END

seen=$(MCP_USE_ANONYMIZED_TELEMETRY=false timeout 100 "$work/env/bin/python" "$work/agent.py" "$work/server.py" 2>/dev/null |
	sed -n 's/^RESULT //p')
wanted="the adapter's tool, language left out: Input validation error: None is not of type 'string'
the same call without the adapter: got {\"query\": \"bread\"}
the adapter's tool, amount of 5: got {\"amount\": 5.0}"
echo "$seen"
[ "$seen" = "$wanted" ] || { printf 'this has changed; it was:\n%s\n' "$wanted" >&2; exit 1; }
