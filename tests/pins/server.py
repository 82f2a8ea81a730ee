"""An MCP server whose definitions of tools are the bytes of a file, read anew for every list: white space and the notation of numbers would
not survive a library.

    server.py FOLDER stdio
    server.py FOLDER http PORT      Streamable HTTP at /json, with events at /events; HTTP+SSE at /sse

FOLDER/pages       the definitions: a JSON array in each line, which is a page of the list. An empty file: lists fail
FOLDER/records     what was asked of it, a line for each message: its method, and the tool of a call

A call with the argument `changed` is answered after `notifications/tools/list_changed`, where the transport can say that.
"""

import http.server
import json
import queue
import sys
import threading
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CHANGED = json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
FOLDER = Path(sys.argv[1])
WRITING = threading.Lock()


def answers(message, way):
    """The texts with which a message is answered, in order."""
    method, params = message.get("method"), message.get("params", {})
    with WRITING, open(FOLDER / "records", "a") as records:
        records.write(json.dumps({"way": way, "method": method, "tool": params.get("name")}) + "\n")
    if "id" not in message:
        return []
    head = f'{{"jsonrpc":"2.0","id":{json.dumps(message["id"])},'
    if method == "initialize":
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "mail", "version": "1"},
        }
        return [f'{head}"result":{json.dumps(result)}}}']
    if method == "ping":
        return [f'{head}"result":{{}}}}']
    if method == "tools/list":
        pages = (FOLDER / "pages").read_text().splitlines()
        page = int(params.get("cursor") or 0)
        if page < len(pages):
            more = f',"nextCursor":"{page + 1}"' if page + 1 < len(pages) else ""
            return [f'{head}"result":{{"tools":{pages[page]}{more}}}}}']
    if method == "tools/call":
        said = [CHANGED] if params.get("arguments", {}).get("changed") else []
        return [*said, f'{head}"result":{{"content":[{{"type":"text","text":"done"}}],"structuredContent":{{"sent":1}}}}}}']
    return [f'{head}"error":{{"code":-32603,"message":"not now"}}}}']


def event(text, kind="message"):
    return f"event: {kind}\ndata: {text}\n\n".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions, streams = set(), {}

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        address = urlsplit(self.path)
        if address.path == "/messages":
            stream = self.streams[parse_qs(address.query)["session"][0]]
            self.respond(202)
            for text in answers(body, "sse"):
                stream.put(text)
            return
        if body.get("method") == "initialize":
            session = uuid.uuid4().hex
            self.sessions.add(session)
        elif (session := self.headers["Mcp-Session-Id"]) not in self.sessions:
            return self.respond(404 if session else 400)
        said = answers(body, address.path[1:])
        if "id" not in body:
            self.respond(202)
        elif address.path == "/events":
            self.respond(200, b"".join(map(event, said)), "text/event-stream", session)
        else:
            self.respond(200, said[-1].encode(), "application/json", session)

    def respond(self, status, body=b"", kind="text/plain", session=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if session:
            self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path != "/sse":
            return self.respond(405)
        session, stream = uuid.uuid4().hex, queue.Queue()
        self.streams[session] = stream
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(event(f"/messages?session={session}", "endpoint"))
            while True:
                self.wfile.write(event(stream.get()))
        except OSError:
            del self.streams[session]

    def do_DELETE(self):
        self.respond(200)

    def log_message(self, *_):
        pass


def main():
    if sys.argv[2] == "stdio":
        for line in sys.stdin:
            for text in answers(json.loads(line), "stdio"):
                print(text, flush=True)
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
    server.daemon_threads = True
    server.serve_forever()


main()
