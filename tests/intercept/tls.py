"""TLS and HTTP from a captured pod, byte by byte: `tls.py SETTINGS ROW...` prints a line of JSON for each row, what came of it and what the sidecar
counted meanwhile. SETTINGS is JSON: `roots` (the bundle), `intermediate` (the name of the pod's authority), `addresses` (name -> one of its own).
"""

import concurrent.futures
import contextlib
import json
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import warnings

import h2.connection
import h2.events

SETTINGS = json.loads(sys.argv[1])
PATIENCE, STALLED = 10, 45
METRICS = "http://127.0.0.1:15020/metrics"
COUNTED = {"toolweir_egress_connections_total": "reason", "toolweir_interception_handshakes_total": "result"}
ROWS = {}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_page_fan_count", "arguments": {}}}
HIDDEN = {**CALL, "params": {"name": "delete_post", "arguments": {"post_id": "1"}}}


def row(function):
    ROWS[function.__name__] = function
    return function


warnings.simplefilter("ignore", DeprecationWarning)


def context(*alpn, newest=ssl.TLSVersion.TLSv1_3, oldest=ssl.TLSVersion.TLSv1_2):
    made = ssl.create_default_context(cafile=SETTINGS["roots"])
    made.maximum_version, made.minimum_version = newest, oldest
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


