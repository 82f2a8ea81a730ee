"""An MCP server that logs when each tools/call arrived: a line of monotonic nanoseconds, the tool, and `arguments.account`.

The time is the kernel's (SO_TIMESTAMPNS), taken when the packet came: that this process had no core then, or was busy with
another call, moves no arrival. `arguments.seconds` is how long a call takes."""

import argparse
import json
import os
import socket
import struct
import sys
import threading
import time

SO_TIMESTAMPNS = 35
TEXT = "All is well. " * 70


def arrived(ancillary):
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            # From the clock that can be set to the one that cannot, at the moment.
            return seconds * 1_000_000_000 + nanoseconds + time.monotonic_ns() - time.time_ns()
    # A time from here would be later than the call, and could hide that a limit was broken.
    print("the kernel gives no times of arrival", file=sys.stderr, flush=True)
    os._exit(1)


def serve(connection, log):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    buffer, came = b"", 0
    while True:
        head = buffer.find(b"\r\n\r\n")
        size = None
        if head >= 0:
            headers = buffer[:head].lower().split(b"\r\n")
            lengths = [line.partition(b":")[2] for line in headers[1:] if line.startswith(b"content-length:")]
            size = head + 4 + (int(lengths[0]) if lengths else 0)
        if size is None or len(buffer) < size:
            data, ancillary, _, _ = connection.recvmsg(1 << 16, 64)
            if not data:
                return
            if not buffer:
                came = arrived(ancillary)
            buffer += data
            continue
        if len(buffer) > size:
            print("a request before the answer to the last one", file=sys.stderr, flush=True)
            os._exit(1)
        connection.sendall(answer(buffer[head + 4 :], came, log))
        buffer = b""


def answer(body, came, log):
    message = json.loads(body) if body else {}
    if "id" not in message:
        return b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    if message["method"] == "tools/call":
        params = message["params"]
        arguments = params.get("arguments", {})
        # One write: lines of threads do not mix.
        os.write(log, f"{came} {params['name']} {arguments.get('account', '-')}\n".encode())
        time.sleep(arguments.get("seconds", 0))
        result = {"content": [{"type": "text", "text": TEXT}], "isError": False}
    else:
        about = {"name": "shared", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    text = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


def guarded(connection, log):
    with connection:
        try:
            serve(connection, log)
        except OSError:
            pass  # a sidecar that was killed
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--arrivals", required=True)
    args = parser.parse_args()
    sys.setswitchinterval(0.0005)
    log = os.open(args.arrivals, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o644)
    listener = socket.create_server(("127.0.0.1", args.port), backlog=512)
    # What is accepted has it from here, so that the first call of a connection has a time as well.
    listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=guarded, args=(connection, log), daemon=True).start()


if __name__ == "__main__":
    main()
