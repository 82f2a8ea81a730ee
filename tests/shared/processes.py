"""The processes of a scenario: stores, sidecars, the MCP server, load. A `Stage` ends all that it has started."""

import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from second_try import Checks, Late, PrintedChecks, printed_summary, verdict, with_second_try  # noqa: E402, F401

_used = set()


class Broken(Exception):
    """A precondition of the scenario is not met; the scenario fails."""


class NotInTime(Broken, Late):
    """It did not come in time."""


def free_port(beside=()):
    """A port that nothing uses, nor those at these distances from it. Below the range of outgoing connections: whoever
    tries to reach a store that is down would else meet itself there sooner or later, and hold its port."""
    while True:
        port = random.randrange(13000, 22000)
        ports = [port, *(port + distance for distance in beside)]
        if not _used.intersection(ports) and all(_bindable(port) for port in ports):
            _used.update(ports)
            return port


def _bindable(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(what, condition, seconds=10.0, every=0.05, late=NotInTime):
    """What the condition gives once it is something. `late` is raised when it does not become that in time: `Broken` where that means that
    something passes which must not."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        if time.monotonic() > end:
            raise late(f"not within {seconds:g} s: {what}")
        time.sleep(every)


class Stage:
    """A folder, and processes that end with it."""

    def __init__(self, sidecar, bench, folder):
        self.sidecar_binary, self.bench, self.dir = sidecar, bench, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.started = []

    def within(self, name):
        """A stage in a folder of this one."""
        return Stage(self.sidecar_binary, self.bench, self.dir / name.replace(" ", "-"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name, command, **options):
        """A process whose messages are in NAME.log, what it said before included."""
        with open(self.dir / f"{name}.log", "ab") as log:
            options.setdefault("stdout", log)
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stderr=log, **options)
        self.started.append(process)
        return process

    def redis(self, name="redis", *flags, **options):
        redis = Redis(self, name, flags, **options)
        redis.start()
        return redis

    def upstream(self, name="server"):
        return Upstream(self, name)

    def sidecar(self, name, policies, store=(), **options):
        return Sidecar(self, name, policies, store, **options)

    def sidecars(self, count, policies, store, **options):
        """So many pods of one workload; each knows the store before this returns."""
        pods = [self.sidecar(f"pod-{i}", policies, store, **options) for i in range(count)]
        for pod in pods:
            pod.wait_for_store()
        return pods

    def drive(self, seconds, targets, log=False, nice=10):
        """Starts load; `.result()` waits for its end. A target is (URL, tool, account, connections, calls a second or 0)."""
        return Drive(self, seconds, targets, log, nice)


class Redis:
    def __init__(self, stage, name, flags=(), port=None, password=None, tls=False):
        self.stage, self.name, self.flags, self.password = stage, name, flags, password
        self.port = port or free_port(beside=(10000,))
        self.dir = stage.dir / name
        self.dir.mkdir()
        self.listen = ["--port", 0, "--tls-port", self.port] if tls else ["--port", self.port]
        self.tls = tls
        self.process = None

    def start(self):
        command = ["redis-server", *self.listen, "--bind", "127.0.0.1", "--dir", self.dir, "--save", "", "--appendonly", "no"]
        if self.password:
            command += ["--requirepass", self.password]
        self.process = self.stage.start(self.name, [*command, *self.flags])

        def answers():
            if self.process.poll() is not None:
                raise Broken(f"{self.name} ended: {tail(self.stage.dir / f'{self.name}.log')}")
            if self.tls:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            return self.ask("PING") == "PONG"

        wait_until(f"{self.name} answers", answers, every=0.01)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def ask(self, *words):
        """One command on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), 2) as connection, connection.makefile("rwb") as stream:
            if self.password:
                stream.write(_command("AUTH", self.password))
                stream.flush()
                _answer(stream)
            stream.write(_command(*words))
            stream.flush()
            return _answer(stream)

    def info(self, section, field):
        return int(re.search(rf"^{field}:(\d+)", self.ask("INFO", section), re.M)[1])

    def scripts_run(self):
        """How many calls of scripts and functions it has answered."""
        text = self.ask("INFO", "commandstats")
        return sum(int(calls) for calls in re.findall(r"^cmdstat_(?:eval|evalsha|fcall)(?:_ro)?:calls=(\d+)", text, re.M))


