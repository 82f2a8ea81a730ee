"""Attacks on a sidecar, and what must hold meanwhile."""

import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import wire
from cgroup import MIB
from stage import HERE, Broken, Honest, free_port, listens, wait_until

MOST = 4 * MIB
# What the operator gives a sidecar of 64 MiB.
HELD = 16 * MIB
SECOND = 1.0
# Where the small ports are attacked themselves: the kernel asks again after a second, and after two more, where its queue was full.
ATTACKED = 5.0


class Sidecar:
    """A sidecar in its control group, with the flags that the operator gives it there, and its server."""

    def __init__(self, scenario, settings, policies=None, upstream=()):
        self.scenario, self.upstream = scenario, free_port()
        server = scenario.processes.start("upstream", [sys.executable, HERE / "upstream.py", self.upstream, *upstream], stdout=subprocess.PIPE)
        if server.stdout.readline() != b"ready\n":
            raise Broken(f"the server does not run: {scenario.processes.said('upstream')}")
        self.file = scenario.processes.dir / "policy.json"
        self.write(policies(self.upstream) if policies else ordinary(self.upstream))
        self.proxy, self.metrics, self.admin = free_port(), free_port(), free_port()
        command = [settings.sidecar, "run", "--policy", self.file, "--max-held", HELD]
        for flag, port in (("--listen", self.proxy), ("--metrics-listen", self.metrics), ("--admin-listen", self.admin)):
            command += [flag, f"127.0.0.1:{port}"]
        # The audit log is read by nobody here; pages of a file would be counted.
        self.subject = scenario.subject("sidecar", settings.sidecar_mib, command, stdout=subprocess.DEVNULL)
        try:
            wait_until("the sidecar listens", lambda: self.subject.alive() and listens(self.admin))
        except Broken as error:
            raise type(error)(f"{error}; it said: {scenario.processes.said('sidecar')}") from None

    def write(self, policies):
        self.file.with_suffix(".new").write_text(json.dumps(policies))
        self.file.with_suffix(".new").rename(self.file)

    def strangers(self, settings):
        """How many connections they have: nearly all that there may be. Whoever has all keeps everybody out; that is said in the docs."""
        usage = subprocess.run([settings.sidecar, "run", "--help"], capture_output=True, text=True, check=True).stdout
        return int(re.search(r"--max-connections.*?default: (\d+)", usage, re.DOTALL)[1]) - 24

    def honest(self, *more):
        return Honest(self.scenario, f"call:{self.proxy}", *more)

    def judge(self, honest, names=(), seconds=SECOND, more=""):
        self.scenario.judge_memory(self.subject, more)
        honest.judge([seconds] + [ATTACKED] * len(names), ["another client's call", *names], len(names))


def policy(servers, name="bounds"):
    meta = {"name": name, "namespace": "bounds"}
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": meta, "spec": {"servers": servers}}


def ordinary(upstream):
    """A policy with a limit, for an ordinary server and for each hostile one."""
    tools = [{"name": "small*", "limits": [{"max": 1000000, "window": "hour"}]}, {"name": "big"}]
    url = f"http://127.0.0.1:{upstream}"
    servers = [{"name": "bench", "url": f"{url}/mcp", "tools": tools}]
    for kind in UPSTREAM_SERVERS:
        servers += [{"name": f"{kind}-{name}", "url": f"{url}/{kind}/{name}", "tools": tools} for name in UPSTREAM_SERVERS[kind]]
    return policy(servers)


ITEMS = ("zeros", "objects", "named", "keys", "deep", "result-keys")
STALLS = ("json", "event")
EVENTS = ("line", "lines", "returns", "comments")
DRIBBLES = [event + size for event in EVENTS for size in ("", "-quarter")]
UPSTREAM_SERVERS = {"items": ITEMS, "events": ITEMS, "dribble": DRIBBLES, "stall": STALLS}
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'


def opened(count, make, seconds=12):
    """So many connections, as far as they are let in within so many seconds: each as `make` leaves it; and how many are not."""
    streams, end = [], time.monotonic() + seconds
    for number in range(count):
        with contextlib.suppress(OSError):
            streams.append(make(number))
        if time.monotonic() > end:
            break
    return streams, count - len(streams)


def held_open(scenario, count, stranger, seconds, within=12):
    """So many connections, for so many seconds."""
    streams, refused = opened(count, stranger, within)
    with closing(streams):
        time.sleep(seconds)
    scenario.tell(f"{len(streams)} connections were let in, {refused} were not")


