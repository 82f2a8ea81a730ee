"""What the scenario of approvals is made of: agents with real SDKs, people who decide, a chat that is told, and what can be searched."""

import hashlib
import hmac
import itertools
import json
import threading

from capturing import CLIENTS_IMAGE
from kube import POLICIES, SIDECAR, Background, Failure, agent, expect, kubectl, until
from settings import OPERATOR, SYSTEM

SERVER = "http://127.0.0.1:15001/facebook"
# The agents of tests/approvals, with their environment.
AGENTS = {
    "py1": (["python3", "/opt/clients/agent1.py"], {"PYTHONPATH": "/opt/clients:/opt/clients/mcp1"}),
    "py2": (["python3", "/opt/clients/agent2.py"], {}),
    "ts1": (["/usr/bin/node", "/opt/clients/agent.mjs"], {"SDK": "1"}),
    "ts2": (["/usr/bin/node", "/opt/clients/agent.mjs"], {"SDK": "2"}),
}
# The image has no program that sets variables.
START = "import json, os, sys; words = json.loads(sys.argv[1]); os.environ.update(json.loads(sys.argv[2])); os.execvp(words[0], words)"
# What no policy shows.
MARKER = "marker-hidden-7q2v"


def clients(name):
    """A pod that has the SDKs."""
    pod = agent(name)
    pod["spec"]["containers"][0]["image"] = CLIENTS_IMAGE
    return pod


class Answer:
    """What an agent got."""

    def __init__(self, failed, text, denial):
        told = denial or {}
        self.passed, self.text, self.told = not failed, text, told
        self.reason, self.approval = told.get("reason"), (told.get("approval") or "").rpartition("/")[2]

    def __repr__(self):
        return f"{'passed' if self.passed else self.reason}: {self.text:.200}"


