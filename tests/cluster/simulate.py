#!/usr/bin/env python3
"""Many simulated sidecars on one operator: how long a change of a policy takes to all, what memory the operator takes, and how
often it writes the policy's status. The pods are real to the API server and never run; their streams are in one process.

    simulate.py [--namespace NAME] [--operator-namespace NAME] [--count 1000] [--changes 5] [--keep]

It needs the cluster of KUBECONFIG with the chart installed, kubectl, pods that can be reached from here (or --connect and
--metrics), and the simulator (cargo build -p toolweir-test-simulator). While it runs, the operator has one replica. It prints one
object of JSON; the exit code is 1 if a target is missed, and 2 if nothing could be measured.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import queue
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# The targets.
SECONDS, RESIDENT_MIB = 5, 100
# What is written once a second does not arrive here evenly.
JITTER = 0.5
# Changes in quick succession, ten a second.
BURST = 20


class Failure(Exception):
    """Measuring is impossible."""


def progress(text):
    print(text, file=sys.stderr, flush=True)


def kubectl(*words, timeout=120):
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise Failure(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def until(seconds, what, probe, every=0.25):
    """Returns the first result of `probe`. Until then it may return nothing, or fail."""
    end, last = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            if found := probe():
                return found
        except (Failure, OSError, http.client.HTTPException, KeyError, IndexError) as error:
            last = f": {error}"
        time.sleep(every)
    raise Failure(f"{what}: not within {seconds} s{last}")


# ---- the API server


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Api:
    """The API server through `kubectl proxy`, which knows how to sign in, on a socket that is this user's alone. A connection that
    is kept for each thread."""

    def __init__(self, folder):
        self.socket, self.local = str(folder / "api"), threading.local()
        self.proxy = subprocess.Popen(["kubectl", "proxy", f"--unix-socket={self.socket}"], stdout=subprocess.DEVNULL)
        until(20, "kubectl proxy", lambda: os.path.exists(self.socket))

    def close(self):
        self.proxy.terminate()
        self.proxy.wait()

    def open(self, timeout):
        return Connection(self.socket, timeout)

    def __call__(self, method, path, body=None, content="application/json"):
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = self.open(60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"content-type": content})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.local.connection = None
            raise Failure(f"{method} {path}: {error}") from error
        if response.status >= 300:
            raise Failure(f"{method} {path}: {response.status}: {text.decode(errors='replace'):.500}")
        return json.loads(text)

    def apply(self, path, body):
        """Applies an object as `kubectl apply --server-side` does."""
        return self("PATCH", f"{path}?fieldManager=simulate&force=true", body, "application/apply-patch+yaml")


# ---- what is watched


def read_metrics(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        found = (re.match(r"(\w+)(\{.*\})? (\S+)$", line) for line in response.read().decode().splitlines())
    return {(m[1], m[2] or ""): float(m[3]) for m in found if m}


def total(metrics, name, labels=""):
    return sum(value for (known, said), value in metrics.items() if known == name and labels in said)


class Memory(threading.Thread):
    """Samples the operator's resident memory four times a second."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.most, self.now, self.samples, self.done = url, 0, 0, 0, threading.Event()

    def run(self):
        while not self.done.wait(0.25):
            try:
                self.now = total(read_metrics(self.url), "process_resident_memory_bytes") / MIB
            except OSError:
                continue
            self.most, self.samples = max(self.most, self.now), self.samples + 1


class Policy(threading.Thread):
    """A policy as the API server tells everybody who watches: when its status was written, and what it says."""

    def __init__(self, api, path, version):
        super().__init__(daemon=True)
        self.writes, self.said, self.more, self.failed = [], None, threading.Condition(), None
        collection, name = path.rsplit("/", 1)
        self.connection = api.open(600)
        self.connection.request("GET", f"{collection}?watch=true&fieldSelector=metadata.name={name}&resourceVersion={version}")
        self.events = self.connection.getresponse()

    def run(self):
        last = None
        try:
            while line := self.events.readline():
                now, event = time.time(), json.loads(line)
                if event["type"] not in ("ADDED", "MODIFIED"):
                    raise ValueError(line)
                status = event["object"].get("status")
                with self.more:
                    if status != last:
                        self.writes.append(now)
                    last, self.said = status, (now, event["object"])
                    self.more.notify_all()
        # The socket is closed under it in the end.
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            self.failed = error

    def acknowledged(self, generation, count, seconds):
        """Returns when the status says that so many pods enforce this generation."""

        def says():
            if not self.said:
                return False
            status = self.said[1].get("status") or {}
            return status.get("observedGeneration") == generation and status.get("acknowledged") == count

        with self.more:
            if not self.more.wait_for(says, seconds):
                raise Failure(f"the status does not say within {seconds} s that {count} pods enforce generation {generation}: {self.said}")
            return self.said[0]


