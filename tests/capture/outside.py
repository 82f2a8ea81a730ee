"""What is outside the pod: every address, and on each port somebody who answers. `outside.py DIR` with server.crt and server.key in DIR.

Ports are redirected here by the network namespace: TCP to 1, TLS (443 and 8443) to 2, UDP to 3, DNS to 4, MCP (9000) to 5.
"""

import http.server
import json
import pathlib
import socket
import socketserver
import ssl
import struct
import sys
import threading

BANNER = b"OUTSIDE"
DIR = pathlib.Path(sys.argv[1])
# The names that the resolver knows. Others do not exist.
NAMES = json.loads((DIR / "names.json").read_text())


class Six(socketserver.ThreadingTCPServer):
    """Both families."""

    address_family, allow_reuse_address, daemon_threads, request_queue_size = socket.AF_INET6, True, True, 64

    def handle_error(self, *_):
        pass


class Plain(socketserver.BaseRequestHandler):
    """Answers whatever comes: with a page where it is HTTP."""

    def handle(self):
        while got := self.request.recv(4096):
            if b" HTTP/1." in got:
                host = next((line for line in got.split(b"\r\n") if line.lower().startswith(b"host:")), b"")
                page = BANNER + b" " + got.split(b"\r\n")[0] + b" " + host
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))
            else:
                self.request.sendall(BANNER + b" tcp " + got[:40])


class Tls(Plain):
    def setup(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(DIR / "server.crt", DIR / "server.key")
        context.set_alpn_protocols(["http/1.1"])
        self.request.settimeout(5)
        self.request = context.wrap_socket(self.request, server_side=True)


class Mcp(http.server.BaseHTTPRequestHandler):
    """As much of MCP as one call needs."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        result = {"content": [{"type": "text", "text": BANNER.decode() + " " + self.path}]}
        answer = json.dumps({"jsonrpc": "2.0", "id": body.get("id"), "result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.send_response(200)
        page = BANNER + b" GET " + self.path.encode()
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


def answer_dns(question):
    """An answer to one question of the type A or AAAA."""
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode("latin-1").lower())
        at += 1 + question[at]
    kind = struct.unpack_from("!H", question, at + 1)[0]
    addresses = NAMES.get(".".join(labels))
    family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
    records = []
    for address in addresses or ():
        if (":" in address) == (family == socket.AF_INET6) and family:
            data = socket.inet_pton(family, address)
            records.append(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(data)) + data)
    code = 0x8180 if addresses is not None else 0x8183
    # Names at which the resolver fails (SERVFAIL), while a test says so.
    if (DIR / "failing").exists() and ".".join(labels) in (DIR / "failing").read_text().split():
        code, records = 0x8182, []
    return question[:2] + struct.pack("!HHHHH", code, 1, len(records), 0, 0) + question[12 : at + 5] + b"".join(records)


class DnsTcp(socketserver.BaseRequestHandler):
    def handle(self):
        got = self.request.recv(4096)
        answer = answer_dns(got[2:])
        self.request.sendall(struct.pack("!H", len(answer)) + answer)


def datagrams(port, answer):
    # One socket for each family: an answer comes from the address that was asked, which conntrack sees to.
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::", port))
    while True:
        got, address = made.recvfrom(65536)
        try:
            made.sendto(answer(got), address)
        except (OSError, IndexError):
            continue


def main():
    for port, handler in ((1, Plain), (2, Tls), (4, DnsTcp), (5, Mcp)):
        threading.Thread(target=Six(("::", port), handler).serve_forever, daemon=True).start()
    threading.Thread(target=datagrams, args=(3, lambda got: BANNER + b" udp " + got[:40]), daemon=True).start()
    threading.Thread(target=datagrams, args=(4, answer_dns), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


main()
