"""Client of another language; see checks.py for the arguments. DRIVER: the command of a program that has the client, as a
JSON array. It is called with the target and says first {"protocol": VERSION}; then each line that it reads is one of
{"list": true} and {"call": TOOL, "args": {...}}, and it answers it with a line: {"tools": [NAMES]}, {"result": RESULT as on
the wire} or {"error": WHAT THE CLIENT THREW}.
"""

import asyncio
import json
import os

import checks


async def session(target, _transport, steps):
    program = await asyncio.create_subprocess_exec(
        *json.loads(os.environ["DRIVER"]), target, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )

    async def said():
        line = await program.stdout.readline()
        checks.expect(line, "the client's program has ended")
        answer = json.loads(line)
        checks.expect("error" not in answer, answer.get("error"))
        return answer

    async def ask(**request):
        program.stdin.write(json.dumps(request).encode() + b"\n")
        await program.stdin.drain()
        return await said()

    async def list_tools():
        return (await ask(list=True))["tools"]

    async def call_tool(name, args):
        return (await ask(call=name, args=args))["result"]

    await checks.run_steps((await said())["protocol"], steps, list_tools, call_tool)
    program.stdin.close()
    await asyncio.wait_for(program.wait(), 10)


if __name__ == "__main__":
    checks.main(session)
