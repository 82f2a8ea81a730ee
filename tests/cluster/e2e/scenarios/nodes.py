"""Two nodes, and NetworkPolicies that are enforced: the chart's, those of docs, and those of an agents' namespace."""

import json
import re
import time
from collections import Counter

from kube import Failure, agent, expect, kubectl, until
from settings import OPERATOR, ROOT, SYSTEM

from . import scenario
from .policies import MESSAGE, send

# Prints a line for each connection, and closes it.
LISTEN = """
import json, socket
try:
    listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
except OSError:
    listener = socket.create_server(("", 9000))
while True:
    connection, peer = listener.accept()
    print(json.dumps({"from": peer[0].removeprefix("::ffff:")}), flush=True)
    connection.close()
"""
# Connects to each HOST PORT of its arguments, all at once: what became of each.
CONNECT = """
import concurrent.futures, errno, json, socket, sys
def attempt(place):
    try:
        socket.create_connection(place.split(), 3).close()
        return "connected"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
with concurrent.futures.ThreadPoolExecutor(16) as threads:
    print(json.dumps(list(threads.map(attempt, sys.argv[1:]))))
"""
OPEN, CLOSED = "connected", {"ECONNREFUSED", "EHOSTUNREACH", "EACCES", "timeout"}


def on(node, pod):
    """The pod, for one node."""
    pod["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    return pod


def nodes(cluster):
    """The names of two nodes; a cluster with one is a failure."""
    ready = [
        node["metadata"]["labels"]["kubernetes.io/hostname"] for node in cluster.api.get("/api/v1/nodes")["items"]
        if not node["spec"].get("unschedulable") and any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
    ]
    if len(ready) < 2:
        raise Failure(f"needs two nodes, and there is {ready}: with tests/cluster/node.sh, set NODES=2")
    return sorted(ready)[:2]


def addresses(cluster, namespace, *pods):
    """The addresses of pods, of each family."""
    return [ip["ip"] for pod in pods for ip in cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]["podIPs"]]


def connect(namespace, pod, *places):
    """What becomes of connections from an agent's container, by place (`HOST PORT`)."""
    said = json.loads(kubectl("-n", namespace, "exec", pod, "-c", "agent", "--", "python3", "-c", CONNECT, *places))
    return dict(zip(places, said))


def closed(namespace, pod, places, what):
    """Waits until none of these connections is established: an engine may take a moment. If one still is, that is no matter of time."""

    def probe():
        if wrong := {place: said for place, said in connect(namespace, pod, *places).items() if said not in CLOSED}:
            raise Failure(f"from {pod}: {wrong}")
        return True

    until(30, what, probe, 0.3, late=Failure)


def opened(namespace, pod, places, what):
    def probe():
        if wrong := {place: said for place, said in connect(namespace, pod, *places).items() if said != OPEN}:
            raise Failure(f"from {pod}: {wrong}")
        return True

    until(30, what, probe, 0.3)


class Listeners:
    """A pod on each node that counts who connects to it, by each of its addresses."""

    def __init__(self, cluster, names):
        self.cluster, self.namespace = cluster, cluster.namespace("nodes-tools", inject=False)
        self.pods = [f"listen-{number}" for number in (1, 2)]
        cluster.apply(*(on(node, agent(pod, "-c", LISTEN, labels={"app": "listen"})) for node, pod in zip(names, self.pods)), namespace=self.namespace)
        cluster.ready(self.namespace, *self.pods)
        self.places = [f"{ip} 9000" for ip in addresses(cluster, self.namespace, *self.pods)]

    def arrived(self):
        return Counter(json.loads(line)["from"] for pod in self.pods for line in self.cluster.logs(self.namespace, pod).splitlines())


@scenario(
    "nodes", "two nodes, with NetworkPolicies that are enforced",
    "a pod on another node than all operators gets sidecar and policies, and changes of them; a NetworkPolicy without egress but what docs/install.md lists keeps everything else from arriving, from both nodes, by IPv4 and IPv6, while calls pass; "
    "the NetworkPolicy of docs/credentials.md closes a server to other namespaces; the chart's lets in what docs/install.md says, and no more",
)
def two_nodes(cluster, measured):
    names = nodes(cluster)
    namespace = cluster.namespace("nodes")
    listeners = Listeners(cluster, names)
    pods = ["agent-1", "agent-2"]
    policy = cluster.policy(namespace, tools=[send(2)])
    kubectl("cordon", names[1])
    try:
        far_from_operators(cluster, names)
        kubectl("uncordon", names[1])
        cluster.apply(policy, *(on(node, agent(pod)) for node, pod in zip(names, pods)), namespace=namespace)
        cluster.ready(namespace, *pods)
        cluster.programmed(policy, 2)
        for pod in pods:
            answers = cluster.call(namespace, pod, "send_dm_to_user", 3, **MESSAGE)
            expect(f"calls of {pod}", ["ok", "ok", "denied"], [answer["outcome"] for answer in answers])
        measured.note(f"sidecar and policy on {names[1]}, all operators on {names[0]}")
        egress(cluster, namespace, pods, policy, listeners, measured)
        ingress(cluster, namespace, pods, names, measured)
        chart(cluster, namespace, pods, measured)
    finally:
        kubectl("uncordon", names[1])


