"""What the clients of the Python SDKs share: each is called as `client.py TARGET TRANSPORT STEPS` (TARGET: a URL, or for `stdio` a command as a JSON
array; STEPS: what steps.py has, as JSON), takes the steps in one session, and prints the record of it as one line. record.mjs is its twin.
"""

import asyncio
import json
import sys
import traceback

SECONDS = 20


def plain(value):
    """As on the wire."""
    return value.model_dump(by_alias=True, mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


class Record:
    def __init__(self):
        self.steps, self.events, self.arrived = {}, [], asyncio.Event()

    def asked(self, method, params):
        """The server has asked for something."""
        self.events.append({"asked": method, "params": plain(params)})

    def told(self, method, params):
        """The server has sent a notification."""
        self.events.append({"told": method, "params": plain(params)})
        self.arrived.set()

    async def notified(self, count):
        while sum("told" in event for event in self.events) < count:
            self.arrived.clear()
            await self.arrived.wait()

    async def take(self, step, operations):
        self.events = []
        try:
            result = await asyncio.wait_for(getattr(operations, step["op"])(*step["args"]), SECONDS)
            outcome = {"result": plain(result)}
        except Exception as error:
            while getattr(error, "exceptions", None):
                error = error.exceptions[0]
            known = getattr(error, "error", None)
            outcome = {"error": getattr(known, "code", None) or type(error).__name__, "message": str(error)}
            if getattr(known, "data", None) is not None:
                outcome["data"] = plain(known.data)
        try:
            await asyncio.wait_for(self.notified(step["events"]), step["patience"])
        except TimeoutError:
            pass
        self.steps[step["name"]] = outcome | {"events": self.events}


async def run(connect):
    """`connect(target, transport, record)`: a context manager that gives the version and the operations."""
    target, transport, steps = sys.argv[1:]
    record = Record()
    try:
        async with connect(json.loads(target) if transport == "stdio" else target, transport, record) as (protocol, operations):
            era = "modern" if protocol >= "2026" else "legacy"
            for step in json.loads(steps):
                if era in step["eras"]:
                    await record.take(step, operations)
        ended = None
    except Exception as error:
        traceback.print_exc()
        ended = repr(error)
    print(json.dumps({"protocol": protocol if record.steps else None, "steps": record.steps, "ended": ended}), flush=True)
