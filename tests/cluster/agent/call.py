"""Calls tools through the sidecar with nothing but sockets and JSON, and prints the result of each call as one line of JSON.
SERVER is the name of a server at the sidecar, or a URL.

    call.py SERVER TOOL [--times N] [--arguments JSON]      N calls, one after the other; with --at SECONDS (since 1970), not
                                                            before then
    call.py SERVER --list                                   the names of the tools
    call.py first SERVER TOOL ...                           the same, as the very first thing that the pod's process does

A line is {"http": 200, "outcome": "ok" | "denied" | "error", "text": ..., "denial": ...}; where nothing could be reached,
{"http": 0, "outcome": "ECONNREFUSED" | ..., "text": ...}. The exit code is 0: what it means is for the test to say.
"""

import errno
import http.client
import json
import sys
import time
from urllib.parse import urlsplit


def post(connection, path, message, session):
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if session:
        headers["mcp-session-id"] = session
    connection.request("POST", path, json.dumps(message), headers)
    response = connection.getresponse()
    text = response.read().decode()
    if (response.getheader("content-type") or "").startswith("text/event-stream"):
        data = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        text = next((line for line in data if line and "id" in json.loads(line)), "{}")
    return response, json.loads(text) if text.strip() else {}


def said(response, answer):
    result = answer.get("result") or {}
    denial = (result.get("_meta") or {}).get("toolweir.dev/denial")
    if "tools" in result:
        return {"http": response.status, "outcome": "ok", "text": [tool["name"] for tool in result["tools"]], "denial": None}
    text = "".join(block.get("text", "") for block in result.get("content", [])) or json.dumps(answer.get("error"))
    if denial:
        outcome = "denied"
    else:
        outcome = "error" if "error" in answer or result.get("isError") or response.status >= 300 else "ok"
    return {"http": response.status, "outcome": outcome, "text": text, "denial": denial}


class Agent:
    """A client that keeps its connection, and takes up a session where the server wants one."""

    def __init__(self, server):
        url = urlsplit(server if "://" in server else f"http://127.0.0.1:15001/{server}")
        self.path, self.session, self.ready, self.id = url.path, None, False, 0
        # The host as it is written: a client need not write it as urlsplit does.
        host = url.netloc.rpartition(":")[0] if url.port else url.netloc
        self.connection = http.client.HTTPConnection(host.strip("[]"), url.port or 80, timeout=30)

    def ask(self, method, params):
        try:
            if not self.ready:
                # Before the first call, since a call that the server rejects for lack of a session would count.
                self.initialize()
            return said(*self.send(method, params))
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            name = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
            return {"http": 0, "outcome": name, "text": str(error), "denial": None}

    def send(self, method, params):
        self.id += 1
        return post(self.connection, self.path, {"jsonrpc": "2.0", "id": self.id, "method": method, "params": params}, self.session)

    def initialize(self):
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "call.py", "version": "1"}}
        response, answer = self.send("initialize", params)
        self.session = response.getheader("mcp-session-id")
        # A server that is closed now may be open later.
        self.ready = "result" in answer
        if self.ready:
            post(self.connection, self.path, {"jsonrpc": "2.0", "method": "notifications/initialized"}, self.session)

    def call(self, tool, arguments):
        return self.ask("tools/call", {"name": tool, "arguments": arguments})


def main():
    words, options = [], {"--times": "1", "--arguments": "{}", "--at": "0"}
    rest = iter(sys.argv[1:])
    for word in rest:
        if word in options:
            options[word] = next(rest)
        else:
            words.append(word)
    if words[0] == "first":
        words.pop(0)
    agent = Agent(words[0])
    if "--list" in words:
        print(json.dumps(agent.ask("tools/list", {})), flush=True)
        return
    if float(options["--at"]) > time.time():
        # With a session, so that the first call is sent at that moment.
        agent.ask("ping", {})
        time.sleep(max(0, float(options["--at"]) - time.time()))
    for _ in range(int(options["--times"])):
        print(json.dumps(agent.call(words[1], json.loads(options["--arguments"]))), flush=True)


if __name__ == "__main__":
    main()
