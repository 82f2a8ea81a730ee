"""Tries the ways out of a captured pod that HTTP and TLS offer. Python 3 alone; runs in a network namespace and in a pod.

    python3 ways_out_http.py TARGETS [ROW...]

TARGETS is JSON:
    names      name -> its addresses, as the pod's resolver knows them:
               allowed.test   may be connected to at 80 and 443
               plain.test     may be connected to at 9000, and is an MCP server that no policy declares
               tools.test     the declared server http://tools.test:9000/mcp, of which only the tool `ok` may be called
               other.test     may not be connected to
               meta.test, internal.test, pod.test, loopback.test, mapped.test, translated.test
                              may be connected to at 80, but lead to addresses that no policy allows
    families   [4, 6] or one of them

It prints a line of JSON for each row and family: row, family, result, detail, when it began and ended, `may` (the addresses outside that
it may reach) and `token` (what must reach nobody). Rows whose names begin with `works_` must be answered.
"""

import json
import signal
import socket
import ssl
import struct
import sys
import time

BANNER, PATIENCE, LIMIT = b"OUTSIDE", 1.0, 8
# For what must work, however busy the machine is: the first connection to a name also resolves it.
PATIENCE_WORKS, LIMIT_WORKS = 15.0, 20
ROWS = []


def row(*may, families=(4, 6)):
    """A row that may reach the addresses of these names."""

    def add(function):
        ROWS.extend((function.__name__, family, function, may) for family in families)
        return function

    return add


class Place:
    def __init__(self, targets, family, token, patience):
        self.number, self.token, self.patience = family, token, patience
        self.addresses = {name: next((one for one in all if (":" in one) == (family == 6)), None) for name, all in targets["names"].items()}

    def connect(self, name, port):
        """To the address of a name, as a client that resolved it."""
        if not self.addresses[name]:
            raise LookupError("not in this family")
        made = socket.create_connection((self.addresses[name], port), self.patience)
        made.settimeout(self.patience)
        return made

    def literal(self, name):
        address = self.addresses[name]
        return f"[{address}]" if ":" in address else address


def outcome(got):
    return ("answered" if BANNER in got else "denied" if got else "ended"), repr(got.split(b"\r\n\r\n")[-1][:120] or got[:60])


def exchange(made, *parts):
    with made:
        for index, part in enumerate(parts):
            if index:
                time.sleep(0.1)
            made.sendall(part if isinstance(part, bytes) else part.encode())
        return outcome(response(made))


def response(made):
    """The head, and as much of the body as it announces."""
    got = made.recv(8000)
    head, end, body = got.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while end and len(body) < length and (more := made.recv(8000)):
        got, body = got + more, body + more
    return got


def get(host, path="/", *headers, method="GET", version="1.1"):
    hosts = [f"Host: {host}"] if host is not None else []
    return "\r\n".join([f"{method} {path} HTTP/{version}", *hosts, *headers, "", ""])


def call(place, path="/mcp", tool=None, host="tools.test:9000", method="tools/call"):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"name": tool or place.token, "arguments": {}}})
    fields = ("Content-Type: application/json", "Accept: application/json, text/event-stream", f"Content-Length: {len(body)}")
    return get(host, path, *fields, method="POST") + body