def in_turn(scenario, subject, ask, cases, at_once):
    """Asks each of the cases, so many times at once, and tells what it came to; ends where the program does. A case is its name and what
    is asked with."""
    for name, case in cases:
        before, began = subject.own, time.monotonic()

        def one():
            try:
                return ask(case)
            except (OSError, IndexError):
                return "cut"

        with ThreadPoolExecutor(at_once) as threads:
            asked = [threads.submit(one) for _ in range(at_once)]
        how = ", ".join(sorted({str(future.result()) for future in asked}))
        took, now = time.monotonic() - began, subject.own
        scenario.tell(f"{name}: HTTP {how} after {took:.2f} s; {before / MIB:.1f} -> {now / MIB:.1f} MiB its own")
        if not subject.alive():
            return


@contextlib.contextmanager
def closing(streams):
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


# ---- what waits for a client


def unread_h2(connections):
    def run(scenario, settings):
        """HTTP/2 connections with 128 calls each whose answers of 1 MiB they never read."""
        sidecar = Sidecar(scenario, settings)
        with sidecar.honest() as honest:

            def stranger(_):
                stream = wire.connect(sidecar.proxy, receive=4096)
                stream.sendall(wire.begin(wire.LARGEST_WINDOW))
                for number in range(128):
                    stream.sendall(wire.request(2 * number + 1, "/bench", wire.call("big", number=number + 1)))
                return stream

            held_open(scenario, connections, stranger, 4)
        sidecar.judge(honest)

    return run


def unread_h1(scenario, settings):
    """As many HTTP/1.1 connections as there may be that never read an answer of 1 MiB."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:

        def stranger(_):
            stream = wire.connect(sidecar.proxy, receive=4096)
            stream.sendall(wire.post("/bench", wire.call("big")))
            return stream

        held_open(scenario, sidecar.strangers(settings), stranger, 3)
    # Whoever finds no place for the only request of a connection waits for one for up to 4 s.
    sidecar.judge(honest, seconds=5)


def endless_bodies(scenario, settings):
    """As many HTTP/2 connections as there may be whose requests' bodies never end, each as far as its windows let it."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:
        piece = wire.frame(wire.DATA, 0, 1, b" " * 16384)[9:]

        def stranger(_):
            stream = wire.connect(sidecar.proxy, timeout=5)
            stream.sendall(wire.begin())
            stream.setblocking(False)
            fields = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
            buffer = b"".join(wire.head(2 * n + 1, "/bench", fields) for n in range(64))
            # The first window of a connection is 64 KiB; what the sidecar adds is told on it. Each stream gets 16 KiB of a time.
            buffer += b"".join(wire.frame(wire.DATA, 0, 2 * n + 1, piece[:16000]) for n in range(4))
            with contextlib.suppress(BlockingIOError):
                stream.send(buffer)
            return stream

        streams, refused = opened(sidecar.strangers(settings), stranger)

        def more():
            """The rest of the connection's window: 1 MiB, 16 KB for each stream."""
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.send(b"".join(wire.frame(wire.DATA, 0, 2 * n + 1, piece[:16000]) for n in range(4, 64)))

        with closing(streams):
            time.sleep(0.5)
            more()
            time.sleep(3)
        scenario.tell(f"{len(streams)} connections were let in, {refused} refused")
    sidecar.judge(honest)


def endless_bodies_h1(scenario, settings):
    """As many HTTP/1.1 connections as there may be that send 64 KiB of a body of 4 MiB and no more."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:

        def stranger(_):
            stream = wire.connect(sidecar.proxy, timeout=5)
            stream.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stream.send(wire.post("/bench", b" " * MOST)[: 64 * 1024])
            return stream

        held_open(scenario, sidecar.strangers(settings), stranger, 3)
    # Bodies are read where there is room, and who waits for room is told so after a second: that is no answer to an honest client's
    # call. It must not be refused, though.
    sidecar.judge(honest, seconds=5)


def refused_bodies(scenario, settings):
    """As many HTTP/1.1 connections as there may be with a body in chunks that is larger than may be, and no end."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:
        head = f"POST /bench HTTP/1.1\r\nHost: localhost\r\n{wire.JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
        body = b"%x\r\n%s\r\n" % (MOST + 64, b" " * (MOST + 64))

        def stranger(_):
            stream = wire.connect(sidecar.proxy, timeout=2)
            with contextlib.suppress(OSError):
                stream.sendall(head + body)
            return stream

        held_open(scenario, sidecar.strangers(settings), stranger, 3)
    # As with bodies: who waits for room is told so.
    sidecar.judge(honest, seconds=5)


