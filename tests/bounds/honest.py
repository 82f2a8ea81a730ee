"""An honest client beside the attackers: sends requests in a process of its own and reports how long the answers took.

    honest.py WHAT...      each of: call:PORT (a tools/call), get:PORT/PATH (200 is right), review:PORT:FILE:CA:NAME:N (a POST of
                           the file to an admission webhook, over TLS, at every Nth turn)

It asks in turn, each on a new connection and on one that is kept, until stdin ends; then it prints what was seen, as JSON.
"""

import http.client
import json
import socket
import ssl
import sys
import threading
import time

PAUSE, PATIENCE = 0.05, 30
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"small","arguments":{}}}'
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


class ByName(http.client.HTTPSConnection):
    """To this machine, whose certificate must be for another name."""

    def __init__(self, port, name, context):
        super().__init__("127.0.0.1", port, timeout=PATIENCE, context=context)
        self.name, self.context = name, context

    def connect(self):
        plain = socket.create_connection((self.host, self.port), PATIENCE)
        self.sock = self.context.wrap_socket(plain, server_hostname=self.name)


class Question:
    def __init__(self, what):
        self.what, self.kept, self.every = what, None, 1
        kind, _, rest = what.partition(":")
        self.make = lambda: http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        if kind == "call":
            self.port, self.send = int(rest), ("POST", "/bench", CALL, HEADERS)
        elif kind == "get":
            port, _, path = rest.partition("/")
            self.port, self.send = int(port), ("GET", f"/{path}")
        else:
            port, file, ca, name, every = rest.split(":")
            self.port, self.every = int(port), int(every)
            with open(file, "rb") as found:
                path = "/validate" if file.endswith("policy.json") else "/inject"
                self.send = ("POST", path, found.read(), HEADERS)
            context = ssl.create_default_context(cafile=ca)
            self.make = lambda: ByName(self.port, name, context)

    def ask(self, kept):
        reused = kept and self.kept
        try:
            self._ask(kept)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close a connection that is kept at any moment. As the API server does, it is asked on a new one then.
            if not reused:
                raise
            self._ask(kept)

    def _ask(self, kept):
        connection = self.kept if kept and self.kept else self.make()
        try:
            connection.request(*self.send)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self.kept = None
            connection.close()
            raise
        if kept:
            self.kept = connection
        else:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {body[:200].decode(errors='replace')}")
        if b'"isError":true' in body or b'"allowed":false' in body:
            raise ValueError(body[:300].decode(errors="replace"))


def main():
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    questions = [Question(what) for what in sys.argv[1:]]
    seen = {question.what: {"took": [], "errors": []} for question in questions}
    turn = 0
    while not over.is_set():
        turn += 1
        for question in questions:
            if turn % question.every:
                continue
            began = time.monotonic()
            try:
                question.ask(kept=turn % 2 == 0)
                seen[question.what]["took"].append(time.monotonic() - began)
            except (OSError, ValueError, http.client.HTTPException) as error:
                # A connection that was kept may be closed as long as nothing was said on it.
                seen[question.what]["errors"].append(f"after {time.monotonic() - began:.2f} s: {type(error).__name__}: {error}")
        over.wait(PAUSE)
    for found in seen.values():
        took = sorted(found["took"])
        found["count"], found["worst"], found["median"] = len(took), took[-1] if took else None, took[len(took) // 2] if took else None
        found["errors"] = [len(found["errors"]), found["errors"][:3]]
        del found["took"]
    print(json.dumps(seen))


main()
