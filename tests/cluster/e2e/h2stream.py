"""One HTTP/2 request that continues while its response comes. curl and Python's own client cannot do that."""

import socket
import ssl
import time

import h2.config
import h2.connection
import h2.events


def post(host, port, name, path, headers, authorities, seconds):
    """Posts without an end to the request, over TLS to a server that must prove to be `name`. Gives the status, and the text that
    came within so many seconds, or until the answer ended."""
    context = ssl.create_default_context(cadata=authorities)
    context.set_alpn_protocols(["h2"])
    end, status, body = time.monotonic() + seconds, None, b""
    with socket.create_connection((host, port), 5) as plain, context.wrap_socket(plain, server_hostname=name) as stream:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        fixed = [(":method", "POST"), (":scheme", "https"), (":authority", name), (":path", path)]
        connection.send_headers(1, fixed + headers)
        stream.sendall(connection.data_to_send())
        while (left := end - time.monotonic()) > 0:
            stream.settimeout(left)
            try:
                data = stream.recv(65536)
            except TimeoutError:
                break
            for event in connection.receive_data(data) if data else [None]:
                match event:
                    case h2.events.ResponseReceived():
                        status = int(dict(event.headers)[":status"])
                    case h2.events.DataReceived():
                        body += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case None | h2.events.StreamEnded() | h2.events.StreamReset() | h2.events.ConnectionTerminated():
                        return status, body.decode()
            stream.sendall(connection.data_to_send())
    return status, body.decode()