def connect(name="tools.test", port=443):
    made = socket.create_connection((SETTINGS["addresses"].get(name, name), port), PATIENCE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def secure(name="tools.test", made=None, using=None, session=None):
    return (using or context()).wrap_socket(made or connect(name), server_hostname=name, session=session)


def message(body=None, host="tools.test", target="/mcp", method="POST", *headers):
    text = json.dumps(body or CALL) if method == "POST" else ""
    fields = [f"Host: {host}", "Accept: application/json, text/event-stream", f"Content-Length: {len(text)}", *headers]
    fields += ["Content-Type: application/json"] if text else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", text]).encode()


def response(made):
    """The status and the body of an answer that says its length or comes in chunks."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = made.recv(65536)
        if not piece:
            raise EOFError(f"closed after {got[:80]!r}")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    if "content-length" in fields:
        while len(body) < int(fields["content-length"]):
            body += made.recv(65536)
    elif fields.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += made.recv(65536)
    return int(lines[0].split()[1]), body.decode("utf-8", "replace")


class Whole:
    """A connection of whose bytes no more is taken than an answer has."""

    def __init__(self, made):
        self.made, self.held = made, b""

    def recv(self, _):
        if not self.held:
            self.held = self.made.recv(65536)
        # A byte at a time, so that the next answer stays.
        piece, self.held = self.held[:1], self.held[1:]
        return piece


def judged(status, text):
    """What an answer is: of the server, a denial of a call, or the sidecar's own."""
    if "1911" in text:
        return "governed"
    if "Denied by policy" in text:
        return "denied"
    if text.startswith("OUTSIDE"):
        return "passed"
    return f"{status}: {text[:160]}"


def issuer(made):
    return dict(pair for part in made.getpeercert()["issuer"] for pair in part)["commonName"]


def told(made, request):
    """Who signed the certificate, and what became of a request."""
    by = issuer(made)
    by = "pod" if by == SETTINGS["intermediate"] else by
    made.sendall(request)
    return {"result": judged(*response(made)), "by": by, "tls": made.version(), "alpn": made.selected_alpn_protocol()}


def asked(name="tools.test", request=None, **more):
    with secure(name, **more) as made:
        return told(made, request or message(host=name))


def begun(name="tools.test", using=None):
    """A client whose bytes are ours to send: the TLS object, what comes in, and its ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = (using or context()).wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        made.do_handshake()
    return made, incoming, outgoing


class Bytes:
    """A TLS client over a socket, one step after another."""

    def __init__(self, made, incoming, outgoing, wire):
        self.made, self.incoming, self.outgoing, self.wire = made, incoming, outgoing, wire
        self.version, self.selected_alpn_protocol, self.getpeercert = made.version, made.selected_alpn_protocol, made.getpeercert

    def until(self, action):
        while True:
            try:
                done = action()
                self.flush()
                return done
            except ssl.SSLWantReadError:
                self.flush()
                if not (piece := self.wire.recv(65536)):
                    raise EOFError("closed in the handshake") from None
                self.incoming.write(piece)

    def flush(self):
        if data := self.outgoing.read():
            self.wire.sendall(data)

    def sendall(self, data):
        self.until(lambda: self.made.write(data))

    def recv(self, size):
        return self.until(lambda: self.made.read(size))


def sent_in(pieces_of, name="tools.test"):
    """Sends a ClientHello in the pieces that `pieces_of` makes of it, and asks."""
    made, incoming, outgoing = begun(name)
    with connect(name) as wire:
        for piece in pieces_of(outgoing.read()):
            wire.sendall(piece)
            time.sleep(0.003)
        client = Bytes(made, incoming, outgoing, wire)
        client.until(made.do_handshake)
        return told(client, message(host=name))


def records(hello, size):
    """The handshake message of a record, in records of `size` bytes."""
    body = hello[5:]
    return [b"\x16\x03\x01" + struct.pack("!H", len(body[at : at + size])) + body[at : at + size] for at in range(0, len(body), size)]


@row
def http1():
    return asked(using=context("http/1.1"))


@row
def http2():
    return h2_calls()


@row
def without_alpn():
    return asked()


@row
def both_alpn():
    with secure(using=context("h2", "http/1.1")) as made:
        return {"result": "chosen", "alpn": made.selected_alpn_protocol()}


@row
def alpn_of_neither():
    return asked(using=context("xmpp-client"))


@row
def tls_1_2():
    return asked(using=context(newest=ssl.TLSVersion.TLSv1_2))


@row
def tls_1_3():
    return asked(using=context(oldest=ssl.TLSVersion.TLSv1_3))


@row
def tls_1_1():
    using = context(newest=ssl.TLSVersion.TLSv1_1, oldest=ssl.TLSVersion.TLSv1)
    using.set_ciphers("ALL:@SECLEVEL=0")
    return asked(using=using)


@row
def segments():
    return sent_in(lambda hello: [hello[at : at + 40] for at in range(0, len(hello), 40)])


@row
def single_bytes():
    return sent_in(lambda hello: [hello[at : at + 1] for at in range(64)] + [hello[64:]])


@row
def tls_records():
    return sent_in(lambda hello: [b"".join(records(hello, 50))])


@row
def tls_records_in_segments():
    return sent_in(lambda hello: records(hello, 30))


@row
def long_client_hello():
    """As with keys of several kinds, or many protocols: over one segment."""
    return asked(using=context("http/1.1", *(f"protocol-{number:04}" for number in range(250))))


def resumed(newest):
    using = context(newest=newest, oldest=newest)
    with secure(using=using) as made:
        first = told(made, message())
        session = made.session
    with secure(using=using, session=session) as made:
        again = told(made, message())
        reused = made.session_reused
        made.sendall(message(HIDDEN))
        hidden = judged(*response(made))
    return first | {"result": f"{first['result']}, {again['result']}, {hidden}", "reused": reused}


def ticket_of_another(newest):
    using = context(newest=newest, oldest=newest)
    with secure(using=using) as made:
        told(made, message())
        session = made.session
    with secure("page.test", using=using, session=session) as made:
        return told(made, message(host="page.test", target="/page", method="GET")) | {"reused": made.session_reused}


@row
def too_long_client_hello():
    """Longer than a sidecar reads before it knows where a connection leads."""
    return asked(using=context(*(f"protocol-{number:04}" for number in range(1300))))


@row
def server_name_with_a_dot():
    """As no client should (RFC 6066, section 3); Python does not take the certificate for that name."""
    using = context()
    using.check_hostname = False
    return asked("tools.test.", message(), made=connect(), using=using)


@row
def resumption_1_3():
    return resumed(ssl.TLSVersion.TLSv1_3)


@row
def resumption_1_2():
    return resumed(ssl.TLSVersion.TLSv1_2)


@row
def ticket_of_another_name_1_3():
    return ticket_of_another(ssl.TLSVersion.TLSv1_3)


@row
def ticket_of_another_name_1_2():
    return ticket_of_another(ssl.TLSVersion.TLSv1_2)


@row
def early_data():
    """What a ticket allows to be sent before the handshake, which could be sent twice. `ssl` does not tell; openssl does."""
    words = [
        "openssl",
        "s_client",
        "-connect",
        f"{SETTINGS['addresses']['tools.test']}:443",
        "-servername",
        "tools.test",
        "-tls1_3",
        "-CAfile",
        SETTINGS["roots"],
    ]
    ran = subprocess.run([*words, "-ign_eof"], input=message(None, "tools.test", "/mcp", "POST", "Connection: close"), capture_output=True, timeout=PATIENCE)
    found = re.findall(rb"Max Early Data: (\d+)", ran.stdout)
    return {"result": f"{sum(map(int, found))} bytes in {len(found)} tickets" if found else "no ticket"}


def at_once(count, action):
    """So many at once, and what came of how many."""
    found, lock, start = {}, threading.Lock(), threading.Barrier(count)

    def one():
        try:
            start.wait()
            said = action()["result"]
        except Exception as error:  # noqa: BLE001
            said = words(error)
        with lock:
            found[said] = found.get(said, 0) + 1

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"result": ", ".join(f"{count} {said}" for said, count in sorted(found.items()))}


@row
def hundred_at_once():
    shared = context("http/1.1")
    return at_once(100, lambda: asked(using=shared))


@row
def forty_by_alpn_at_once():
    """Of clients that speak both, of which each takes what it is offered."""
    shared = context("h2", "http/1.1")

    def one():
        with secure(using=shared) as made:
            if made.selected_alpn_protocol() == "h2":
                said = {"result": h2_answers(made, [h2_request()])[0]}
            else:
                said = told(made, message())
            time.sleep(1)
            return said

    return at_once(40, one)


@row
def http2_without_alpn():
    """Over HTTP/2, which the handshake has not agreed on."""
    with secure(using=context("http/1.1")) as made:
        return {"result": h2_answers(made, [h2_request()])[0]}


@row
def forty_over_http2_without_alpn():
    shared, rest = context("http/1.1"), threading.Event()

    def one():
        with secure(using=shared) as made:
            said = {"result": h2_answers(made, [h2_request()])[0]}
            rest.wait(1)
            return said

    return at_once(40, one)


@row
def host_of_another():
    return asked(request=message(host="page.test", target="/page", method="GET"))


@row
def host_with_its_port():
    return asked(request=message(host="tools.test:443"))


@row
def host_with_another_port():
    return asked(request=message(host="tools.test:8443"))


@row
def host_twice():
    return asked(request=message(None, "tools.test", "/mcp", "POST", "Host: tools.test"))


@row
def no_host():
    return asked(request=message().replace(b"Host: tools.test\r\n", b""))


@row
def absolute_form():
    return asked(request=message(target="https://tools.test/mcp"))


@row
def absolute_form_of_another():
    return asked(request=message(target="https://page.test/page", method="GET"))


@row
def absolute_form_plain():
    return asked(request=message(target="http://tools.test/mcp"))


@row
def other_path():
    return asked(request=message(target="/admin", method="GET"))


@row
def authorization_metadata():
    return asked(request=message(target="/.well-known/oauth-protected-resource/mcp", method="GET"))


@row
def hidden_tool():
    return asked(request=message(HIDDEN))


@row
def pipelined():
    """Three requests in one piece, of which the second is for another host."""
    with secure() as made:
        made.sendall(message() + message(host="page.test", target="/page", method="GET") + message())
        reader, answers = Whole(made), []
        for _ in range(3):
            answers.append(judged(*response(reader)))
        return {"result": " | ".join(answers)}


@row
def connect_inside():
    return asked(request=b"CONNECT page.test:443 HTTP/1.1\r\nHost: page.test:443\r\n\r\n")


def tunnel(target, name="tools.test", by="203.0.113.66"):
    wire = connect(by, 3128)
    wire.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        if not (piece := wire.recv(1)):
            raise EOFError(f"closed after {head!r}")
        head += piece
    status = int(head.split()[1])
    return asked(name, made=wire) if status == 200 else {"result": f"CONNECT: {status}"}


@row
def connect_tunnel():
    return tunnel("tools.test:443")


@row
def connect_tunnel_of_another():
    return tunnel("page.test:443")


@row
def no_server_name():
    using = context()
    using.check_hostname = False
    with using.wrap_socket(connect()) as made:
        return told(made, message())


@row
def server_name_of_another():
    """To the address of one, with the name of another: the name counts."""
    return asked("page.test", message(host="page.test", target="/page", method="GET"), made=connect("tools.test"))


@row
def capital_letters():
    return asked("TOOLS.Test", message(host="Tools.TEST"), made=connect())


@row
def other_port():
    with connect(port=9443) as wire, context().wrap_socket(wire, server_hostname="tools.test") as made:
        return told(made, message(host="tools.test:9443"))


@row
def plain_http():
    with connect() as wire:
        wire.sendall(message(host="tools.test:443"))
        return {"result": judged(*response(wire))}


@row
def not_intercepted():
    return asked("refused.test", message(host="refused.test"))


@row
def intercepted_and_refused():
    return asked("both.test", message(host="both.test"))


@row
def declared_later():
    return asked("later.test", message(host="later.test"))


@row
def undeclared_under_egress():
    return asked("other.test", message(host="other.test", target="/page", method="GET"))


@row
def below_a_declared_host():
    return asked("below.tools.test", message(host="below.tools.test", target="/page", method="GET"))


@row
def undeclared():
    return asked("third.test", message(host="third.test", target="/page", method="GET"))


@row
def garbage_after_client_hello():
    _, _, outgoing = begun()
    with connect() as wire:
        wire.sendall(outgoing.read() + b"\x16\x03\x03\x01\x00" + random.Random(1).randbytes(256))
        return {"result": rest_of(wire)}


@row
def http_after_client_hello():
    _, _, outgoing = begun()
    with connect() as wire:
        wire.sendall(outgoing.read() + message())
        return {"result": rest_of(wire)}


@row
def certificate_refused():
    """As a client that pins another certificate."""
    using = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return asked(using=using)


@row
def hung_up_in_handshake():
    _, _, outgoing = begun()
    with connect() as wire:
        wire.sendall(outgoing.read())
        wire.recv(65536)
    return {"result": "hung up"}


def rest_of(wire, drip=b""):
    """How the end of a connection comes, to which a byte of `drip` is sent each second."""
    began, drip = time.monotonic(), list(drip)
    wire.settimeout(1)
    end = "still open"
    while end == "still open" and time.monotonic() - began < STALLED:
        try:
            if not wire.recv(65536):
                end = "closed"
        except TimeoutError:
            with contextlib.suppress(OSError):
                wire.sendall(bytes(drip[:1]))
            drip = drip[1:]
        except OSError:
            end = "closed"
    return f"{end} within {5 * (int(time.monotonic() - began) // 5 + 1)} s"


def stall(name, first, drip=0):
    """Sends the first bytes of a ClientHello, and perhaps some of the next."""
    hello = begun(name)[2].read()
    with connect(name) as wire:
        wire.sendall(hello[:first])
        return rest_of(wire, hello[first : first + drip])


def stall_after_handshake(name):
    with secure(name) as made:
        return rest_of(made)


@row
def stalls():
    """All at once, since they take their time. Policies about this server do not change meanwhile."""
    kinds = {
        "half a ClientHello": lambda: stall("page.test", 100),
        "a byte of it each second": lambda: stall("page.test", 100, drip=STALLED),
        "a ClientHello alone": lambda: stall("page.test", 1 << 14),
        "a handshake alone": lambda: stall_after_handshake("page.test"),
    }
    with concurrent.futures.ThreadPoolExecutor(len(kinds)) as threads:
        ends = threads.map(lambda action: action(), kinds.values())
        return {"result": "; ".join(f"{name}: {end}" for name, end in zip(kinds, ends))}


@row
def while_open():
    """A connection that was opened, and a request for each line of stdin: policies change in between."""
    with secure() as made:
        said = told(made, message())["result"]
        for line in sys.stdin:
            print(json.dumps({"said": said}), flush=True)
            made.sendall(message(target=line.strip()))
            try:
                said = judged(*response(made))
            except (OSError, EOFError) as error:
                said = words(error)
                break
        return {"result": said}


def h2_request(body=None, host="tools.test", target="/mcp", method="POST"):
    fields = {":method": method, ":scheme": "https", ":authority": host, ":path": target, "accept": "application/json, text/event-stream"}
    return (fields | {"content-type": "application/json"}, json.dumps(body or CALL).encode()) if method == "POST" else (fields, b"")


def h2_answers(made, requests):
    """Requests on one connection, each on its own stream, one after another."""
    http = h2.connection.H2Connection()
    http.initiate_connection()
    answers = []
    for fields, text in requests:
        stream = http.get_next_available_stream_id()
        http.send_headers(stream, list(fields.items()), end_stream=not text)
        if text:
            http.send_data(stream, text, end_stream=True)
        status, body, ended = None, b"", False
        while not ended:
            made.sendall(http.data_to_send())
            if not (piece := made.recv(65536)):
                raise EOFError("closed")
            for event in http.receive_data(piece):
                if isinstance(event, h2.events.ConnectionTerminated):
                    raise EOFError(f"GOAWAY {event.error_code}")
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    http.acknowledge_received_data(event.flow_controlled_length, stream)
                ended = ended or isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
        answers.append(judged(status, body.decode("utf-8", "replace")))
    return answers


def h2_calls(*requests):
    with secure(using=context("h2")) as made:
        by = issuer(made)
        facts = {"by": "pod" if by == SETTINGS["intermediate"] else by, "tls": made.version(), "alpn": made.selected_alpn_protocol()}
        return facts | {"result": " | ".join(h2_answers(made, requests or [h2_request()]))}


@row
def http2_streams():
    """On one connection: a call, a hidden tool, another host, another path, and a call again."""
    page = h2_request(host="page.test", target="/page", method="GET")
    return h2_calls(h2_request(), h2_request(HIDDEN), page, h2_request(target="/admin", method="GET"), h2_request())


def words(error):
    text = f"{type(error).__name__}: {error}"
    for word, short in (
        ("ConnectionReset", "reset"),
        ("EOF occurred", "reset"),
        ("UNEXPECTED_EOF", "reset"),
        ("EOFError", "closed"),
        ("TimeoutError", "no answer"),
    ):
        if word in text:
            return short
    return text[:200]


def counted():
    found = {}
    with urllib.request.urlopen(METRICS, timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            name = line.partition("{")[0]
            if name in COUNTED:
                label = line.partition(f'{COUNTED[name]}="')[2].partition('"')[0]
                found[(name, label)] = found.get((name, label), 0) + float(line.rpartition(" ")[2])
    return found


def main():
    for name in sys.argv[2:]:
        before = counted()
        try:
            said = ROWS[name]()
        except (OSError, EOFError, ssl.SSLError) as error:
            said = {"result": words(error)}
        # What a closed connection counts comes after its client has seen the end.
        time.sleep(0.15)
        grew = {key: value - before.get(key, 0) for key, value in counted().items() if value != before.get(key, 0)}
        said["connections"] = {label: int(count) for (metric, label), count in grew.items() if "egress" in metric}
        said["handshakes"] = {label: int(count) for (metric, label), count in grew.items() if "egress" not in metric}
        print(json.dumps({"row": name} | said), flush=True)


main()
