"""An agent that never stops to try: it calls a server by its own URL, holds a stream to it, and goes around its sidecar.

    leak.py URL TOOL FORBIDDEN PLACE...

Over and over, each time by a new connection: it calls TOOL at URL, which a policy allows; calls FORBIDDEN there; and at each PLACE
(`tcp HOST PORT` or `udp HOST PORT`) it says who it is. A line of its stdout is {"time", "call": outcome} when what came of TOOL changes,
{"time", "held": "open" | "ended"} for the stream, {"time", "tried": attempts so far} about each second. What arrived is for others to say.
"""

import http.client
import json
import socket
import sys
import threading
import time
from contextlib import suppress

from call import Agent

url, tool, forbidden, *places = sys.argv[1:]
lock, tried = threading.Lock(), 0


def say(**words):
    with lock:
        print(json.dumps({"time": time.time(), **words}), flush=True)


def forever(function, pause):
    def loop():
        global tried
        while True:
            with suppress(OSError, http.client.HTTPException, ValueError):
                function()
            tried += 1
            time.sleep(pause)

    threading.Thread(target=loop, daemon=True).start()


def fresh():
    agent = Agent(url)
    agent.connection.timeout = 3
    return agent


last = None


def call():
    global last
    agent = fresh()
    outcome = agent.call(tool, {})["outcome"]
    agent.connection.close()
    if outcome != last:
        say(call=outcome)
        last = outcome


def call_forbidden():
    agent = fresh()
    agent.call(forbidden, {})
    agent.connection.close()


def hold():
    agent = fresh()
    agent.initialize()
    agent.connection.sock.settimeout(None)
    agent.connection.request("GET", agent.path, headers={"accept": "text/event-stream", "mcp-session-id": agent.session or ""})
    response = agent.connection.getresponse()
    if response.status == 200:
        say(held="open")
        with suppress(OSError, http.client.HTTPException):
            while response.read1(65536):
                pass
        say(held="ended")
    agent.connection.close()


def knock(kind, host, port):
    if kind == "udp":
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(socket.gethostname().encode(), (host, int(port)))
        return
    with socket.create_connection((host, int(port)), 1) as sock:
        sock.sendall(socket.gethostname().encode())
        sock.settimeout(1)
        sock.recv(100)


forever(call, 0.01)
forever(call_forbidden, 0.05)
forever(hold, 0.05)
for place in places:
    forever(lambda place=place: knock(*place.split()), 0.02)
while True:
    time.sleep(1)
    say(tried=tried)
