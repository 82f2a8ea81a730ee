"""A client of the SDK: lists the tools of a server and calls one; what it saw is a line of JSON.

    sdk.py SERVER TOOL ARGUMENTS
"""

import asyncio
import json
import sys

from mcp import Client


async def main(server, tool, arguments):
    async with Client(f"http://127.0.0.1:15001/{server}") as client:
        names, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            names += [listed.name for listed in page.tools]
            if not (cursor := page.next_cursor):
                break
        result = await client.call_tool(tool, json.loads(arguments))
        text = "".join(getattr(block, "text", "") for block in result.content)
        denial = (result.meta or {}).get("toolweir.dev/denial")
        print(json.dumps({"tools": sorted(names), "failed": bool(result.is_error), "text": text, "denial": denial}))


asyncio.run(main(*sys.argv[1:]))
