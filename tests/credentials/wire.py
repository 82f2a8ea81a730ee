"""Requests that no SDK sends: a header in many spellings, as a trailer, named in Connection, over HTTP/2 without TLS."""

import http.client
import json
import socket

import h2.config
import h2.connection
import h2.events

from agent import ACCEPT, body


def http1(port, path, lines, trailers=()):
    """A call with these header lines as they are; with trailers, in chunks. Gives status and body."""
    text = body().encode()
    head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{name}: {value}" for name, value in ACCEPT.items()), *lines]
    if trailers:
        half = len(text) // 2
        parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (text[:half], text[half:]))
        head.append("Transfer-Encoding: chunked")
        text = parts + b"0\r\n" + "".join(f"{line}\r\n" for line in trailers).encode() + b"\r\n"
    else:
        head.append(f"Content-Length: {len(text)}")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + text)
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        return answer.status, answer.read().decode("utf-8", "replace")


def http2(port, path, headers, trailers=()):
    """The same over HTTP/2 with prior knowledge."""
    settings = h2.config.H2Configuration(
        header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    link = h2.connection.H2Connection(settings)
    link.initiate_connection()
    text = body().encode()
    listed = [(":method", "POST"), (":scheme", "http"), (":authority", f"127.0.0.1:{port}"), (":path", path)]
    listed += [(name.lower(), value) for name, value in ACCEPT.items()] + list(headers)
    link.send_headers(1, listed)
    link.send_data(1, text, end_stream=not trailers)
    if trailers:
        link.send_headers(1, list(trailers), end_stream=True)
    status, received = 0, b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(link.data_to_send())
        while data := connection.recv(1 << 16):
            for event in link.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    received += event.data
                    link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    return status, received.decode("utf-8", "replace")
            connection.sendall(link.data_to_send())
    return status, received.decode("utf-8", "replace")


def allowed(answer):
    status, text = answer
    return status == 200 and not json.loads(text).get("result", {"isError": True}).get("isError")