class Sdk:
    """An agent with an SDK, in the pod of its name: many calls at a time, in one session."""

    def __init__(self, namespace, name):
        words, variables = AGENTS[name]
        self.name, self.numbers, self.lock = name, itertools.count(1), threading.Lock()
        self.program = Background(
            "kubectl", "-n", namespace, "exec", "-i", name, "-c", "agent", "--", "python3", "-c", START,
            json.dumps([*words, SERVER, "http"]), json.dumps(variables),
        )
        self.program.line(60, f"{name} connects", lambda line: '"protocol"' in line or None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.program.__exit__()

    def send(self, tool, arguments):
        """Makes a call; its number."""
        with self.lock:
            number = next(self.numbers)
            self.program.process.stdin.write(json.dumps({"id": number, "call": tool, "args": arguments}) + "\n")
            self.program.process.stdin.flush()
        return number

    def answer(self, number, seconds=30):
        def matches(line):
            said = json.loads(line) if line.startswith("{") else {}
            return said if said.get("id") == number else None

        _, said = self.program.line(seconds, f"the answer to call {number} of {self.name}", matches)
        if "error" in said:
            raise Failure(f"{self.name}: the SDK threw {said['error']:.500}")
        result = said["result"]
        text = "".join(block.get("text", "") for block in result.get("content", []))
        return Answer(bool(result.get("isError")), text, (result.get("_meta") or {}).get("toolweir.dev/denial"))

    def call(self, tool, arguments, seconds=30):
        return self.answer(self.send(tool, arguments), seconds)


class Plain:
    """An agent without an SDK, in a pod."""

    def __init__(self, cluster, namespace, pod):
        self.cluster, self.namespace, self.pod, self.name = cluster, namespace, pod, pod

    def call(self, tool, arguments, seconds=30):
        said = self.cluster.call(self.namespace, self.pod, tool, **arguments)[0]
        return Answer(said["outcome"] != "ok", said["text"], said["denial"])


def once_known(client, tool, arguments, seconds=20):
    """Makes the same call until it is not told to wait: a decision takes a moment to arrive."""
    return until(seconds, f"a decision reaches {client.name}", lambda: (got := client.call(tool, arguments)).reason != "approval_pending" and got, 0.2)


class Requests:
    """The MCPApprovals of a namespace, and the people who decide them."""

    def __init__(self, cluster, namespace):
        self.cluster, self.namespace = cluster, namespace
        self.path = f"{POLICIES}/namespaces/{namespace}/mcpapprovals"

    def all(self, pod=None):
        items = self.cluster.api.get(self.path)["items"]
        return [one for one in items if pod in (None, one["spec"]["agent"]["pod"])]

    def waiting(self, pod=None):
        """The names of those that wait, with those that have no state yet."""
        return {one["metadata"]["name"] for one in self.all(pod) if (one.get("status") or {}).get("state", "Pending") == "Pending"}

    def get(self, name):
        return self.cluster.api.get(f"{self.path}/{name}")

    def of(self, shown, pod=None, seconds=20, but=()):
        """Waits for the request that waits and shows this value; its name."""

        def probe():
            found = [one for one in self.all(pod) if shown in [value["value"] for value in one["spec"].get("shown", [])]]
            waiting = [one["metadata"]["name"] for one in found if one.get("status", {}).get("state") == "Pending"]
            return next((name for name in waiting if name not in but), None)

        return until(seconds, f"a request that shows {shown}", probe, 0.2)

    def state(self, name, *states, seconds=20):
        """Waits until a request is in one of these states."""

        def probe():
            status = self.get(name).get("status") or {}
            if status.get("state") in states:
                return status
            raise Failure(f"its status is {status}")

        return until(seconds, f"{name} is {' or '.join(states)}", probe, 0.2)

    def write(self, user, name, fields, sub="status", check=True):
        """Writes fields of the status, or of the object, as a user."""
        words = ["--subresource=status"] if sub else []
        body = json.dumps({"status": fields} if sub else fields)
        return kubectl("-n", self.namespace, "patch", "mcpapproval", name, *words, "--type=merge", "-p", body, "--as", user, check=check)

    def approve(self, name, user="anna"):
        self.write(user, name, {"decision": "Approve", "decidedBy": user})

    def deny(self, name, reason, user="anna"):
        self.write(user, name, {"decision": "Deny", "decidedBy": user, "reason": reason})


def people(namespace):
    """anna may approve; dora may for one policy, by the role of docs/approvals.md; bob may write everything of MCPApprovals and approve
    nothing; the agents' account may do all of that. The operator may write what bob may, so that no lack of such a right refuses it."""
    group = {"apiGroups": ["toolweir.dev"]}
    rules = {
        "writers": [group | {"resources": ["mcpapprovals", "mcpapprovals/status"], "verbs": ["*"]}],
        "approver-of-one": [
            group | {"resources": ["mcpapprovals"], "verbs": ["get", "list", "watch"]},
            group | {"resources": ["mcpapprovals/status"], "verbs": ["get", "patch"]},
            group | {"resources": ["mcppolicies"], "resourceNames": ["facebook"], "verbs": ["approve"]},
        ],
    }
    user = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}
    account = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    operator = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": SYSTEM}

    def binding(name, kind, role, *subjects):
        ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
        return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name}, "roleRef": ref, "subjects": list(subjects)}

    return [
        *({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": said} for name, said in rules.items()),
        binding("writers", "Role", "writers", user | {"name": "bob"}, account, operator),
        binding("approver-of-one", "Role", "approver-of-one", user | {"name": "dora"}),
        binding("approvers", "ClusterRole", "toolweir-approver", user | {"name": "anna"}, account),
    ]


# A chat: it prints what it is told.
HOOK = """
import http.server, json, threading
one_by_one = threading.Lock()
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        with one_by_one:
            print(json.dumps({"signature": self.headers.get("toolweir-signature"), "body": body}), flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8080), Hook).serve_forever()
"""


class Chat:
    """The webhook of the operators. They find its Secret when they start."""

    NAME, SECRET = "toolweir-e2e-approvals", "e2e-secret-of-signatures"

    def __init__(self, cluster, namespace):
        self.cluster, self.namespace = cluster, namespace

    def objects(self):
        pod = agent("chat", "-c", HOOK, labels={"app": "chat", "toolweir.dev/inject": "disabled"})
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"selector": {"app": "chat"}, "ports": [{"port": 8080}]}}
        return pod, service

    def __enter__(self):
        secret = {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": self.NAME},
            "stringData": {"url": f"http://chat.{self.namespace}.svc:8080/hook", "secret": self.SECRET},
        }
        self.cluster.apply(secret, namespace=SYSTEM)
        return self

    def __exit__(self, *_):
        kubectl("-n", SYSTEM, "delete", "secret", self.NAME, "--ignore-not-found", check=False)

    def told(self):
        """The requests that it was told of; each message is signed."""
        found = {}
        for line in self.cluster.logs(self.namespace, "chat").splitlines():
            said = json.loads(line)
            time, _, mac = said["signature"].removeprefix("t=").partition(",v1=")
            right = hmac.new(self.SECRET.encode(), f"{time}.{said['body']}".encode(), hashlib.sha256).hexdigest()
            expect("the signature of a message", right, mac)
            body = json.loads(said["body"])
            found[body["approval"]["name"]] = body
        return found


def written(cluster, namespace, pods):
    """Everything that could have what an agent said, by where it is."""
    places = {
        "objects": kubectl("get", "mcpapprovals,mcppolicies,pods,configmaps,leases", "-A", "-o", "yaml", "--show-managed-fields"),
        "events": kubectl("get", "events", "-A", "-o", "yaml"),
        "the webhook": cluster.logs(namespace, "chat"),
        "kubectl toolweir approvals": kubectl("toolweir", "approvals", "-n", namespace, "--all") + kubectl("toolweir", "approvals", "-n", namespace, "--all", "-o", "json"),
    }
    for pod in pods:
        places[f"the log of the sidecar of {pod}"] = cluster.logs(namespace, pod, SIDECAR)
        places[f"the metrics of the sidecar of {pod}"] = cluster.metrics_text(namespace, pod, 15020)
    for pod in cluster.operators():
        name = pod["metadata"]["name"]
        places[f"the log of {name}"] = cluster.logs(SYSTEM, name, "operator")
        places[f"the metrics of {name}"] = cluster.metrics_text(SYSTEM, name, 8080)
    return places


OPERATOR_USER = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
