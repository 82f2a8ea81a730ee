"""HTTP/1.1 and HTTP/2 as raw bytes, so that no library corrects what an attacker sends."""

import socket
import struct
import time

JSON = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"


def connect(port, receive=None, timeout=10):
    """A connection to a port of this machine; with a receive buffer of so many bytes."""
    stream = socket.socket()
    if receive:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    stream.settimeout(timeout)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.connect(("127.0.0.1", port))
    return stream


def post(path, body, headers=JSON):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def call(tool, arguments=b"{}", number=1):
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%s","arguments":%s}}' % (number, tool.encode(), arguments)


def response(stream):
    """One whole answer of a connection that is new: status and body."""
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        if not (data := stream.recv(65536)):
            raise ConnectionError("closed before an answer")
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    status = int(head.split()[1])
    parts, length = [rest], len(rest)
    if b"content-length" in fields:
        while length < int(fields[b"content-length"]):
            if not (data := stream.recv(1 << 20)):
                raise ConnectionError("closed within an answer")
            parts.append(data)
            length += len(data)
    elif fields.get(b"transfer-encoding") == b"chunked":
        last = rest[-8:]
        while not last.endswith(b"0\r\n\r\n"):
            if not (data := stream.recv(1 << 20)):
                raise ConnectionError("closed within an answer")
            parts.append(data)
            last = (last + data)[-8:]
    return status, b"".join(parts)


def ask(port, request, timeout=30):
    """One request on a connection of its own: status, body, and in how many seconds."""
    began = time.monotonic()
    with connect(port, timeout=timeout) as stream:
        # A server that refuses early stops reading.
        try:
            stream.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass
        status, body = response(stream)
    return status, body, time.monotonic() - began


# ---- HTTP/2 (RFC 9113)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
LARGEST_WINDOW = 2**31 - 1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def begin(window=65535):
    """The client's preface; each of its streams, and the connection, may be sent so many bytes."""
    settings = struct.pack(">HI", 4, window)
    more = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window - 65535)) if window > 65535 else b""
    return PREFACE + frame(SETTINGS, 0, 0, settings) + more


def _text(text):
    """A string literal without Huffman coding (RFC 7541, 5.2)."""
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    length, rest = bytes([127]), len(data) - 127
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + bytes([rest]) + data


def head(stream, path, fields=(), method="POST", scheme="http", authority="localhost", end=False):
    """A request's head; fields are literals that no table remembers."""
    all_fields = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *fields]
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in all_fields)
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def request(stream, path, body, **options):
    fields = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
    pieces = [body[i : i + 16384] for i in range(0, len(body), 16384)] or [b""]
    last = len(pieces) - 1
    data = b"".join(frame(DATA, END_STREAM if i == last else 0, stream, piece) for i, piece in enumerate(pieces))
    return head(stream, path, fields, **options) + data


def frames(buffer):
    """The whole frames at the front of a bytearray, which are taken from it: (kind, flags, stream, payload)."""
    found = []
    while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3])):
        found.append((buffer[3], buffer[4], int.from_bytes(buffer[5:9]) & LARGEST_WINDOW, bytes(buffer[9 : 9 + length])))
        del buffer[: 9 + length]
    return found
