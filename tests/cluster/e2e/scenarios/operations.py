"""Every kind of operation, from `kubectl apply` to what a client of an SDK gets: prompts, resources, completion, and what a server asks for."""

import json
import sys

from approving import START, clients
from kube import Failure, expect, kubectl, total
from settings import ROOT

sys.path.append(str(ROOT / "tests/operations"))
import expected  # noqa: E402
from steps import steps_for  # noqa: E402

from . import scenario

NAME = "notes"
FOLDER = "/opt/clients/operations"
# By the mode of the client, which Python 2.x has for both eras: the era, and the policies that it is tried with.
MODES = {"legacy": ("legacy", ["allow", "deny"]), "auto": ("modern", ["allow", "deny", "some"])}
COUNTED = ("prompts/get", "resources/read", "sampling/createMessage", "elicitation/create", "roots/list")


@scenario(
    "operations", "prompts, resources, completion, and what a server asks for: a real SDK in both eras",
    "all that is allowed is as without a sidecar; what is denied is told in words, hidden in lists, and does not reach the other side; each is counted by its operation",
)
def operations(cluster, measured):
    namespace = cluster.namespace("operations")
    url = f"http://{NAME}.{namespace}.svc:8000/mcp"
    policy = cluster.policy(namespace, "operations")
    policy["spec"]["servers"] = [{"name": f"{NAME}-{way}", "url": url} | expected.POLICIES[way] for way in ("allow", "deny", "some")]
    # Denials name their policy.
    expected.POLICY = f"{namespace}/operations"
    cluster.apply(policy, *serving(), clients("agent"), namespace=namespace)
    cluster.ready(namespace, NAME, "agent")
    cluster.programmed(policy, 1)

    taken = 0
    for mode, (era, ways) in MODES.items():
        direct = record(namespace, mode, url, steps_of(era))
        faultless(f"{mode}, directly", expected.faults_direct(steps_of(era), direct))
        for way in ways:
            steps = steps_of(era, denied=way == "deny")
            said = record(namespace, mode, f"http://127.0.0.1:15001/{NAME}-{way}", steps)
            faults = {"allow": expected.faults_same, "deny": expected.faults_denied, "some": expected.faults_some}[way](steps, said, direct)
            faultless(f"{mode}, {way}", faults)
            taken += len(said["steps"])
    metrics = cluster.sidecar_metrics(namespace, "agent")
    for way, decision in ("allow", "allowed"), ("deny", "denied"):
        counts = {name: total(metrics, "toolweir_operations_total", server=f"{NAME}-{way}", operation=name, decision=decision) for name in COUNTED}
        expect(f"operations that were never {decision}", [], [name for name, count in counts.items() if not count])
    measured.note(f"{taken} steps of a client of Python 2.x, legacy and modern, through policies that allow and deny: as without a sidecar, but for what is denied; all {len(COUNTED)} operations counted")


def serving():
    """The server of tests/operations, which needs no sidecar."""
    pod = clients(NAME)
    pod["metadata"]["labels"] = {"app": NAME, "toolweir.dev/inject": "disabled"}
    container = pod["spec"]["containers"][0]
    container["args"] = [f"{FOLDER}/server2.py", "http", "8000", "0.0.0.0"]
    container["readinessProbe"] = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": {"selector": {"app": NAME}, "ports": [{"port": 8000}]}}
    return pod, service


def steps_of(era, denied=False):
    steps = [step for step in steps_for(tasks=False, denied=denied) if era in step["eras"]]
    return [step | {"patience": 0.5} if denied and step["name"] in expected.SILENT else step for step in steps]


def record(namespace, mode, url, steps):
    """What the client says of all steps."""
    words = ["python3", f"{FOLDER}/client2.py", url, "http", json.dumps(steps)]
    command = ["python3", "-c", START, json.dumps(words), json.dumps({"MCP_MODE": mode})]
    return json.loads(kubectl("-n", namespace, "exec", "agent", "-c", "agent", "--", *command))


def faultless(what, faults):
    if faults:
        raise Failure(f"{what}: {'; '.join(faults[:6])}")