def tls(made, name, then=None, alpn=("http/1.1",)):
    """HTTP through TLS with this server name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    with made, context.wrap_socket(made, server_hostname=name) as secure:
        secure.sendall((then or get(name or "x")).encode())
        return outcome(secure.recv(4000))


def several(*tries):
    found = []
    for one in tries:
        found.append(attempt(one))
        if found[-1][0] == "answered":
            return found[-1]
    return found[-1][0], "; ".join(f"{result} {detail}"[:90] for result, detail in found)


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except TimeoutError as error:
        return "silent", "stuck" if error.args == ("stuck",) else ""
    except LookupError as error:
        return "untried", str(error)
    except OSError as error:
        return "refused", f"{type(error).__name__} {error}"[:120]


# What must work, so that the rest says something


@row("allowed.test")
def works_allowed_http(place):
    return exchange(place.connect("allowed.test", 80), get("allowed.test"))


@row("allowed.test")
def works_allowed_https(place):
    return tls(place.connect("allowed.test", 443), "allowed.test")


@row("tools.test")
def works_declared_call(place):
    return exchange(place.connect("tools.test", 9000), call(place, tool="ok"))


# Names that do not agree


@row()
def other_host(place):
    return exchange(place.connect("other.test", 80), get("other.test", f"/{place.token}"))


@row()
def other_server_name(place):
    return tls(place.connect("other.test", 443), "other.test")


@row("allowed.test")
def server_name_with_other_host(place):
    return tls(place.connect("allowed.test", 443), "allowed.test", get("other.test"))


@row("allowed.test")
def host_with_other_address(place):
    """Leads to the address of the name, not to the one that was asked for."""
    return exchange(place.connect("other.test", 80), get("allowed.test"))


@row("allowed.test")
def server_name_with_other_address(place):
    return tls(place.connect("other.test", 443), "allowed.test")


@row()
def https_by_address(place):
    return tls(place.connect("other.test", 443), None)


@row()
def http_by_address(place):
    return several(
        lambda: exchange(place.connect("other.test", 80), get(place.literal("other.test"), f"/{place.token}")),
        lambda: exchange(place.connect("other.test", 80), get(None, f"/{place.token}", version="1.0")),
        lambda: exchange(place.connect("other.test", 80), f"GET /{place.token}\r\n"),
    )


@row()
def other_port_of_allowed(place):
    return several(
        lambda: exchange(place.connect("allowed.test", 8080), get("allowed.test:8080", f"/{place.token}")),
        lambda: exchange(place.connect("allowed.test", 80), get("allowed.test:8080", f"/{place.token}")),
        lambda: tls(place.connect("allowed.test", 8443), "allowed.test"),
    )


@row("allowed.test")
def two_hosts(place):
    return several(
        lambda: exchange(place.connect("allowed.test", 80), get("allowed.test", f"/{place.token}", "Host: other.test")),
        lambda: exchange(place.connect("allowed.test", 80), get("other.test", f"/{place.token}", "Host: allowed.test")),
    )


@row()
def host_with_user(place):
    return several(*(lambda host=host: exchange(place.connect("other.test", 80), get(host, f"/{place.token}")) for host in ("allowed.test@other.test", "other.test#allowed.test", "allowed.test, other.test")))


@row("allowed.test")
def absolute_form(place):
    return several(
        lambda: exchange(place.connect("allowed.test", 80), get("allowed.test", f"http://other.test/{place.token}")),
        lambda: exchange(place.connect("other.test", 80), get("allowed.test", f"http://other.test/{place.token}")),
    )


@row("allowed.test")
def absolute_form_with_other_host(place):
    """The absolute form counts (RFC 9112, section 3.2.2): the other name reaches nobody."""
    made = place.connect("other.test", 80)
    return exchange(made, get(f"{place.token}.other.test", "http://allowed.test/"))


@row("allowed.test")
def next_request_for_another(place):
    """On one connection: first an allowed host, then another."""
    made = place.connect("allowed.test", 80)
    with made:
        made.sendall(get("allowed.test").encode())
        first = made.recv(4000)
        made.sendall(get("other.test", f"/{place.token}").encode())
        return ("denied" if BANNER in first else "ended"), outcome(made.recv(4000))[1]


@row("allowed.test")
def pipelined_for_another(place):
    made = place.connect("allowed.test", 80)
    return exchange(made, get("allowed.test") + get("other.test", f"/{place.token}")) if made else None


def h2_frame(kind, flags, stream, payload):
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def h2_request(stream, authority, path):
    # Literal fields without indexing (RFC 7541): :method GET and :scheme http are of the static table.
    fields = b"\x82\x86" + b"".join(b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in ((b":path", path), (b":authority", authority)))
    return h2_frame(1, 5, stream, fields)


@row("allowed.test")
def http2_shared(place):
    """One connection of HTTP/2 for two names."""
    made = place.connect("allowed.test", 80)
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")
    return exchange(made, begin + h2_request(1, b"allowed.test", b"/") + h2_request(3, b"other.test", f"/{place.token}".encode()), h2_frame(4, 1, 0, b""))


# Tunnels


@row()
def connect_to_other(place):
    return several(
        lambda: exchange(place.connect("other.test", 80), get("other.test:443", "other.test:443", method="CONNECT"), get("other.test", f"/{place.token}")),
        lambda: exchange(place.connect("allowed.test", 80), get("other.test:80", "other.test:80", method="CONNECT"), get("other.test", f"/{place.token}")),
        lambda: exchange(place.connect("other.test", 3128), get("x", f"{place.literal('other.test')}:80", method="CONNECT"), get("other.test", f"/{place.token}")),
    )


@row()
def connect_to_metadata(place):
    to = "169.254.169.254:80" if place.number == 4 else "[fd00:ec2::254]:80"
    return exchange(place.connect("other.test", 3128), get(to, to, method="CONNECT"), get(to, f"/{place.token}"))


@row()
def connect_and_another_name(place):
    def tunnelled():
        made = place.connect("other.test", 3128)
        made.sendall(get("allowed.test:443", "allowed.test:443", method="CONNECT").encode())
        made.recv(4000)
        return tls(made, "other.test")

    return several(
        tunnelled,
        lambda: exchange(
            place.connect("other.test", 3128), get("allowed.test:80", "allowed.test:80", method="CONNECT"), get("other.test", f"/{place.token}")
        ),
        lambda: exchange(
            place.connect("other.test", 3128),
            get("allowed.test:80", "allowed.test:80", method="CONNECT"),
            get("other.test:80", "other.test:80", method="CONNECT"),
            get("other.test", f"/{place.token}"),
        ),
    )


@row(families=(4, 6))
def connect_at_the_capture_port(place):
    made = socket.create_connection(("127.0.0.1" if place.number == 4 else "::1", 15002), PATIENCE)
    made.settimeout(PATIENCE)
    return exchange(made, get("allowed.test:80", "allowed.test:80", method="CONNECT"), get("allowed.test", f"/{place.token}"))


@row("allowed.test")
def upgrade(place):
    """Another protocol on an allowed connection, for another host."""
    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    return exchange(place.connect("other.test", 80), get("other.test", f"/{place.token}", *fields))


def hello(name, extra=b""):
    """A ClientHello for this name, with more extensions."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    made = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        made.do_handshake()
    except ssl.SSLWantReadError:
        pass
    record = outgoing.read()
    body = record[9:]
    at = 34 + 1 + body[34]
    at += 2 + struct.unpack_from("!H", body, at)[0]
    at += 1 + body[at]
    extensions = body[at + 2 :] + extra
    body = body[:at] + struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + struct.pack("!I", len(body))[1:] + body
    return record[:3] + struct.pack("!H", len(message)) + message


