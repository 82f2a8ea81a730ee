"""A small server of both eras: `fastmcp_server.py http PORT [PAGE]` or `fastmcp_server.py stdio`. PAGE: how many tools a page
of its list has; those that no client may call come first."""

import sys

from fastmcp import FastMCP

page = int(sys.argv[3]) if len(sys.argv) > 3 else None
server = FastMCP("matrix", list_page_size=page)


@server.tool
def delete_everything() -> str:
    return "Everything is gone."


@server.tool
def read_secret() -> str:
    return "hunter2"


@server.tool
def echo(message: str) -> str:
    return f"Echo: {message}"


@server.tool
def add(a: int, b: int) -> int:
    return a + b


if sys.argv[1] == "http":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), path="/mcp", show_banner=False)
else:
    server.run(transport="stdio", show_banner=False)
