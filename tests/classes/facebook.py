"""Prints the tools/list of the Facebook demo without serving it: facebook.py JUST_FACEBOOK LOG."""

import asyncio
import runpy
import sys

from mcp.server.mcpserver import MCPServer
from mcp.types import ListToolsResult


def print_tools(server: MCPServer, *_: object, **__: object) -> None:
    tools = asyncio.run(server.list_tools())
    print(ListToolsResult(tools=tools).model_dump_json(by_alias=True, exclude_none=True))


MCPServer.run = print_tools
program, log = sys.argv[1:]
sys.argv = [program, "0", log]
runpy.run_path(program, run_name="__main__")