@row()
def encrypted_client_hello(place):
    """The inner name is hidden; the outer one is allowed (RFC 9849: type 0, a suite, an id, a key, and what is sealed)."""
    sealed = b"\x00" + struct.pack("!HHB", 1, 1, 7) + struct.pack("!H", 32) + bytes(range(32)) + struct.pack("!H", 64) + bytes(range(64))
    made = place.connect("allowed.test", 443)
    with made:
        made.sendall(hello("allowed.test", struct.pack("!HH", 0xFE0D, len(sealed)) + sealed))
        got = made.recv(4000)
        return ("answered" if got[:1] == b"\x16" else "denied"), repr(got[:20])


@row()
def slowly(place):
    """A name in pieces."""
    head = get("other.test", f"/{place.token}").encode()
    return exchange(place.connect("other.test", 80), *(head[at : at + 12] for at in range(0, len(head), 12)))


# The declared server


@row("tools.test")
def denied_tool(place):
    return exchange(place.connect("tools.test", 9000), call(place))


@row("tools.test")
def spellings_of_the_host(place):
    hosts = ("TOOLS.test:9000", "tools.test.:9000", "Tools.Test.:09000", "tools.test:9000 ", "tools.test")
    return several(*(lambda host=host: exchange(place.connect("tools.test", 9000), call(place, host=host)) for host in hosts))