def half_heads_h1(scenario, settings):
    """As many HTTP/1.1 connections as there may be with 60 KiB of a request's head and no end."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:

        def stranger(_):
            stream = wire.connect(sidecar.proxy, timeout=1)
            stream.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stream.send(b"POST /bench HTTP/1.1\r\nHost: localhost\r\n" + b"X-Pad: " + b"x" * 60_000)
            return stream

        held_open(scenario, sidecar.strangers(settings), stranger, 3)
    sidecar.judge(honest)


def heads_h2(scenario, settings):
    """200 HTTP/2 connections with 128 requests each, of 12 KB of fields, whose bodies do not come."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:
        fields = [("content-type", "application/json"), ("accept", "application/json, text/event-stream"), ("x-pad", "x" * 12_000)]
        heads = b"".join(wire.head(2 * n + 1, "/bench", fields) for n in range(128))

        def stranger(_):
            stream = wire.connect(sidecar.proxy, timeout=2)
            stream.sendall(wire.begin() + heads)
            return stream

        held_open(scenario, 200, stranger, 3)
    sidecar.judge(honest)


def stalled_lists(scenario, settings):
    """100 lists of tools of which 3 MiB come and the rest does not, as JSON and as events."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest() as honest:

        def stranger(number):
            stream = wire.connect(sidecar.proxy)
            stream.sendall(wire.post(f"/stall-{STALLS[number % 2]}", LIST))
            return stream

        held_open(scenario, 100, stranger, 3)
    # An honest call may have to wait for room among them.
    sidecar.judge(honest, seconds=5)


# ---- what is parsed


def _many(template, most=MOST - 256):
    """As many members or elements as fit, each with a number of its own."""
    parts, length, number = [], 0, 0
    while length < most - 32:
        parts.append(template % number)
        length, number = length + len(parts[-1]) + 1, number + 1
    return b",".join(parts)


def messages():
    keys, zeros = _many(b'"%x":0'), b",".join([b"0"] * ((MOST - 512) // 2))
    head = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"'
    return {
        "keys in params": head + b',"params":{"name":"small","arguments":{},%s}}' % keys,
        "keys in arguments": head + b',"params":{"name":"small","arguments":{%s}}}' % keys,
        "keys of the message": head + b',"params":{"name":"small","arguments":{}},%s}' % keys,
        "keys in _meta": head + b',"params":{"_meta":{%s},"name":"small","arguments":{}}}' % keys,
        "zeros in arguments": head + b',"params":{"name":"small","arguments":{"a":[%s]}}}' % zeros,
        "objects in params": head + b',"params":{"name":"small","arguments":{},"a":[%s]}}' % b",".join([b"{}"] * ((MOST - 512) // 3)),
        "a batch": b"[%s]" % _many(head + b',"id":%d}'),
    }


def keys(at_once):
    def run(scenario, settings):
        """Messages of 4 MiB with as many keys or values as fit."""
        sidecar = Sidecar(scenario, settings)
        with sidecar.honest() as honest:
            cases = [(name, wire.post("/bench", body)) for name, body in messages().items()]
            in_turn(scenario, sidecar.subject, lambda request: wire.ask(sidecar.proxy, request)[0], cases, at_once)
        # Where 16 messages of 4 MiB come at once, an honest call waits for room like them.
        sidecar.judge(honest, seconds=SECOND if at_once == 1 else 3)

    return run


def items(at_once):
    def run(scenario, settings):
        """Answers to tools/list of 4 MiB with as many items as fit, as JSON and as an event."""
        sidecar = Sidecar(scenario, settings, upstream=["lists"])
        with sidecar.honest() as honest:
            cases = [(f"{kind} {name}", wire.post(f"/{kind}-{name}", LIST)) for kind in ("items", "events") for name in ITEMS]
            in_turn(scenario, sidecar.subject, lambda request: wire.ask(sidecar.proxy, request)[0], cases, at_once)
        sidecar.judge(honest, seconds=SECOND if at_once == 1 else 3)

    return run


# ---- the small ports


def half_heads(port):
    def run(scenario, settings):
        """3 000 connections with 15 KiB of a request's head and no end."""
        sidecar = Sidecar(scenario, settings)
        attacked = getattr(sidecar, port)
        page = "metrics" if port == "metrics" else "limits"
        with sidecar.honest(f"get:{attacked}/{page}") as honest:

            def stranger(_):
                stream = wire.connect(attacked, timeout=1)
                stream.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    stream.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X-Pad: " + b"x" * 15000)
                return stream

            held_open(scenario, 3000, stranger, 3, within=6)
        sidecar.judge(honest, [f"/{page} of the port that is attacked"])

    return run


