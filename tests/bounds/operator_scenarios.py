"""Attacks on an operator by clients that can connect to it, and what must hold meanwhile."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import wire
from cgroup import MIB
from sidecar_scenarios import closing, held_open, in_turn, opened
from stage import HERE, Broken, Honest, free_port, wait_until

NAMESPACE, NAME = "toolweir-system", "toolweir-operator.toolweir-system.svc"
LARGEST = 8 * MIB
# What the chart gives the API server to wait for a webhook, and the kubelet for a probe.
TIMEOUT, PROBE = 5.0, 2.0


def begin():
    """The objects of a cluster with one pod that has a sidecar, by their paths."""
    service = {"clientConfig": {"service": {"name": "toolweir-operator", "namespace": NAMESPACE}}}
    admission = "/apis/admissionregistration.k8s.io/v1"
    injector = [{"name": "namespaces.inject.toolweir.dev"} | service, {"name": "pods.inject.toolweir.dev"} | service]
    sidecar = {"name": "toolweir-sidecar", "image": "localhost/none", "restartPolicy": "Always"}
    pod = {
        "metadata": {"uid": "u1", "labels": {"app": "agent"}},
        "spec": {"initContainers": [sidecar], "containers": [{"name": "agent", "image": "localhost/none"}]},
        "status": {"phase": "Running"},
    }
    kinds = {"pods/agent-1": pod}
    return {
        f"/api/v1/namespaces/{NAMESPACE}": {},
        "/api/v1/namespaces/agents": {"metadata": {"labels": {"toolweir.dev/inject": "enabled"}}},
        "/apis/toolweir.dev/v1alpha1/namespaces/agents/mcppolicies/facebook": policy(),
        f"{admission}/mutatingwebhookconfigurations/toolweir-injector": {"webhooks": json.loads(json.dumps(injector))},
        f"{admission}/validatingwebhookconfigurations/toolweir-policies": {"webhooks": [{"name": "policies.toolweir.dev"} | service]},
    } | {f"/api/v1/namespaces/agents/{name}": found for name, found in kinds.items()}


def policy(tools=None, servers=None):
    tools = tools or [{"name": "send_message", "limits": [{"max": 30, "window": "minute"}]}]
    servers = servers or [{"name": "facebook", "url": "http://facebook.tools.svc/mcp", "tools": tools}]
    meta = {"name": "facebook", "namespace": "agents", "uid": "u2", "generation": 1}
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": meta, "spec": {"podSelector": {}, "servers": servers}}


def pod(env=0):
    """A pod as somebody creates it; with so many environment variables."""
    container = {"name": "agent", "image": "localhost/none", "env": [{"name": f"VARIABLE_{n}", "value": "x" * 60} for n in range(env)]}
    spec = {"containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-2", "namespace": "agents"}, "spec": spec}


def review(found, old=None, operation="CREATE"):
    group, _, version = found["apiVersion"].rpartition("/")
    request = {
        "uid": "8b7a0a4c-0000-4000-8000-000000000000",
        "kind": {"group": group, "version": version, "kind": found["kind"]},
        "resource": {"group": group, "version": version, "resource": "pods" if found["kind"] == "Pod" else "mcppolicies"},
        "namespace": "agents",
        "operation": operation,
        "userInfo": {"username": "somebody"},
        "object": found,
        "oldObject": old,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()

LARGE_REVIEW = "a review of two objects of 3 MiB"


class Operator:
    """An operator in its control group, with a cluster that is only its API server."""

    def __init__(self, scenario, settings):
        self.scenario, folder, self.patience = scenario, scenario.processes.dir, settings.patience
        api = free_port()
        (folder / "begin.json").write_text(json.dumps(begin()))
        server = scenario.processes.start("apiserver", [sys.executable, HERE / "apiserver.py", api, folder / "begin.json"], stdout=subprocess.PIPE)
        if server.stdout.readline() != b"ready\n":
            raise Broken(f"the API server does not run: {scenario.processes.said('apiserver')}")
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{api}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        known = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}], "current-context": "c"}
        (folder / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config"} | known))
        (folder / "config.yaml").write_text("{}\n")
        # Every port that it knows, one of this machine for each.
        usage = subprocess.run([settings.operator, "run", "--help"], capture_output=True, text=True, check=True).stdout
        self.ports = {name: free_port() for name in re.findall(r"--(\w+)-listen ", usage)}
        names = [f"--{name}={value}" for name, value in (("namespace", NAMESPACE), ("pod-name", "operator-1"), ("pod-uid", "u0"))]
        listen = [f"--{name}-listen=127.0.0.1:{port}" for name, port in self.ports.items()]
        command = [settings.operator, "run", f"--config={folder / 'config.yaml'}", *names, *listen, "--log-level=warn"]
        environment = os.environ | {"KUBECONFIG": str(folder / "kubeconfig")}
        self.subject = scenario.subject("operator", settings.operator_mib, command, env=environment)
        self.metrics, self.webhook, self.stream = self.ports["metrics"], self.ports["webhook"], self.ports["stream"]
        self.probes = next((port for name, port in self.ports.items() if "probe" in name or "health" in name), self.metrics)
        try:
            wait_until("the operator is ready", lambda: self.subject.alive() and self.get(self.probes, "/readyz"), 20)
            self.ca = self.get(self.metrics, "/ca.pem")
        except Broken as error:
            raise type(error)(f"{error}; it said: {scenario.processes.said('operator')}") from None
        (folder / "ca.pem").write_bytes(self.ca)
        self.reviews = {
            "pod": review(pod()),
            "policy": review(policy()),
            "pod-large": review(pod(env=32_000), pod(env=32_000), "UPDATE"),
        }
        for name, body in self.reviews.items():
            (folder / f"{name}.json").write_bytes(body)
        if min(len(json.dumps(pod(env=32_000))), LARGEST - len(self.reviews["pod-large"])) < 0:
            raise Broken("the large review is larger than is read")

    def get(self, port, path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read()
        except urllib.error.HTTPError:
            return None

    def honest(self, *more, policies=True, large=False):
        def ask(name, every=1):
            folder = self.scenario.processes.dir
            return f"review:{self.webhook}:{folder / f'{name}.json'}:{folder / 'ca.pem'}:{NAME}:{every}"

        asked = {"a pod's review": ask("pod")}
        asked |= {"a policy's review": ask("policy")} if policies else {}
        asked |= {LARGE_REVIEW: ask("pod-large", 5)} if large else {}
        self.asked = list(asked)
        return Honest(self.scenario, *asked.values(), *more)

    def judge(self, honest, more=(), most=TIMEOUT):
        """Reviews within the webhook's time-out; what else was asked within a probe's."""
        self.scenario.judge_memory(self.subject)
        # A review of 6 MiB is given all but the longest that an API server waits for a webhook.
        limits = [9 if name == LARGE_REVIEW else most for name in self.asked]
        honest.judge(limits + [PROBE] * len(more), self.asked + list(more), len(more), once=[LARGE_REVIEW])

    def tls(self, port, protocol="h2", timeout=10):
        """A connection as somebody makes it who does not care whom it leads to."""
        stream = _context(protocol).wrap_socket(wire.connect(port, timeout=timeout), server_hostname=NAME)
        return stream


_contexts = {}


def _context(protocol):
    if protocol not in _contexts:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        _contexts[protocol] = context
    return _contexts[protocol]


def hello():
    """The first message of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = _context("h2").wrap_bio(incoming, outgoing, server_hostname=NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


def worst():
    """Reviews of 8 MiB: where, and of what."""
    frame = b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","namespace":"agents",%s}}'
    kind = b'"kind":{"kind":"%s"}'

    def filled(item):
        return b",".join([item] * ((LARGEST - 4096) // (len(item) + 1)))

    def keyed(value):
        parts, length, number = [], 0, 0
        while length < LARGEST - 4096:
            parts.append(b'"%x":%s' % (number, value))
            length, number = length + len(parts[-1]) + 1, number + 1
        return b",".join(parts)

    for name in (b"Pod", b"MCPPolicy"):
        head = kind % name + b',"object":{"metadata":{"name":"a"},"spec":%s}'
        yield f"{name.decode()} of zeros", frame % (head % (b"[%s]" % filled(b"0")))
        yield f"{name.decode()} of objects", frame % (head % (b"[%s]" % filled(b"{}")))
        yield f"{name.decode()} of keys", frame % (head % (b"{%s}" % keyed(b"0")))
        yield f"{name.decode()} of nested lists", frame % (head % (b"[%s]" % filled(b"[" * 60 + b"]" * 60)))
        yield f"{name.decode()} of nested objects", frame % (head % (b"[%s]" % filled(b'{"":' * 60 + b"0" + b"}" * 60)))
    rest = kind % b"Pod" + b',"object":{"metadata":{"name":"a"},"spec":{"containers":[]}}'
    yield "an old object of zeros", frame % (rest + b',"oldObject":[%s]' % filled(b"0"))
    yield "options of objects", frame % (rest + b',"options":[%s]' % filled(b"{}"))
    containers = kind % b"Pod" + b',"object":{"metadata":{"name":"a"},"spec":{"containers":[%s]}}' % filled(b'{"name":"a"}')
    yield "containers", frame % containers
    tools = kind % b"MCPPolicy" + b',"object":{"metadata":{"name":"a"},"spec":{"servers":[{"name":"a","tools":[%s]}]}}' % filled(b'{"name":"a"}')
    yield "tools", frame % tools
    yield "strings", frame % (kind % b"Pod" + b',"object":{"metadata":{"name":"a"},"spec":["%s"]}' % (rb"\u00e9" * ((LARGEST - 4096) // 6)))


def reviews(at_once):
    def run(scenario, settings):
        """Reviews of 8 MiB of the worst JSON, to both webhooks."""
        operator = Operator(scenario, settings)
        with operator.honest(large=True) as honest:
            # One connection's worth of patience for the first honest answers.
            time.sleep(0.5)

            def ask(request):
                with operator.tls(operator.webhook, "http/1.1", timeout=settings.patience) as stream:
                    # Who refuses early stops reading.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                        stream.sendall(request)
                    return wire.response(stream)[0]

            plain = "Content-Type: application/json\r\n"
            cases = ((f"{path} {name}", wire.post(path, body, plain)) for name, body in worst() for path in ("/inject", "/validate"))
            in_turn(scenario, operator.subject, ask, cases, at_once)
        operator.judge(honest)

    return run


def slow_reviews(scenario, settings):
    """600 connections that begin a review of 8 MiB, send 512 KiB of it and no more; of every second one the length is not known."""
    operator = Operator(scenario, settings)
    with operator.honest(large=True) as honest:
        body = b'{"request":' + b" " * (512 * 1024)
        head = b"POST /inject HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sized = head + b"Content-Length: %d\r\n\r\n" % (LARGEST - 1024) + body
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (LARGEST - 1024) + body

        def stranger(number):
            stream = operator.tls(operator.webhook, "http/1.1", timeout=3)
            with contextlib.suppress(TimeoutError):
                stream.sendall(chunked if number % 2 else sized)
            return stream

        held_open(scenario, 600, stranger, 4)
    operator.judge(honest)


def slow_reviews_h2(scenario, settings):
    """150 HTTP/2 connections with 100 reviews each that begin, with 12 KB of fields, and do not end."""
    operator = Operator(scenario, settings)
    with operator.honest() as honest:

        def stranger(_):
            stream = operator.tls(operator.webhook, timeout=3)
            stream.sendall(wire.begin())
            fields = [("content-type", "application/json"), ("x-pad", "x" * 12_000)]
            heads = [wire.head(2 * n + 1, "/inject", fields, scheme="https", authority=NAME) for n in range(100)]
            # The connection's first window is 64 KiB; what the operator adds to it comes later.
            stream.sendall(b"".join(heads) + b"".join(wire.frame(wire.DATA, 0, 2 * n + 1, b" " * 640) for n in range(100)))
            time.sleep(0.005)
            with contextlib.suppress(OSError):
                stream.sendall(b"".join(wire.frame(wire.DATA, 0, 2 * n + 1, b" " * 1900) for n in range(100)))
            return stream

        held_open(scenario, 150, stranger, 3)
    operator.judge(honest)


def patterns(clients):
    def run(scenario, settings):
        """Policies of expensive patterns without a pause, from one client, or from 16, which may keep policies of others waiting, not pods."""
        operator = Operator(scenario, settings)
        classes = [r"\pL{%d}" % number for number in range(80, 100)]

        def made(count, pattern):
            expressions = [{"expression": f"!args.a{n}.matches('{pattern}')".replace("\\", "\\\\")} for n in range(count)]
            spread = [expressions[at : at + 16] for at in range(0, count, 16)]
            return policy([{"name": f"tool{n}", "validations": part} for n, part in enumerate(spread)])

        sent = {
            "a few hundred bytes": review(made(3, "".join(classes[:4]))),
            "256 patterns": review(made(256, "".join(classes[:3]))),
            "4 096 patterns": review(made(4096, r"(\w{40}|x){2}")),
            "nested repeats": review(made(64, r"((a{30}){30}){10}")),
            "many alternatives": review(made(64, "(" + "|".join(r"\pL{%d}" % n for n in range(20, 60)) + ")")),
        }
        over, answers, errors = threading.Event(), [], []

        def stranger(number):
            names = list(sent)
            while not over.is_set():
                name = names[number % len(names)]
                number += 1
                began = time.monotonic()
                try:
                    with operator.tls(operator.webhook, "http/1.1", timeout=settings.patience) as stream:
                        stream.sendall(wire.post("/validate", sent[name], "Content-Type: application/json\r\n"))
                        status, body = wire.response(stream)
                    allowed = b'"allowed":true' in body
                    answers.append((time.monotonic() - began, name, status, allowed))
                except (OSError, IndexError) as error:
                    errors.append((name, str(error)))

        with operator.honest(f"get:{operator.probes}/readyz", policies=clients == 1) as honest:
            time.sleep(0.3)
            before = operator.subject.cpu()
            threads = [threading.Thread(target=stranger, args=(number,), daemon=True) for number in range(clients)]
            for thread in threads:
                thread.start()
            time.sleep(8)
            over.set()
            for thread in threads:
                thread.join(settings.patience)
            spent = operator.subject.cpu() - before
        for name in sent:
            took = [answer for answer in answers if answer[1] == name]
            failed = sum(1 for other, _ in errors if other == name)
            how = {f"HTTP {status}{' allowed' if allowed else ''}" for _, _, status, allowed in took}
            longest = max((answer[0] for answer in took), default=0)
            scenario.tell(f"{name}, {len(sent[name])} bytes: {len(took)} answers ({', '.join(sorted(how))}), the longest after {longest:.2f} s, {failed} cut")
        scenario.tell(f"{spent:.1f} s of CPU")
        operator.judge(honest, ["/readyz"])

    return run


def stream(operator, seconds):
    """An honest sidecar's stream: how long until its policies are there."""
    began = time.monotonic()
    context = ssl.create_default_context(cadata=operator.ca.decode())
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", operator.stream), seconds) as plain:
        plain.settimeout(seconds)
        with context.wrap_socket(plain, server_hostname=NAME) as secure:
            fields = [("authorization", "Bearer agents/agent-1/u1"), ("content-type", "application/x-ndjson")]
            secure.sendall(wire.begin() + wire.head(1, "/v1/policies", fields, scheme="https", authority=NAME))
            buffer, body = bytearray(), b""
            while b"facebook" not in body:
                if time.monotonic() - began > seconds:
                    raise TimeoutError(f"no policies within {seconds} s: {body[:200]}")
                if not (data := secure.recv(65536)):
                    raise ConnectionError(f"closed: {body[:200]}")
                buffer += data
                body += b"".join(payload for kind, _, _, payload in wire.frames(buffer) if kind == wire.DATA)
    return time.monotonic() - began


def strange_streams(make, count, what):
    def run(scenario, settings):
        operator = Operator(scenario, settings)
        stream(operator, 10)
        first = hello()

        def stranger(_):
            return make(operator, first)

        with operator.honest() as honest:
            streams, refused = opened(count, stranger)
            with closing(streams):
                scenario.tell(f"{len(streams)} {what}, {refused} were refused")
                took = []
                for _ in range(5):
                    try:
                        took.append(stream(operator, 10))
                    except OSError as error:
                        scenario.require(False, f"a sidecar's stream: {error}", "<= 5 s")
                        break
                    time.sleep(0.5)
                scenario.in_time(max(took, default=99) <= 5, f"a sidecar has its policies after {max(took, default=99):.2f} s at most", "<= 5 s")
        operator.judge(honest)

    run.__doc__ = f"{count} connections to the streams' port: {what}; a sidecar connects meanwhile."
    return run


def half_handshake(operator, first):
    stream = wire.connect(operator.stream, timeout=3)
    stream.sendall(first)
    return stream


def no_token(operator, _):
    stream = operator.tls(operator.stream, timeout=3)
    stream.sendall(wire.begin())
    return stream


def no_bytes(operator, _):
    return wire.connect(operator.stream, timeout=3)


def bad_token(operator, _):
    stream = no_token(operator, None)
    fields = [("authorization", "Bearer agents/nobody/u9" + "x" * 8000), ("x-pad", "x" * 7000)]
    stream.sendall(b"".join(wire.head(2 * n + 1, "/v1/policies", fields, scheme="https", authority=NAME) for n in range(4)))
    # As much as the connection's first window takes.
    stream.sendall(b"".join(wire.frame(wire.DATA, 0, 2 * n + 1, b" " * 16000) for n in range(4)))
    return stream


def idle(scenario, settings):
    """600 HTTP/2 connections to the webhooks that ask nothing and answer every ping."""
    operator = Operator(scenario, settings)
    over = threading.Event()

    def stranger(_):
        stream = operator.tls(operator.webhook, timeout=2)
        stream.sendall(wire.begin())
        return stream

    def answering(streams):
        buffers = {stream: bytearray() for stream in streams}
        for stream in streams:
            stream.setblocking(False)
        while not over.wait(0.5):
            for stream, buffer in list(buffers.items()):
                try:
                    while data := stream.recv(65536):
                        buffer += data
                        for kind, flags, _, payload in wire.frames(buffer):
                            if kind in (wire.PING, wire.SETTINGS) and not flags & wire.ACK:
                                stream.send(wire.frame(kind, wire.ACK, 0, payload if kind == wire.PING else b""))
                    del buffers[stream]
                except ssl.SSLWantReadError:
                    pass
                except OSError:
                    del buffers[stream]
            left.append(len(buffers))

    left = []
    with operator.honest() as honest:
        streams, refused = opened(600, stranger)
        with closing(streams):
            thread = threading.Thread(target=answering, args=(streams,), daemon=True)
            thread.start()
            time.sleep(12)
            over.set()
            thread.join()
        scenario.tell(f"{len(streams)} were let in, {refused} were not; after 12 s {left[-1]} are open")
    operator.judge(honest)


def half_heads(scenario, settings):
    """3 000 connections with 60 KiB of a request's head and no end, to each plain port."""
    operator = Operator(scenario, settings)
    attacked = sorted({operator.metrics, operator.probes})
    pages = [f"get:{operator.metrics}/metrics", f"get:{operator.probes}/readyz"]
    with operator.honest(*pages) as honest:

        def stranger(number):
            stream = wire.connect(attacked[number % len(attacked)], timeout=1)
            stream.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stream.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X-Pad: " + b"x" * 60000)
            return stream

        held_open(scenario, 3000, stranger, 4, within=6)
    operator.judge(honest, ["/metrics", "/readyz"])


SCENARIOS = {
    "reviews": reviews(1),
    "reviews-8": reviews(8),
    "reviews-slow": slow_reviews,
    "reviews-slow-h2": slow_reviews_h2,
    "patterns": patterns(1),
    "patterns-16": patterns(16),
    "streams-hello": strange_streams(half_handshake, 6000, "began a handshake"),
    "streams-silent": strange_streams(no_bytes, 6000, "said nothing"),
    "streams-token": strange_streams(no_token, 1500, "showed no token"),
    "streams-bad": strange_streams(bad_token, 1500, "showed a bad token four times"),
    "idle": idle,
    "heads-operator": half_heads,
}
