"""The cluster of the tests: kubectl for what users do, and the API itself for measurements in milliseconds."""

import base64
import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlencode

from settings import CHART, IMAGE_TAG, INJECTOR, OPERATOR, OUT, RELEASE, ROOT, SYSTEM

sys.path.append(str(ROOT / "tests"))
from second_try import Late  # noqa: E402

INJECT = "toolweir.dev/inject"
SIDECAR = "toolweir-sidecar"
AGENT_IMAGE, STORE_IMAGE = (f"localhost/toolweir-{name}:{IMAGE_TAG}" for name in ("agent", "store"))
POLICIES = "/apis/toolweir.dev/v1alpha1"


class Failure(Exception):
    """A check of a test failed."""


class Slow(Failure, Late):
    """A wait that was in vain."""


def expect(what, want, got):
    if want != got:
        raise Failure(f"{what}: expected {want!r:.400}, got {got!r:.400}")


def expect_in(what, words, text):
    if words not in text:
        raise Failure(f"{what}: expected {words!r:.400} in {text!r:.800}")


# What kubectl and helm say of what they waited for, and Python of what did not answer.
WAITED = re.compile(r"timed out|deadline exceeded|TimeoutError|i/o timeout")


def run(*command, input=None, timeout=120, check=True):
    """Runs a program and returns its stdout; an error contains its stderr. With check=False: code, stdout, stderr."""
    words = " ".join(map(str, command[:6]))
    try:
        done = subprocess.run(list(map(str, command)), input=input, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Slow(f"{words} ...: not within {timeout} s") from None
    if not check:
        return done.returncode, done.stdout, done.stderr
    if done.returncode:
        raise as_said(f"{words} ...: {(done.stderr or done.stdout).strip():.1200}")
    return done.stdout


def as_said(text):
    """The failure for what a program said."""
    return (Slow if WAITED.search(text) else Failure)(text)


def kubectl(*words, **options):
    return run("kubectl", *words, **options)


def helm(*words, **options):
    return run("helm", *words, **{"timeout": 300, **options})


def until(seconds, what, probe, every=0.1, late=Slow):
    """Returns the first result of `probe`. Until then it may return nothing, or fail. `late` is raised if there is none in time: `Failure`
    where that means that something is open which must be closed."""
    end, last = time.monotonic() + seconds, None
    while True:
        try:
            if found := probe():
                return found
            last = None
        except (Failure, OSError, http.client.HTTPException, KeyError, IndexError, ValueError) as error:
            last = error
        if time.monotonic() > end:
            raise late(f"{what}: not within {seconds} s{f'; last: {last}' if last else ''}")
        time.sleep(every)


class Background:
    """A program in the background, whose output is read line by line."""

    def __init__(self, *command):
        # What reads commands from stdin must not take its end for one.
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.more = [], threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self.more:
                self.lines.append(line.rstrip("\n"))
                self.more.notify_all()
        with self.more:
            self.more.notify_all()

    def line(self, seconds, what, matches, start=0, late=Slow):
        """Returns the number of the first line from `start` on for which `matches` returns something, and that result. `late` is as for
        `until`."""
        end = time.monotonic() + seconds
        with self.more:
            while True:
                for number in range(start, len(self.lines)):
                    if (found := matches(self.lines[number])) is not None:
                        return number, found
                start = len(self.lines)
                if self.process.poll() is not None and not self.more.wait(0.2):
                    raise Failure(f"{what}: it ended with {self.process.returncode}: {self.lines[-3:]}")
                if not self.more.wait(max(0, end - time.monotonic())) and time.monotonic() >= end:
                    raise late(f"{what}: not within {seconds} s; the last lines: {self.lines[-3:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SocketConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Api:
    """The API server, through `kubectl proxy`: it knows how to sign in, whatever the cluster. It listens where this user alone can
    reach it, since it asks nobody who they are. A connection for each thread."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = f"{self.folder.name}/api"
        self.proxy = Background("kubectl", "proxy", f"--unix-socket={self.socket}")
        self.proxy.line(20, "kubectl proxy", lambda line: line.startswith("Starting to serve") or None)
        self.local = threading.local()

    def close(self):
        self.proxy.__exit__()
        self.folder.cleanup()

    def raw(self, method, path, body=None, content="application/json", timeout=60):
        """Returns status and text of the response."""
        for fresh in (False, True):
            connection = getattr(self.local, "connection", None)
            if connection is None or fresh:
                connection = self.local.connection = SocketConnection(self.socket, timeout)
            try:
                connection.request(method, path, body if body is None or isinstance(body, str) else json.dumps(body), {"content-type": content, "accept": "*/*"})
                response = connection.getresponse()
                return response.status, response.read().decode(errors="replace")
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                self.local.connection = None
                # A kept connection may have been closed meanwhile; a new one that fails is a failure.
                if fresh:
                    raise

    def __call__(self, method, path, body=None, **options):
        status, text = self.raw(method, path, body, **options)
        if status >= 300:
            try:
                text = json.loads(text)["message"]
            except (ValueError, KeyError):
                pass
            raise Failure(f"{method} {path}: {status}: {text:.800}")
        return json.loads(text)

    def get(self, path, **query):
        return self("GET", path + (f"?{urlencode(query)}" if query else ""))

    def patch(self, path, body):
        """Applies an object as `kubectl apply --server-side` does."""
        return self("PATCH", f"{path}?fieldManager=e2e&force=true", body, content="application/apply-patch+yaml")


SAMPLE = re.compile(r'^(\w+)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse_metrics(text):
    """Samples of the Prometheus text format: name, labels, value."""
    found = (SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return [(m[1], dict(LABEL.findall(m[2] or "")), float(m[3])) for m in found if m]


def total(samples, name, **labels):
    """The sum of the samples of this name that have these labels."""
    return sum(v for n, l, v in samples if n == name and all(l.get(k) == want for k, want in labels.items()))


def percentile(values, share):
    """The smallest value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def agent(name, *args, labels=None, user=1000, restart="Always", **spec):
    """A pod with the test's Python, as the restricted Pod Security Standard wants it. Its user is not the sidecar's, as an agent's
    should not be."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "agent", **(labels or {})}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": restart,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "agent",
                "image": AGENT_IMAGE,
                "imagePullPolicy": "Never",
                "args": list(args) or ["/opt/agent/wait.py"],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
            }],
            **spec,
        },
    }


def never_scheduled(name, labels=None):
    """A pod that is never scheduled: it costs API server and operator as much as any pod, but the node nothing."""
    return agent(name, labels=labels, nodeSelector={"toolweir.dev/no-such-node": "true"})


# Looks for texts, one a line of stdin, in the environment of every process and in every file of the container that it may read.
LOOK = """
import json, os, stat, sys
needles = sys.stdin.buffer.read().split()
places = [f"/proc/{pid}/environ" for pid in os.listdir("/proc") if pid.isdigit()]
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys")]
    places += [os.path.join(folder, name) for name in files]
found, read = [set() for _ in needles], 0
for place in places:
    try:
        if not stat.S_ISREG(os.stat(place).st_mode):
            continue
        with open(place, "rb") as file:
            text = file.read()
    except OSError:
        continue
    read += 1
    for needle, where in zip(needles, found):
        if needle in text:
            where.add("environment" if place.startswith("/proc/") else place)
print(json.dumps({"read": read, "found": [sorted(where) for where in found]}))
"""


class Cluster:
    def __init__(self):
        self.api = Api()
        self.namespaces, self.server_ready, self.installed_in = [], False, None

    # ---- objects

    def namespace(self, name, inject=True, **labels):
        """A new namespace of the tests; one that an earlier run left is removed first."""
        name = f"toolweir-e2e-{name}"
        kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s", timeout=150)
        marks = {"toolweir.dev/e2e": "true", **({INJECT: "enabled"} if inject else {}), **labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": marks}})
        self.namespaces.append(name)
        until(20, f"the service account of {name}", lambda: self.api.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
        return name

    def remove_namespaces(self, wait=False):
        """Removes the namespaces that the tests created."""
        if self.namespaces:
            kubectl("delete", "namespace", *self.namespaces, "--ignore-not-found", f"--wait={str(wait).lower()}", "--timeout=180s", timeout=200, check=False)
        self.namespaces = []

    def apply(self, *objects, namespace=None):
        """`kubectl apply`; what it said on stderr."""
        text = "\n---\n".join(map(json.dumps, objects))
        code, out, err = kubectl(*(["-n", namespace] if namespace else []), "apply", "-f", "-", input=text, check=False)
        if code:
            raise as_said(f"kubectl apply: {err.strip()}")
        return out + err

    def refused(self, *objects, namespace=None):
        """`kubectl apply` of what must be refused: what it said."""
        try:
            said = self.apply(*objects, namespace=namespace)
        except Failure as failure:
            return str(failure)
        raise Failure(f"kubectl apply took what it must refuse: {said.strip()}")

    def policy(self, namespace, name="facebook", tools=(), **spec):
        """An MCPPolicy for the agents of a namespace, on the Facebook server of the tests."""
        server = {"name": "facebook", "url": self.server_url(), "tools": list(tools)}
        for field in ("defaultAction", "url"):
            if field in spec:
                server[field] = spec.pop(field)
        spec = {"podSelector": {"matchLabels": {"app": "agent"}}, "servers": [server], **spec}
        return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec}

    def path(self, policy):
        """Returns the API path of a policy."""
        namespace, name = policy["metadata"].get("namespace"), policy["metadata"]["name"]
        return f"{POLICIES}/namespaces/{namespace}/mcppolicies/{name}" if namespace else f"{POLICIES}/mcpclusterpolicies/{name}"

    def programmed(self, policy, pods, seconds=30):
        """Waits until the status says that so many pods enforce what the policy says now; gives the status."""

        def probe():
            found = self.api.get(self.path(policy))
            status = found.get("status") or {}
            conditions = {c["type"]: c for c in status.get("conditions", [])}
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            if current and status.get("sidecars") == f"{pods}/{pods}" and conditions["Programmed"]["status"] == "True":
                return status
            raise Failure(f"the status is {json.dumps(status):.700}")

        return until(seconds, f"policy {policy['metadata']['name']} programmed in {pods} pods", probe)

    def condition(self, policy, kind, seconds, status, *reasons):
        """Waits until a condition of a policy has this status and one of these reasons; gives it."""

        def probe():
            found = self.api.get(self.path(policy))
            conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
            said = conditions.get(kind, {})
            if said.get("status") == status and said["reason"] in reasons:
                return said
            raise Failure(f"it is {json.dumps(said):.500}")

        return until(seconds, f"{kind} {status} ({' or '.join(reasons)})", probe)

    def ready(self, namespace, *names, seconds=60):
        """Waits until pods are ready."""
        kubectl("-n", namespace, "wait", "--for=condition=Ready", f"--timeout={seconds}s", *(f"pod/{name}" for name in names), timeout=seconds + 10)

    def governed(self, namespace, *policies):
        """The pod `agent`, ready, with all of these policies of its namespace in force in it."""
        self.apply(*policies, agent("agent"), namespace=namespace)
        self.ready(namespace, "agent")
        for policy in policies:
            self.programmed(policy, 1)

    @contextmanager
    def reach(self, namespace, pod, port):
        """Host and port at which a pod's port can be reached from here: its own where the pod network is this machine's."""
        ip = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]["podIP"]
        try:
            socket.create_connection((ip, port), 1).close()
        except OSError:
            with Background("kubectl", "-n", namespace, "port-forward", f"pod/{pod}", f":{port}", "--address=127.0.0.1") as forward:
                _, local = forward.line(20, "kubectl port-forward", lambda line: (m := re.search(r"127\.0\.0\.1:(\d+)", line)) and int(m[1]))
                yield "127.0.0.1", local
        else:
            yield ip, port

    def rolled_out(self, namespace, name, seconds=90):
        """Waits until all pods of a Deployment are ready, and those of before are gone."""
        kubectl("-n", namespace, "rollout", "status", name, f"--timeout={seconds}s", timeout=seconds + 10)

    def pods(self, namespace):
        """The names of the pods of a namespace."""
        return sorted(pod["metadata"]["name"] for pod in self.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"])

    def ended(self, namespace, name, seconds=60):
        """Waits until a pod has ended; gives its phase."""

        def probe():
            phase = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"].get("phase")
            return phase if phase in ("Succeeded", "Failed") else None

        return until(seconds, f"the end of pod {name}", probe, 0.2)

    def logs(self, namespace, pod, container="agent"):
        return kubectl("-n", namespace, "logs", pod, "-c", container, "--tail=-1")

    # ---- what agents do and servers get

    def call(self, namespace, pod, tool, times=1, server="facebook", at=0, **arguments):
        """Calls a tool from inside a pod, not before a time (in seconds since 1970); what came of each call."""
        words = ["/opt/agent/call.py", server, tool, "--times", times, "--at", at, "--arguments", json.dumps(arguments)]
        out = kubectl("-n", namespace, "exec", pod, "-c", "agent", "--", "python3", *words)
        return [json.loads(line) for line in out.splitlines()]

    def tools(self, namespace, pod, server="facebook"):
        """The names that tools/list shows."""
        out = kubectl("-n", namespace, "exec", pod, "-c", "agent", "--", "python3", "/opt/agent/call.py", server, "--list")
        return json.loads(out)["text"]

    def server_url(self):
        return "http://just-facebook.toolweir-e2e-tools.svc:8000/mcp"

    def server(self):
        """Creates an MCP server with its own log, once, in a namespace without Toolweir."""
        if self.server_ready:
            return
        namespaces, self.namespaces = self.namespaces, []
        namespace = self.namespace("tools", inject=False)
        self.namespaces = namespaces
        pod = agent("just-facebook", "/opt/agent/serve.py", labels={"app": "just-facebook"})
        pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
        service = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "just-facebook"},
            "spec": {"selector": {"app": "just-facebook"}, "ports": [{"port": 8000}]},
        }
        self.apply(pod, service, namespace=namespace)
        self.ready(namespace, "just-facebook")
        self.server_ready = True

    def delivered(self):
        """The tools/calls that the server got, as it logged them."""
        lines = self.logs("toolweir-e2e-tools", "just-facebook").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # ---- metrics

    def metrics_text(self, namespace, pod, port):
        """The metrics of a pod as they are, through the API server, which reaches pods in any cluster; where a NetworkPolicy lets nothing in from
        other nodes, through the pod's own."""
        status, text = self.api.raw("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics")
        if status == 503:
            with self.reach(namespace, pod, port) as (host, local):
                connection = http.client.HTTPConnection(host, local, timeout=10)
                connection.request("GET", "/metrics")
                response = connection.getresponse()
                status, text = response.status, response.read().decode()
                connection.close()
        if status != 200:
            raise Failure(f"the metrics of {namespace}/{pod}: {status}: {text:.300}")
        return text

    def scrape(self, namespace, pod, port):
        """The samples of the metrics of a pod."""
        return parse_metrics(self.metrics_text(namespace, pod, port))

    def sidecar_metrics(self, namespace, pod):
        return self.scrape(namespace, pod, 15020)

    def operators(self, leaving=False):
        """The operator's pods, without those that are being deleted unless they are asked for."""
        found = self.api.get(f"/api/v1/namespaces/{SYSTEM}/pods", labelSelector=f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator")
        return [pod for pod in found["items"] if leaving or "deletionTimestamp" not in pod["metadata"]]

    def settled(self):
        """Waits until no operator of before is left: it still answers for a while, and takes its counts with it."""
        until(60, "the operators of before are gone", lambda: len(self.operators(leaving=True)) == len(self.operators()) > 0)

    def operator_metrics(self):
        """The metrics of all replicas together."""
        return [sample for pod in self.operators() for sample in self.scrape(SYSTEM, pod["metadata"]["name"], 8080)]

    # ---- the product

    def helm(self, command, *more, chart=CHART):
        """`helm install` or `helm upgrade` with the images of the tests, until all replicas are ready."""
        values = ["-f", ROOT / "tests/cluster/values.yaml"]
        values += ["--set-string", f"image.tag={IMAGE_TAG},sidecar.image.tag={IMAGE_TAG}"]
        return helm(command, RELEASE, chart, "-n", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s", *values, *more)

    def install(self):
        """Installs the chart if it is not installed."""
        if helm("list", "-n", SYSTEM, "--filter", f"^{RELEASE}$", "--deployed", "-q").strip():
            return
        began = time.monotonic()
        self.helm("install")
        self.installed_in = time.monotonic() - began
        self.webhooks()

    def webhooks(self):
        """Waits until pods are injected: an operator is ready, and the API server trusts it and finds it."""
        until(30, "the operator writes the caBundle", lambda: self.ca())
        # The node's rules for the Service come a moment after the operator is ready.
        policy = self.policy("default", "dry-run", defaultAction="Allow")
        until(30, "the webhooks answer", lambda: self.api("POST", f"{POLICIES}/namespaces/default/mcppolicies?dryRun=All", policy))

    def ca(self):
        """The operator's authorities in PEM, as the API server knows them."""
        found = self.api.get(f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{INJECTOR}")
        return base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"]).decode()

    def scale(self, replicas):
        kubectl("-n", SYSTEM, "scale", f"deployment/{OPERATOR}", f"--replicas={replicas}")

    def rollout(self):
        kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=120s", timeout=130)

    def uninstall(self):
        helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "120s", "--ignore-not-found")

    # ---- when something went wrong

    def collect(self, name):
        """Writes the logs and objects of the cluster after a failed scenario, and returns the folder."""
        folder = OUT / "failed" / name
        folder.mkdir(parents=True, exist_ok=True)

        def save(name, *words):
            try:
                code, out, err = kubectl(*words, check=False, timeout=60)
                (folder / name).write_text(out + err)
            except (OSError, Failure) as error:
                (folder / name).write_text(str(error))

        save("everything.txt", "get", "all,mcppolicies,configmaps,leases", "-A", "-o", "wide")
        save("policies.yaml", "get", "mcppolicies,mcpclusterpolicies,mcptoolpins,mcpapprovals", "-A", "-o", "yaml")
        save("webhooks.yaml", "get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "-o", "yaml")
        save("events.txt", "get", "events", "-A", "--sort-by=.lastTimestamp")
        for namespace in [SYSTEM, "toolweir-e2e-tools", *self.namespaces]:
            # A thousand pods that never run have nothing to say.
            code, names, _ = kubectl("-n", namespace, "get", "pods", "-o", "name", check=False)
            save(f"{namespace}.describe.txt", "-n", namespace, "describe", "pods,jobs,deployments", *([] if len(names) < 2000 else ["--selector=app.kubernetes.io/component"]))
            for pod in names.split()[:20]:
                name = pod.split("/")[1]
                save(f"{namespace}.{name}.log", "-n", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=3000")
                save(f"{namespace}.{name}.previous.log", "-n", namespace, "logs", pod, "--all-containers", "--prefix", "--previous", "--tail=500")
        return folder
