"""A server of MCP that records every message byte for byte, and says what it is told to say."""

import asyncio
import json
from dataclasses import dataclass

JSON, EVENT, STREAM = "JSON", "event", "stream"


def event(body, number=None):
    """A message as one event; with a number also what a stream needs to be resumed."""
    start = "" if number is None else f"id: {number}\nretry: 1500\n"
    return f"{start}event: message\ndata: ".encode() + body + b"\n\n"


@dataclass
class Plan:
    """What answers a request: these bytes, in this form. In the form `STREAM`, a stream that stays open."""

    form: str
    body: bytes = b""


class Stream:
    """An open stream of the server, on which it says what it likes."""

    def __init__(self, reply, request):
        self.reply, self.request = reply, request
        self.ended = asyncio.Event()

    async def say(self, piece):
        await self.reply.write(piece)

    def end(self):
        self.ended.set()


class Server:
    """Over HTTP, with one stream for each GET; `legacy`: HTTP+SSE, whose answers come on the stream."""

    def __init__(self, legacy=False):
        self.legacy = legacy
        self.arrived, self.opened = asyncio.Queue(), asyncio.Queue()
        self.plans, self.streams = {}, []

    def will(self, identifier, plan):
        """Has the request of this id answered so."""
        self.plans[json.dumps(identifier)] = plan

    def plan_for(self, body):
        """What answers a message: nothing, if it is no request. One that nobody expects gets an error."""
        message = json.loads(body)
        if "method" not in message or "id" not in message:
            return None
        unexpected = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32000, "message": "nobody expects this"}}
        return self.plans.pop(json.dumps(message["id"]), Plan(JSON, json.dumps(unexpected).encode()))

    async def handle(self, request, reply):
        if request.method == "GET":
            await self._stream(request, reply)
        elif request.method == "POST":
            self.arrived.put_nowait(request)
            await self._answer(request, reply)
        else:
            await reply.whole(405, [])

    async def _answer(self, request, reply):
        plan = self.plan_for(request.body)
        if plan is None:
            await reply.whole(202, [])
        elif self.legacy:
            await reply.whole(202, [])
            await self.streams[int(request.path.split("=")[1])].say(event(plan.body))
        elif plan.form == JSON:
            await reply.whole(200, [("Content-Type", "application/json")], plan.body)
        elif plan.form == EVENT:
            await reply.begin(200, [("Content-Type", "text/event-stream")])
            await reply.write(event(plan.body))
            await reply.end()
        else:
            await self._stream(request, reply)

    async def _stream(self, request, reply):
        await reply.begin(200, [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
        stream = Stream(reply, request)
        if self.legacy:
            await stream.say(b"event: endpoint\ndata: /messages?stream=%d\n\n" % len(self.streams))
            self.streams.append(stream)
        self.opened.put_nowait(stream)
        await stream.ended.wait()
        await reply.end()
