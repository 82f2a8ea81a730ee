"""A small server of both eras: `fastmcp_server.py http PORT` or `fastmcp_server.py stdio`."""

import sys

from fastmcp import FastMCP

server = FastMCP("matrix")


@server.tool
def echo(message: str) -> str:
    return f"Echo: {message}"


@server.tool
def add(a: int, b: int) -> int:
    return a + b


@server.tool
def delete_everything() -> str:
    return "Everything is gone."


@server.tool
def read_secret() -> str:
    return "hunter2"


if sys.argv[1] == "http":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), path="/mcp", show_banner=False)
else:
    server.run(transport="stdio", show_banner=False)
