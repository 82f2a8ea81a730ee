"""What the programs of the Python SDKs share. Each is called as `agent.py TARGET TRANSPORT`: a URL with `http` or `sse`, or for `stdio` a command as
a JSON array. It says first `{"protocol": VERSION}`. Then each line that it reads is `{"id": N, "call": TOOL, "args": {...}}`, which it answers as soon
as it can, in any order, with `{"id": N, "result": RESULT as on the wire}` or `{"id": N, "error": what the SDK threw}`. agent.mjs is their twin.
"""

import asyncio
import json
import sys


def target():
    return (json.loads(sys.argv[1]) if sys.argv[2] == "stdio" else sys.argv[1]), sys.argv[2]


def say(**words):
    print(json.dumps(words), flush=True)


async def serve(protocol, call_tool):
    say(protocol=protocol)
    lines = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def respond(request):
        try:
            say(id=request["id"], result=(await call_tool(request["call"], request["args"])).model_dump(by_alias=True, mode="json"))
        except Exception as error:
            say(id=request["id"], error=repr(error))

    async with asyncio.TaskGroup() as tasks:
        async for line in lines:
            tasks.create_task(respond(json.loads(line)))