def _command(*words):
    words = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _answer(stream):
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the store hung up")
    kind, text = line[:1], line[1:-2].decode()
    if kind == b"$":
        return None if text == "-1" else stream.read(int(text) + 2)[:-2].decode(errors="replace")
    if kind == b"*":
        return [_answer(stream) for _ in range(int(text))]
    if kind == b"-":
        raise ConnectionError(text)
    return int(text) if kind == b":" else text


def cluster(stage, node_timeout_ms=2000):
    """Three masters without replicas."""
    flags = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", node_timeout_ms)
    nodes = [stage.redis(f"redis-{i}", *flags) for i in range(3)]
    addresses = [f"127.0.0.1:{node.port}" for node in nodes]
    command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "0", "--cluster-yes"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if made.returncode:
        raise Broken(f"the cluster cannot be made: {made.stdout[-500:]}{made.stderr[-500:]}")
    wait_until("the cluster is ok", lambda: cluster_ok(nodes), 30)
    return nodes


def cluster_ok(nodes):
    """Whether all nodes say that all is well."""
    return all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes)


class Upstream:
    def __init__(self, stage, name):
        self.port, self.file = free_port(), stage.dir / f"{name}.arrivals"
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.process = stage.start(name, [sys.executable, HERE / "upstream.py", "--port", self.port, "--arrivals", self.file])
        wait_until(f"{name} listens", lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() or True)


def policy(name, servers, **spec):
    """A policy; `servers` are {name: (url, tools)}."""
    listed = [{"name": server, "url": url, "tools": tools} for server, (url, tools) in servers.items()]
    return {
        "apiVersion": "toolweir.dev/v1alpha1",
        "kind": "MCPPolicy",
        "metadata": {"name": name, "namespace": "bench"},
        "spec": {"podSelector": {}, "servers": listed, **spec},
    }


