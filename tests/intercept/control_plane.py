"""As much of an operator as one sidecar needs, on loopback without TLS: `control_plane.py PORT FOLDER`.

FOLDER/snapshot.json, a line of the policy stream, is sent at once and whenever it changes. What the sidecar says is in FOLDER/reports, a line
of JSON each. CONTRIBUTING.md says where the real one is tested.
"""

import asyncio
import sys
from pathlib import Path

import h2.config
import h2.connection
import h2.events

PORT, DIR = int(sys.argv[1]), Path(sys.argv[2])
KEEP_ALIVE = 5


class Stream(asyncio.Protocol):
    def __init__(self):
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.held, self.task = b"", None

    def connection_made(self, transport):
        self.transport = transport
        self.http.initiate_connection()
        self.flush()

    def connection_lost(self, _):
        if self.task:
            self.task.cancel()

    def flush(self):
        self.transport.write(self.http.data_to_send())

    def data_received(self, data):
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.http.send_headers(event.stream_id, [(":status", "200")])
                self.task = asyncio.create_task(self.send(event.stream_id))
            elif isinstance(event, h2.events.DataReceived):
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                *lines, self.held = (self.held + event.data).split(b"\n")
                with open(DIR / "reports", "ab") as file:
                    file.writelines(line + b"\n" for line in lines)
        self.flush()

    async def send(self, stream):
        await self.say(stream, b'{"sharedStore": null}')
        sent, silent = None, 0.0
        while True:
            line = (DIR / "snapshot.json").read_bytes()
            if line != sent or silent > KEEP_ALIVE:
                await self.say(stream, b'"keepAlive"' if line == sent else line)
                sent, silent = line, 0.0
            await asyncio.sleep(0.02)
            silent += 0.02

    async def say(self, stream, line):
        rest = line + b"\n"
        while rest:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if room > 0:
                self.http.send_data(stream, rest[:room])
                self.flush()
                rest = rest[room:]
            else:
                await asyncio.sleep(0.01)


async def main():
    await asyncio.get_running_loop().create_server(Stream, "127.0.0.1", PORT)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