def far_from_operators(cluster, names):
    """Leaves operators on the first node alone, while the second takes no new pods."""
    where = lambda: Counter(pod["spec"].get("nodeName") for pod in cluster.operators(leaving=True))  # noqa: E731
    for pod in cluster.operators():
        if pod["spec"].get("nodeName") != names[0]:
            kubectl("-n", SYSTEM, "delete", "pod", pod["metadata"]["name"], "--wait=false")
    until(60, f"all operators are on {names[0]}", lambda: set(where()) == {names[0]})
    cluster.rollout()


def egress(cluster, namespace, pods, policy, listeners, measured):
    """Nothing but what sidecars need leaves, and they work with it."""
    for pod in pods:
        opened(namespace, pod, listeners.places, "without a NetworkPolicy, connections are established")
    control = listeners.arrived()
    sources = addresses(cluster, namespace, *pods)
    expect("who arrives without a NetworkPolicy", set(sources), set(control))
    allow = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "agents"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "agent"}}, "policyTypes": ["Egress"],
            # As docs/install.md says. The DNS of node.sh is no pod, and listens on port 5353.
            "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SYSTEM}}}], "ports": [{"port": 8444}]},
                {"ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]},
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "toolweir-e2e-tools"}}}], "ports": [{"port": 8000}]},
            ],
        },
    }
    cluster.apply(allow, namespace=namespace)
    for pod in pods:
        closed(namespace, pod, listeners.places, "the NetworkPolicy is in force")
    before = listeners.arrived()
    for pod in pods:
        closed(namespace, pod, listeners.places, "the NetworkPolicy holds")
    time.sleep(1)
    expect("who arrives", before, listeners.arrived())
    # New streams and connections, not those of before.
    policy["spec"]["servers"][0]["tools"] = [send(4)]
    cluster.apply(policy)
    cluster.programmed(policy, 2)
    for pod in pods:
        answers = cluster.call(namespace, pod, "send_dm_to_user", 3, **MESSAGE)
        expect(f"calls of {pod} behind a NetworkPolicy", ["ok", "ok", "denied"], [answer["outcome"] for answer in answers])
    kubectl("-n", namespace, "delete", "networkpolicy", "agents")
    for pod in pods:
        opened(namespace, pod, listeners.places, "without the NetworkPolicy again")
    families = {":" in place for place in listeners.places}
    measured.note(f"egress: {len(pods) * len(listeners.places)} of {len(pods) * len(listeners.places)} connections arrive without the NetworkPolicy, 0 with it{', IPv4 and IPv6' if len(families) == 2 else ''}, and calls pass")


def ingress(cluster, namespace, pods, names, measured):
    """The example of docs/credentials.md, for a server on the second node."""
    example = re.search(r"```yaml\n(apiVersion: networking\.k8s\.io/v1\n.*?)```", (ROOT / "docs/credentials.md").read_text(), re.S)[1]
    tools, others = cluster.namespace("nodes-payments", inject=False), cluster.namespace("nodes-others", inject=False)
    server = on(names[1], agent("payments", "-c", LISTEN.replace("9000", "8443"), labels={"app": "payments"}))
    cluster.apply(server, namespace=tools)
    cluster.apply(*(on(node, agent(pod)) for node, pod in zip(names, pods)), namespace=others)
    cluster.ready(tools, "payments")
    cluster.ready(others, *pods)
    places = [f"{ip} 8443" for ip in addresses(cluster, tools, "payments")]
    for pod in pods:
        opened(others, pod, places, "without a NetworkPolicy")
    cluster.apply(cluster_yaml(example, tools=tools, agents=namespace))
    for pod in pods:
        closed(others, pod, places, "the NetworkPolicy of docs/credentials.md, from another namespace")
        opened(namespace, pod, places, "the NetworkPolicy of docs/credentials.md, from the agents' namespace")
    measured.note("docs/credentials.md's NetworkPolicy: the agents' namespace alone")


def cluster_yaml(text, tools, agents):
    """The example, as an object, with the namespaces of the test in place of its own."""
    found = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", input=text))
    found["metadata"]["namespace"] = tools
    found["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = agents
    return found


def chart(cluster, namespace, pods, measured):
    """The operator's NetworkPolicy, from the pods of both nodes."""
    ips = addresses(cluster, SYSTEM, *(pod["metadata"]["name"] for pod in cluster.operators()))
    ips = [ip for ip in ips if ":" not in ip]
    inside, outside = ([f"{ip} {port}" for ip in ips for port in ports] for ports in ((8443, 8444, 8080), (8081,)))
    for pod in pods:
        opened(namespace, pod, inside, "what docs/install.md allows")
        closed(namespace, pod, outside, "the probes' port")
    metrics = [f"{ip} 8080" for ip in ips]
    try:
        # Without it, that port answers: it was the NetworkPolicy that closed it.
        kubectl("-n", SYSTEM, "delete", "networkpolicy", OPERATOR)
        for pod in pods:
            opened(namespace, pod, outside, "the probes' port without the NetworkPolicy")
        cluster.helm("upgrade", "--set-json", "networkPolicy.metricsFrom=[]")
        for pod in pods:
            closed(namespace, pod, [*outside, *metrics], "the probes' port again, and metrics without metricsFrom")
    finally:
        cluster.helm("upgrade")
    for pod in pods:
        opened(namespace, pod, metrics, "metrics again")
    measured.note("the operator's ports: 8443, 8444 and 8080 open to pods, 8081 closed to them, open without the chart's NetworkPolicy; 8080 closed without metricsFrom")