@row("tools.test")
def path_aliases(place):
    paths = (*("/mcp/", "//mcp", "/mcp/.", "/./mcp", "/x/../mcp", "/mcp/../mcp", "/MCP", "/%6dcp", "/mc%70", "/mcp%2f", "/mcp;a", "/mcp?a=b", "/mcp%3fa"), "/")
    return several(*(lambda path=path: exchange(place.connect("tools.test", 9000), call(place, path)) for path in paths))


@row("tools.test")
def other_paths(place):
    return several(
        lambda: exchange(place.connect("tools.test", 9000), get("tools.test:9000", f"/admin/{place.token}")),
        lambda: exchange(place.connect("tools.test", 9000), call(place, "/.well-known/oauth-protected-resource")),
        lambda: exchange(place.connect("tools.test", 9000), get("tools.test:9000", f"/.well-known/oauth-x/../../{place.token}")),
    )


@row("tools.test")
def declared_by_address(place):
    return several(
        lambda: exchange(place.connect("tools.test", 9000), call(place, host=place.literal("tools.test") + ":9000")),
        lambda: exchange(place.connect("tools.test", 9000), call(place, host="other.test:9000")),
        lambda: exchange(place.connect("tools.test", 9000), call(place, host="allowed.test:9000")),
    )


@row()
def declared_by_tls(place):
    return tls(place.connect("tools.test", 9000), "tools.test", call(place))


@row("plain.test")
def undeclared_mcp_server(place):
    """The host is allowed; MCP there is not."""
    return several(
        lambda: exchange(place.connect("plain.test", 9000), call(place, host="plain.test:9000")),
        lambda: exchange(place.connect("plain.test", 9000), call(place, "/" + place.token, host="plain.test:9000", method="initialize")),
    )


@row("tools.test")
def declared_over_http2(place):
    made = place.connect("tools.test", 9000)
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")
    return exchange(made, begin + h2_request(1, b"tools.test:9000", f"/{place.token}".encode()), h2_frame(4, 1, 0, b""))


# Names that lead where they must not


def leads(name):
    def tries(place):
        return several(
            lambda: exchange(place.connect("other.test", 80), get(name, f"/{place.token}")),
            lambda: tls(place.connect("other.test", 80), name),
        )

    tries.__name__ = f"name_of_{name.split('.')[0]}"
    return row()(tries)


for one in ("meta.test", "internal.test", "pod.test", "loopback.test", "mapped.test", "translated.test"):
    leads(one)


def stuck(*_):
    raise TimeoutError("stuck")


def main():
    signal.signal(signal.SIGALRM, stuck)
    targets, wanted = json.loads(sys.argv[1]), sys.argv[2:]
    for name, family, function, may in ROWS:
        if (wanted and name not in wanted) or family not in targets.get("families", [4, 6]):
            continue
        token, began = f"way-{name.replace('_', '-')}-{family}", time.time()
        works = name.startswith("works_")
        signal.alarm(LIMIT_WORKS if works else LIMIT)
        result, detail = attempt(function, Place(targets, family, token, PATIENCE_WORKS if works else PATIENCE))
        signal.alarm(0)
        time.sleep(0.05)
        reach = [address for one in may for address in targets["names"][one]]
        line = {"row": name, "family": family, "result": result, "detail": detail, "began": began, "ended": time.time(), "may": reach, "token": token}
        print(json.dumps(line), flush=True)


main()
