"""HTTP/2: a client with prior knowledge, and a server with TLS. h2 makes the frames; what is in them is this stage's."""

import asyncio
import contextlib

import h2.config
import h2.connection
import h2.events

from http_parts import Incoming, Request


class _Connection:
    """One connection; `on(event)` gets what h2 makes of its bytes."""

    def __init__(self, reader, writer, client, on):
        self.reader, self.writer, self.on = reader, writer, on
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.moved = asyncio.Event()
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 24)
        self.flush()

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    async def run(self):
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await self.reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self.on(event)
                self.flush()
                self.moved.set()
        self.on(None)
        self.writer.close()

    async def send(self, stream, data, end=False):
        """Sends data as fast as its receiver lets it."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if not room:
                self.moved.clear()
                await self.moved.wait()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
        if end:
            self.h2.end_stream(stream)
        self.flush()
        await self.writer.drain()


class Client:
    """Requests to a port, all on one connection."""

    def __init__(self, port):
        self.port, self.connection = port, None
        self.heads, self.incoming = {}, {}

    async def open(self, method, path, headers, body=b""):
        if not self.connection:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.connection = _Connection(reader, writer, True, self._on)
            self.task = asyncio.create_task(self.connection.run())
        stream = self.connection.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":authority", f"127.0.0.1:{self.port}"), (":path", path)]
        self.heads[stream] = asyncio.get_running_loop().create_future()
        fields += [(name.lower(), value) for name, value in headers]
        self.connection.h2.send_headers(stream, fields, end_stream=not body)
        self.connection.flush()
        if body:
            await self.connection.send(stream, body, end=True)
        return await self.heads[stream]

    def _on(self, event):
        if event is None:
            for head in self.heads.values():
                if not head.done():
                    head.set_exception(ConnectionError("the connection of HTTP/2 ended"))
            for incoming in self.incoming.values():
                incoming.body.feed_eof()
        elif isinstance(event, h2.events.ResponseReceived):
            status = int(dict(event.headers)[":status"])
            fields = [(name, value) for name, value in event.headers if name[0] != ":"]
            incoming = Incoming(status, fields, lambda: self._stop(event.stream_id))
            self.incoming[event.stream_id] = incoming
            self.heads.pop(event.stream_id).set_result(incoming)
        elif isinstance(event, h2.events.DataReceived):
            self.incoming[event.stream_id].body.feed_data(event.data)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            if incoming := self.incoming.pop(event.stream_id, None):
                incoming.body.feed_eof()
            elif head := self.heads.pop(event.stream_id, None):
                head.set_exception(ConnectionError("the stream was reset"))

    def _stop(self, stream):
        """Ends a stream that its server has not ended."""
        if self.incoming.pop(stream, None):
            self.connection.h2.reset_stream(stream, 8)
            self.connection.flush()

    async def close(self):
        if self.connection:
            self.connection.writer.close()
            await asyncio.wait([self.task], timeout=2)


class Reply:
    """The response on a stream."""

    def __init__(self, connection, stream):
        self.connection, self.stream = connection, stream

    async def whole(self, status, headers, body=b""):
        await self.begin(status, [*headers, ("content-length", str(len(body)))])
        await self.connection.send(self.stream, body, end=True)

    async def begin(self, status, headers):
        fields = [(":status", str(status)), *((name.lower(), value) for name, value in headers)]
        self.connection.h2.send_headers(self.stream, fields)
        self.connection.flush()

    async def write(self, piece):
        await self.connection.send(self.stream, piece)

    async def end(self):
        await self.connection.send(self.stream, b"", end=True)


async def serve(port, handle, tls):
    """Serves `handle(request, reply)`; the context of TLS offers h2 alone."""

    async def connection(reader, writer):
        requests, tasks = {}, {}

        def on(event):
            if isinstance(event, h2.events.RequestReceived):
                fields = dict(event.headers)
                headers = [(name, value) for name, value in event.headers if name[0] != ":"]
                requests[event.stream_id] = Request(fields[":method"], fields[":path"], headers, b"")
            elif isinstance(event, h2.events.DataReceived):
                requests[event.stream_id].body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                request = requests.pop(event.stream_id)
                tasks[event.stream_id] = asyncio.create_task(handle(request, Reply(one, event.stream_id)))
            elif isinstance(event, h2.events.StreamReset) and event.stream_id in tasks:
                tasks[event.stream_id].cancel()
            elif event is None:
                for task in tasks.values():
                    task.cancel()

        one = _Connection(reader, writer, False, on)
        await one.run()

    return await asyncio.start_server(connection, "127.0.0.1", port, ssl=tls, backlog=1024)