def paced(times):
    """Tells whether at most one write a second was made, over any span."""
    return all(later - sooner <= times[later] - times[sooner] + JITTER for later in range(len(times)) for sooner in range(later))


class Simulator:
    """The simulator and its events."""

    def __init__(self, program, *words):
        # A connection for each sidecar, and some for the program.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.process = subprocess.Popen([program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.events = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put({"event": "end"})

    def event(self, name, seconds, since=0):
        """The next event of this name; of acknowledgements, the first that ended after `since`."""
        end = time.monotonic() + seconds
        while True:
            try:
                event = self.events.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                if name == "report":
                    raise Failure("the simulator does not report") from None
                raise Failure(f"{name}: not within {seconds} s; {self.report()}") from None
            if event["event"] == "end":
                raise Failure(f"the simulator ended with {self.process.wait()}")
            if event["event"] == name and event.get("last_ms", since) >= since:
                return event

    def report(self):
        self.process.stdin.write("report\n")
        return self.event("report", 10)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ---- the cluster


@contextlib.contextmanager
def one_operator(api, namespace, deployment):
    """The deployment with one replica: its only pod. With as many as before afterwards."""
    found = json.loads(kubectl("-n", namespace, "get", "deployment", deployment, "-o", "json"))
    before, labels = found["spec"]["replicas"], found["spec"]["selector"]["matchLabels"]
    selector = "%2C".join(f"{key}%3D{value}".replace("/", "%2F") for key, value in labels.items())

    def alone():
        pods = api("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")["items"]
        ready = [pod for pod in pods if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))]
        return ready[0] if len(pods) == len(ready) == 1 else None

    try:
        kubectl("-n", namespace, "scale", f"deployment/{deployment}", "--replicas=1")
        yield until(90, "an operator with one replica", alone)
    finally:
        kubectl("-n", namespace, "scale", f"deployment/{deployment}", f"--replicas={before}")
        kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=120s", timeout=130)


@contextlib.contextmanager
def a_namespace(api, name, keep):
    """A new namespace that has not opted in: the pods come with their sidecar."""
    kubectl("create", "namespace", name)
    try:
        until(30, "the service account", lambda: api("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"))
        yield
    finally:
        if not keep:
            # At once: the namespace's own deletion would take them one by one.
            api("DELETE", f"/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0")
            kubectl("delete", "namespace", name, "--timeout=180s", timeout=200)