def slow_scrapes(scenario, settings):
    """1 000 connections that ask for the metrics ten times over and never read."""
    sidecar = Sidecar(scenario, settings)
    with sidecar.honest(f"get:{sidecar.metrics}/metrics") as honest:

        def stranger(_):
            stream = wire.connect(sidecar.metrics, receive=2304, timeout=1)
            stream.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
            return stream

        held_open(scenario, 1000, stranger, 3)
    sidecar.judge(honest, ["/metrics"])


# ---- time


LETTERS = "a" * (MOST - 2**17)
HALF = "a" * (MOST // 2 - 2**16)
# A text that no automaton of few states has done with.
MIXED = "".join(random.Random(11).choices("ab", k=len(LETTERS)))
SHORT = ["aaaaaaaaaaab%d" % number for number in range(4000)]
EXPRESSIONS = {
    # One validation each: a name, the expression, the arguments.
    "contains in all": ("args.a.all(x, !args.text.contains(x))", {"a": SHORT, "text": LETTERS}),
    "contains of a long text": ("!args.text.contains(args.b)", {"text": "a" * (2 * 2**20), "b": "a" * 2**20 + "b"}),
    "startsWith in all": ("args.a.all(x, !args.text.startsWith(args.b))", {"a": SHORT, "text": HALF, "b": HALF + "b"}),
    "size in all": ("args.a.all(x, size(args.text) > 1)", {"a": SHORT, "text": LETTERS}),
    "equal in all": ("args.a.all(x, args.text == args.b)", {"a": SHORT, "text": HALF, "b": HALF}),
    "less in all": ("args.a.all(x, args.text <= args.b)", {"a": SHORT, "text": HALF, "b": HALF}),
    "lists in all": ("args.a.all(x, args.a == args.b)", {"a": SHORT[:2000], "b": SHORT[:2000]}),
    "in in all": ("args.a.all(x, !('z' in args.a))", {"a": SHORT}),
    "copies in all": ("args.a.all(x, bytes(args.text) != b'1')", {"a": SHORT, "text": LETTERS}),
    "sums in all": ("args.a.all(x, args.text + 'a' != 'b')", {"a": SHORT, "text": LETTERS}),
    "strings in all": ("args.a.all(x, string(args.text) != 'b')", {"a": SHORT, "text": LETTERS}),
    "filter": ("size(args.a.filter(x, args.text.contains(x))) == 0", {"a": SHORT, "text": LETTERS}),
    "map": ("size(args.a.map(x, x)) == 4000", {"a": SHORT}),
    "number": ("int(args.text) != 1", {"text": "0" * len(LETTERS)}),
    "equal": ("args.text == args.b", {"text": HALF, "b": HALF}),
    "pattern of a class": (r"!args.text.matches('(\\pL{1,60} ){5}$')", {"text": LETTERS}),
    "pattern of a small class": (r"!args.text.matches('(\\pL{1,9} ){2}$')", {"text": MIXED}),
    "pattern of repeats": ("!args.text.matches('^(a?){40}a{40}b')", {"text": LETTERS}),
    "pattern of dots": ("!args.text.matches('(.*a.*){12}b')", {"text": LETTERS}),
    "pattern of states": ("!args.text.matches('[ab]*a[ab]{14}c')", {"text": MIXED}),
    "pattern of many states": ("!args.text.matches('[ab]*a[ab]{400}c')", {"text": MIXED}),
    "pattern of words": (r"!args.text.matches('\\pL*a\\pL{40}c')", {"text": MIXED}),
    "pattern in all": ("args.a.all(x, !args.text.matches('[ab]*a[ab]{8}c'))", {"a": SHORT, "text": MIXED}),
}
GLOBS = ["*%sb%d*" % ("a" * 100, number) for number in range(1024)]


def expressions(upstream, which, key_and_cost=True):
    tools = [{"name": "small", "validations": []}]
    tools += [{"name": f"e{place}", "validations": [{"expression": EXPRESSIONS[name][0]}]} for place, name in enumerate(which)]
    if key_and_cost:
        tools.append({"name": "counted", "limits": [{"max": 10**9, "window": "hour", "key": "args.text", "cost": "size(args.text)"}]})
    url = f"http://127.0.0.1:{upstream}/mcp"
    globs = [{"name": name} for name in GLOBS]
    return policy([{"name": "bench", "url": url, "tools": tools}, {"name": "globs", "url": url, "tools": globs}])


def compiled(scenario, settings):
    """Which of the expressions this sidecar takes; what it refuses costs nothing."""
    taken = []
    for name in EXPRESSIONS:
        file = scenario.processes.dir / "check.json"
        file.write_text(json.dumps(expressions(9, [name], False)))
        checked = subprocess.run([settings.sidecar, "check", file], capture_output=True, text=True, timeout=30)
        if checked.returncode == 0:
            taken.append(name)
        else:
            scenario.tell(f"{name}: refused when it is compiled: {(checked.stdout + checked.stderr).strip().splitlines()[0][-200:]}")
    if len(taken) < len(EXPRESSIONS) // 2:
        raise Broken(f"only {len(taken)} of {len(EXPRESSIONS)} expressions compile: nothing is measured")
    return taken


def questions(taken):
    """What is asked: a name, the server, the tool, the arguments."""
    asked = [(name, "bench", f"e{place}", EXPRESSIONS[name][1]) for place, name in enumerate(taken)]
    asked.append(("key and cost", "bench", "counted", {"text": LETTERS}))
    asked.append(("1 024 globs", "globs", "a" * (MOST - 1024), {}))
    return asked


def decisions(scenario, settings):
    """Calls of 4 MiB that cost a policy's expressions, patterns and globs as much as they can."""
    taken = compiled(scenario, settings)
    sidecar = Sidecar(scenario, settings, lambda upstream: expressions(upstream, taken))
    slow, longest = [], 0.0
    with sidecar.honest() as honest:
        for name, server, tool, arguments in questions(taken):
            request = wire.post(f"/{server}", wire.call(tool, json.dumps(arguments).encode()))
            best = None
            # Other work on the machine may hold up one of three, not all.
            for _ in range(3):
                try:
                    status, body, took = wire.ask(sidecar.proxy, request, timeout=settings.patience)
                    how = f"HTTP {status} {reason(body)}"
                except TimeoutError:
                    took, how = settings.patience, "no answer"
                except OSError as error:
                    took, how = settings.patience, str(error)
                best = min(best or took, took)
                if best <= 0.1 or took > 2:
                    break
            longest = max(longest, best)
            text = f"{name}: {best * 1000:.0f} ms, {how}"
            scenario.tell(text)
            if best > 0.1:
                slow.append(text)
    scenario.in_time(not slow, f"the longest call takes {longest * 1000:.0f} ms" + ("; over it: " + "; ".join(slow) if slow else ""), "<= 100 ms")
    sidecar.judge(honest)


def reason(body):
    try:
        answer = json.loads(body)
        return answer["result"]["_meta"]["toolweir.dev/denial"]["reason"]
    except (ValueError, KeyError, TypeError):
        return "allowed" if b'"content":[]' in body else body[:120].decode(errors="replace")


def explanations(scenario, settings):
    """The same asked of /explain, four at once, without an end, while policies are loaded anew."""
    taken = compiled(scenario, settings)
    sidecar = Sidecar(scenario, settings, lambda upstream: expressions(upstream, taken))
    over, asked = threading.Event(), []

    def stranger(share):
        # 256 KiB are taken: less of the long texts, the same items.
        while not over.is_set():
            for name, server, tool, arguments in share:
                texts = sum(isinstance(value, str) for value in arguments.values())
                most = 160_000 // max(1, texts)
                short = {key: value[:most] if isinstance(value, str) else value for key, value in arguments.items()}
                body = json.dumps({"server": server, "tool": tool[:200_000], "arguments": short}).encode()
                try:
                    status, _, took = wire.ask(sidecar.admin, wire.post("/explain", body), timeout=settings.patience)
                    asked.append((took, name, status))
                except OSError as error:
                    asked.append((settings.patience, name, str(error)))
                if over.is_set():
                    return

    everything = questions(taken)
    threads = [threading.Thread(target=stranger, args=(everything[place::4],), daemon=True) for place in range(4)]
    with sidecar.honest(f"get:{sidecar.metrics}/readyz") as honest:
        for thread in threads:
            thread.start()
        time.sleep(2)
        reloads = []
        for number in range(3):
            changed = expressions(sidecar.upstream, taken)
            changed["metadata"]["name"] = f"bounds-{number}"
            began = time.monotonic()
            sidecar.write(changed)
            found = f"bounds-{number}".encode()
            try:
                wait_until("the policy", lambda: found in wire.ask(sidecar.metrics, _get("/metrics"), timeout=20)[1], settings.patience)
            except Broken:
                pass
            reloads.append(time.monotonic() - began)
        over.set()
        for thread in threads:
            thread.join(settings.patience + 1)
    answered = [took for took, _, status in asked if status == 200]
    scenario.require(bool(answered), f"{len(answered)} of {len(asked)} questions answered, the longest in {max(answered, default=0) * 1000:.0f} ms", "some")
    scenario.in_time(max(reloads) <= 2, f"a changed policy is in force after {max(reloads):.2f} s at most", "<= 2 s")
    sidecar.judge(honest, ["/readyz"])


def _get(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def single_bytes(scenario, settings):
    """Events of 1 and 4 MiB that must be read and come in single bytes; and such requests."""
    sidecar = Sidecar(scenario, settings, upstream=["events"])

    def spent(request):
        """Seconds of CPU, and how it ended."""
        before = sidecar.subject.cpu()
        try:
            how = f"HTTP {wire.ask(sidecar.proxy, request, timeout=settings.patience)[0]}"
        except OSError as error:
            how = str(error)
        return sidecar.subject.cpu() - before, how

    def chunked(bytes_):
        body = wire.call("small", b'{"text":"%s"}' % (b"x" * (bytes_ - 512)))
        head = f"POST /bench HTTP/1.1\r\nHost: localhost\r\n{wire.JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
        return head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    sent = {f"the event `{name}`": [wire.post(f"/dribble-{name}{size}", LIST) for size in ("-quarter", "")] for name in EVENTS}
    sent["a request"] = [chunked(MOST // 4), chunked(MOST)]
    slow = []
    with sidecar.honest() as honest:
        for name, (quarter, whole) in sent.items():
            (less, _), (more, how) = spent(quarter), spent(whole)
            text = f"{name}: {less:.2f} s of CPU for 1 MiB, {more:.2f} s for 4 MiB, {how}"
            scenario.tell(text)
            # Four times as much takes four times as long; where it is short, ticks of the clock matter. The bounds in seconds are
            # far off, so that a busy machine keeps them: what is not linear takes minutes. Comment lines pass one by one, each as a
            # write of its own.
            if more >= (60 if "comments" in name else 12) or more > 6 * less + 0.5 or "HTTP" not in how:
                slow.append(text)
    scenario.in_time(not slow, "; ".join(slow) or "each event and request", "linear, < 3 s of CPU for a MiB, < 15 s where half a million lines pass one by one")
    sidecar.judge(honest)


def one_byte(scenario, settings):
    """As many connections as there may be that have sent one byte, or some of HTTP/2's first 24, and wait."""
    sidecar = Sidecar(scenario, settings)

    def stranger(number):
        stream = wire.connect(sidecar.proxy)
        # Half of them as if HTTP/2 began.
        stream.sendall(wire.PREFACE[: 1 + number % 20])
        return stream

    streams, _ = opened(sidecar.strangers(settings), stranger)
    with closing(streams):
        time.sleep(1)
        # Without an honest client, whose calls would be counted.
        before = sidecar.subject.cpu()
        time.sleep(10)
        share = 100 * (sidecar.subject.cpu() - before) / 10
        with sidecar.honest() as honest:
            time.sleep(1)
    scenario.in_time(share < 2, f"{share:.1f} % of a core, {len(streams)} connections", "< 2 %")
    sidecar.judge(honest)


SCENARIOS = {
    "h2-unread-1": unread_h2(1),
    "h2-unread-4": unread_h2(4),
    "h1-unread": unread_h1,
    "bodies-h2": endless_bodies,
    "bodies-h1": endless_bodies_h1,
    "bodies-refused": refused_bodies,
    "heads-h1": half_heads_h1,
    "heads-h2": heads_h2,
    "lists-stalled": stalled_lists,
    "keys": keys(1),
    "keys-16": keys(16),
    "items": items(1),
    "items-8": items(8),
    "heads-metrics": half_heads("metrics"),
    "heads-admin": half_heads("admin"),
    "scrapes": slow_scrapes,
    "decisions": decisions,
    "explain": explanations,
    "single-bytes": single_bytes,
    "one-byte": one_byte,
}