class Sidecar:
    def __init__(self, stage, name, policies, store=(), audit=False, pod=True):
        self.stage, self.name = stage, name
        self.log, self.audit = stage.dir / f"{name}.log", stage.dir / f"{name}.audit"
        # JSON is YAML.
        file = stage.dir / f"{name}.yaml"
        file.write_text("\n---\n".join(json.dumps(policy, indent=2) for policy in policies) + "\n")
        self.port, self.metrics_port, self.admin_port = free_port(), free_port(), free_port()
        command = [stage.sidecar_binary, "run", "--policy", file, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--metrics-listen", f"127.0.0.1:{self.metrics_port}", "--admin-listen", f"127.0.0.1:{self.admin_port}"]
        if pod:
            command += ["--pod-name", name, "--pod-namespace", "bench", "--pod-service-account", "bench"]
            command += ["--pod-workload", "Deployment/bench"]
        # A line for each of millions of denials is not what is tested where nobody reads them.
        with open(self.audit if audit else os.devnull, "ab") as lines:
            self.process = stage.start(name, [*command, *store], stdout=lines)
        wait_until(f"{name} is ready", self._ready)

    def _ready(self):
        self.check_alive()
        return self._get(self.metrics_port, "/readyz")[0] == 200

    def check_alive(self):
        if self.process.poll() is not None:
            raise Broken(f"{self.name} ended: {tail(self.log)}")

    def url(self, server):
        return f"http://127.0.0.1:{self.port}/{server}"

    def _get(self, port, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST" if body else "GET", path, body and json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def admin(self, path, body=None):
        status, text = self._get(self.admin_port, path, body)
        if status != 200:
            raise Broken(f"{path}: HTTP {status}: {text[:200]}")
        return json.loads(text)

    def metric(self, name, **labels):
        """The sum of a metric's series with these labels; nothing where there is no such series."""
        _, text = self._get(self.metrics_port, "/metrics")
        found = None
        for line in text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{label}="{value}"' in (match[1] or "") for label, value in labels.items()):
                found = (found or 0) + float(match[2])
        return found

    def store_calls(self):
        """toolweir_shared_store_calls_total by outcome."""
        outcomes = ("ok", "lease", "refused", "known_full", "unavailable", "timeout")
        return {outcome: int(self.metric("toolweir_shared_store_calls_total", outcome=outcome) or 0) for outcome in outcomes}

    def store_up(self):
        return self.metric("toolweir_shared_store_up")

    def wait_for_store(self, up=1, seconds=10):
        def known():
            self.check_alive()
            return self.store_up() == up

        try:
            wait_until("", known, seconds)
        except Broken as error:
            text = f"{self.name}: toolweir_shared_store_up is {self.store_up()}, not {up}: {tail(self.log)}"
            raise type(error)(text) from error

    def call(self, server, tool="send_message", account="-", seconds=0, timeout=150):
        """A call: `allowed` or the reason of its denial, and the seconds that it took."""
        arguments = {"account": account, "seconds": seconds}
        params = {"name": tool, "arguments": arguments}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.connect()
            began = time.monotonic()
            connection.request("POST", f"/{server}", body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            took = time.monotonic() - began
        finally:
            connection.close()
        if answer.status != 200:
            raise Broken(f"{self.name}: HTTP {answer.status}: {text[:200]}")
        if not text.startswith("{"):
            text = next(line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip())
        result = json.loads(text)["result"]
        if result.get("isError"):
            return result["_meta"]["toolweir.dev/denial"]["reason"], took
        return "allowed", took

    def files(self, store_port, upstream_port):
        """Open connections to the store, and other open files without those of clients and the MCP server, which come and go
        with the calls."""
        ends = {}
        pid = self.process.pid
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (int(fields[i].split(":")[1], 16) for i in (1, 2))
            ends[fields[9]] = local, remote
        store = other = 0
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                link = os.readlink(file)
            except FileNotFoundError:
                continue
            local, remote = ends.get(link[8:-1], (0, 0)) if link.startswith("socket:[") else (0, 0)
            if remote == store_port:
                store += 1
            elif remote != upstream_port and not (remote and local in (self.port, self.metrics_port, self.admin_port)):
                other += 1
        return {"store": store, "other": other}

    def audit_lines(self):
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def panics(self):
        return re.findall(r".*panicked at.*", self.log.read_text())


class Drive:
    def __init__(self, stage, seconds, targets, log, nice):
        number = len(list(stage.dir.glob("drive-*.json")))
        plan = stage.dir / f"drive-{number}.json"
        names = ("url", "tool", "account", "connections", "rate")
        plan.write_text(json.dumps({"seconds": seconds, "targets": [dict(zip(names, target)) for target in targets]}))
        command = [stage.bench, "drive", "--plan", plan]
        self.log = stage.dir / f"drive-{number}.calls" if log else None
        if log:
            command += ["--log", self.log]
        # The clock of the log can be set; what it was against the one that cannot is known at the beginning and the end.
        self.clock = clock()
        self.began = time.monotonic_ns()
        # Nice: the callers would else keep sidecars and store from running for longer than limits have in hand.
        self.process = stage.start(f"drive-{number}", ["nice", "-n", nice, *command], stdout=subprocess.PIPE)
        self.messages = stage.dir / f"drive-{number}.log"
        self.seconds = seconds
        self.output = []
        # Read as it comes, so that nothing waits for a full pipe.
        self.reader = threading.Thread(target=lambda: self.output.append(self.process.stdout.read()), daemon=True)
        self.reader.start()

    def result(self):
        """What became of the calls, for each target."""
        self.reader.join(self.seconds + 60)
        if self.process.wait(5):
            raise Broken(f"the load ended early: {tail(self.messages)}")
        if abs(clock() - self.clock) > 5_000_000:
            raise Broken("the machine's clock was set meanwhile")
        return json.loads(self.output[0])["targets"]

    def calls(self):
        """Every call, in the order of their beginnings: (monotonic ns, nanoseconds it took, number of the target, outcome)."""
        calls = []
        for line in self.log.read_text().splitlines():
            sent, took, target, outcome = line.split(" ")
            calls.append((int(sent) - self.clock, int(took), int(target), outcome))
        return sorted(calls)


def clock():
    return time.time_ns() - time.monotonic_ns()


def tail(path, lines=6):
    return " | ".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