def pod(name):
    """A pod as the operator injects it, as far as it matters here. No scheduler takes it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "simulated"}},
        "spec": {
            "schedulerName": "none",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "initContainers": [{"name": "toolweir-sidecar", "image": "localhost/none", "restartPolicy": "Always"}],
            "containers": [{"name": "agent", "image": "localhost/none"}],
        },
    }


def policy(namespace, most):
    """Returns a policy with all kinds of rules, so that a snapshot has a realistic size."""
    tools = [
        {"name": "send_dm_to_user", "limits": [{"max": most, "window": "minute"}]},
        {"name": "get_*"},
        {"name": "delete_comment_from_post", "action": "Deny", "reason": "Comments are evidence. Ask the moderation team."},
        {"name": "pay_invoice", "validations": [{"expression": "args.amount <= 500", "message": "Invoices over 500 need a person."}]},
    ]
    return {
        "apiVersion": "toolweir.dev/v1alpha1",
        "kind": "MCPPolicy",
        "metadata": {"name": "simulated", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app": "simulated"}},
            "servers": [{"name": "facebook", "url": "http://just-facebook.tools.svc:8000/mcp", "tools": tools}],
        },
    }


def make_pods(api, namespace, count):
    """Pods and a token for the sidecar of each, as lines for the simulator."""
    pods = f"/api/v1/namespaces/{namespace}/pods"

    def make(number):
        name = f"pod-{number}"
        reference = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": api("POST", pods, pod(name))["metadata"]["uid"]}
        spec = {"audiences": ["toolweir"], "expirationSeconds": 3600, "boundObjectRef": reference}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = api("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", request)
        return json.dumps({"pod": f"{namespace}/{name}", "token": made["status"]["token"]})

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(make, range(count)))


def find_simulator():
    for folder in ("images", "release", "quick", "debug"):
        program = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / folder / "toolweir-test-simulator"
        if program.exists():
            return program
    raise Failure("there is no simulator; build it with: cargo build -p toolweir-test-simulator")


# ---- the measurement


def measure(args, folder):
    api = Api(folder)
    with contextlib.closing(api), one_operator(api, args.operator_namespace, args.operator) as operator:
        address = operator["status"]["podIP"]
        if ":" in address:
            address = f"[{address}]"
        metrics = args.metrics or f"http://{address}:8080/metrics"
        until(60, "the operator leads", lambda: total(read_metrics(metrics), "toolweir_operator_leader") == 1)
        memory = Memory(metrics)
        memory.start()
        with a_namespace(api, args.namespace, args.keep):
            began = time.monotonic()
            (folder / "tokens").write_text("\n".join(make_pods(api, args.namespace, args.count)))
            figures = {"count": args.count, "pods_seconds": round(time.monotonic() - began, 1)}
            progress(f"{args.count} pods and tokens in {figures['pods_seconds']} s")
            injector = api("GET", f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{args.injector}")
            (folder / "ca.pem").write_bytes(base64.b64decode(injector["webhooks"][0]["clientConfig"]["caBundle"]))
            time.sleep(1)
            figures["resident_mib_before"] = round(memory.now, 1)

            def simulated():
                """Every sidecar, connected; and in how many seconds."""
                program, where = args.simulator or find_simulator(), args.connect or f"{address}:8444"
                name = f"{args.operator}.{args.operator_namespace}.svc"
                simulator = Simulator(program, "--connect", where, "--server-name", name, "--ca", folder / "ca.pem", "--tokens", folder / "tokens")
                try:
                    return simulator, simulator.event("connected", 120)["seconds"]
                except Failure:
                    simulator.close()
                    raise

            simulator, figures["connected_seconds"] = simulated()
            with contextlib.closing(simulator):
                progress(f"all connected in {figures['connected_seconds']} s")
                time.sleep(1)
                figures["resident_mib_connected"] = round(memory.now, 1)
                before = read_metrics(metrics)
                watched, generation = changes(args, api, simulator, figures)
                report = simulator.report()
            # Nobody, and all at once again: what could make a storm of writes, a change of the count with every stream.
            watched.acknowledged(generation, 0, 60)
            simulator, figures["connected_again_seconds"] = simulated()
            with contextlib.closing(simulator):
                watched.acknowledged(generation, args.count, 60)
                progress(f"all gone and connected again in {figures['connected_again_seconds']} s")
                figures["status_writes"] = status_writes(watched, before, metrics)
        memory.done.set()
        if not memory.samples:
            raise Failure(f"the operator's memory could not be read from {metrics}")
        figures["resident_mib_most"] = round(memory.most, 1)
        figures["streams"] = {key: report[key] for key in ("open", "reconnects", "lost", "refused")}
        return figures


def changes(args, api, simulator, figures):
    """Makes the policy and changes it, and measures each. Gives who watches it, and its last generation."""
    path = f"/apis/toolweir.dev/v1alpha1/namespaces/{args.namespace}/mcppolicies/simulated"
    figures["changes"], watched = [], None
    for number in range(args.changes + 1):
        asked = time.time()
        made = api.apply(path, policy(args.namespace, 30 + number))
        answered = time.time()
        if watched is None:
            watched = Policy(api, path, made["metadata"]["resourceVersion"])
            watched.start()
        seen = simulator.event("acknowledged", 60, asked * 1000)
        told = watched.acknowledged(made["metadata"]["generation"], args.count, 60)
        since = lambda at: round(max(0, at - answered), 3)  # noqa: E731
        change = {
            "first": since(seen["first_ms"] / 1000),
            "median": since(seen["median_ms"] / 1000),
            "all": since(seen["last_ms"] / 1000),
            # The longer way to measure it: what holds for this holds for both.
            "all_from_request": round(seen["last_ms"] / 1000 - asked, 3),
            "in_status": since(told),
        }
        figures["changes"].append(change)
        progress(f"change {number}: {json.dumps(change)}")
    # Faster than they can be told: the last one counts.
    for number in range(BURST):
        made = api.apply(path, policy(args.namespace, 1000 + number))
        answered = time.time()
        time.sleep(0.1)
    figures["burst_in_status"] = round(watched.acknowledged(made["metadata"]["generation"], args.count, 60) - answered, 3)
    progress(f"{BURST} changes in {BURST / 10:g} s: the status says so {figures['burst_in_status']} s after the last")
    return watched, made["metadata"]["generation"]


def status_writes(watched, before, metrics):
    """Measures how often the status is written, and whether that stops when nothing changes."""
    settled = len(watched.writes)
    time.sleep(5)
    if watched.failed:
        raise Failure(f"the watch of the policy ended: {watched.failed}")
    after, writes, name = read_metrics(metrics), list(watched.writes), "toolweir_operator_status_writes_total"
    return {
        "seen": len(writes),
        "seconds": round(writes[-1] - writes[0], 1),
        # Of every policy there is.
        "counted": {label: total(after, name, f'"{label}"') - total(before, name, f'"{label}"') for label in ("ok", "failed", "gone")},
        "least_seconds_between": round(min(later - sooner for sooner, later in zip(writes, writes[1:])), 3),
        "when_nothing_changes": len(writes) - settled,
        "paced": paced(writes),
    }


def judge(figures):
    """Returns the targets, and whether each is met; those of time can be missed on a busy machine."""
    slowest = max(change["all_from_request"] for change in figures["changes"])
    told = max(change["in_status"] for change in figures["changes"])
    writes = figures["status_writes"]
    return [
        {"target": f"a change is acknowledged by all within {SECONDS} s", "figure": slowest, "holds": slowest <= SECONDS, "of_time": True},
        {"target": f"and the policy's status says so within {SECONDS} s", "figure": told, "holds": told <= SECONDS, "of_time": True},
        {
            "target": f"operator under {RESIDENT_MIB} MiB resident",
            "figure": figures["resident_mib_most"],
            "holds": figures["resident_mib_most"] < RESIDENT_MIB,
        },
        {
            "target": "at most one status write a second for a policy, and none when nothing changes",
            "figure": writes["least_seconds_between"],
            "holds": writes["paced"] and writes["when_nothing_changes"] == 0,
        },
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", default="toolweir-simulated", help="is made, and deleted in the end")
    parser.add_argument("--operator-namespace", default="toolweir-system")
    parser.add_argument("--operator", default="toolweir-operator", help="the name of the Deployment and of the Service")
    parser.add_argument("--injector", default="toolweir-injector", help="the MutatingWebhookConfiguration, which has the operator's CA")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=5)
    parser.add_argument("--simulator", help="the program; else the one in target")
    parser.add_argument("--connect", help="IP:PORT of the policy stream; else the pod's own")
    parser.add_argument("--metrics", help="the URL of the operator's metrics; else the pod's own")
    parser.add_argument("--keep", action="store_true", help="leave the namespace")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toolweir-simulate-") as folder:
        try:
            figures = measure(args, Path(folder))
        except (Failure, OSError, subprocess.SubprocessError) as failure:
            print(f"simulate.py: {failure}", file=sys.stderr)
            return 2
    targets = judge(figures)
    print(json.dumps({**figures, "targets": targets, "holds": all(target["holds"] for target in targets)}, indent=2))
    return 0 if all(target["holds"] for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
