"""What HTTP/1.1 and HTTP/2 have in common here."""

import asyncio
import contextlib
from dataclasses import dataclass


@dataclass
class Request:
    """A request that a server got; the names of its headers are in lower case."""

    method: str
    path: str
    headers: list
    body: bytes

    def header(self, name):
        """The values of a header."""
        return [value for field, value in self.headers if field == name]


class Incoming:
    """The response to a client's request: its head, and its body while it comes."""

    def __init__(self, status, headers, stop):
        self.status, self.headers = status, headers
        self.body = asyncio.StreamReader(limit=1 << 22)
        self._stop, self._task = stop, None

    def fed_by(self, feed):
        """Has a coroutine feed the body."""

        async def run():
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await feed
            self.body.feed_eof()

        self._task = asyncio.create_task(run())

    async def whole(self):
        """The whole body."""
        body = await self.body.read()
        self.close()
        return body

    async def block(self):
        """The next event of a stream, up to the blank line behind it."""
        return await self.body.readuntil(b"\n\n")

    def close(self):
        if self._task:
            self._task.cancel()
        self._stop()
