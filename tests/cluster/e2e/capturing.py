"""What the scenarios of capture share: pods, who listens outside, and the processes of the node."""

import json
import os
import signal
import time
from collections import Counter

from kube import IMAGE_TAG, Failure, agent, run
from settings import NODE_DIR

CAPTURE, CAPTURE_CONTAINER = "toolweir.dev/capture", "toolweir-capture"
CLIENTS_IMAGE = f"localhost/toolweir-clients:{IMAGE_TAG}"
PORT = 9000
# Says hello first, and prints a line for what each connection and each datagram brought.
LISTEN = """
import json, socket, sys, threading
lock = threading.Lock()
def say(kind, peer, text):
    with lock:
        print(json.dumps({"kind": kind, "from": peer[0].removeprefix("::ffff:"), "text": text.decode(errors="replace")}), flush=True)
try:
    listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", 9000))
except OSError:
    listener = socket.create_server(("", 9000), backlog=512)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", 9000))
def receive():
    while True:
        text, peer = datagrams.recvfrom(100)
        say("udp", peer, text)
def serve(connection, peer):
    with connection:
        connection.settimeout(2)
        text = b""
        try:
            connection.sendall(b"hello\\n")
            text = connection.recv(100)
        except OSError:
            pass
        say("tcp", peer, text)
threading.Thread(target=receive, daemon=True).start()
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
"""


def captured(cluster, name, **labels):
    """A namespace whose pods are injected and captured."""
    return cluster.namespace(name, **{CAPTURE: "enabled", **labels})


class Outside:
    """A pod that nobody declares, and what arrived there."""

    def __init__(self, cluster, name):
        self.cluster, self.namespace = cluster, cluster.namespace(name, inject=False)
        service = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
            "spec": {"selector": {"app": "outside"}, "ports": [{"name": kind, "port": PORT, "protocol": kind.upper()} for kind in ("tcp", "udp")]},
        }
        cluster.apply(service, agent("outside", "-c", LISTEN, labels={"app": "outside"}), namespace=self.namespace)
        cluster.ready(self.namespace, "outside")
        self.name = f"outside.{self.namespace}.svc.cluster.local"
        self.ips = [ip["ip"] for ip in cluster.api.get(f"/api/v1/namespaces/{self.namespace}/pods/outside")["status"]["podIPs"]]

    def places(self):
        return [f"{kind} {host} {PORT}" for kind in ("tcp", "udp") for host in (*self.ips, self.name)]

    def arrived(self):
        """How much arrived, by kind and sender."""
        lines = map(json.loads, self.cluster.logs(self.namespace, "outside").splitlines())
        return Counter((line["kind"], line["from"]) for line in lines)


class Processes:
    """The processes of pods, on the nodes of node.sh."""

    def __init__(self, cluster):
        self.cluster = cluster
        if os.environ.get("KUBECONFIG") != str(NODE_DIR / "run/admin.kubeconfig"):
            raise Failure("needs the processes of the node, so a cluster of tests/cluster/node.sh: leave KUBECONFIG out")

    def _ctr(self, node, *words):
        return run("ctr", "--address", NODE_DIR / f"run/containerd{node.removeprefix('node')}.sock", "--namespace", "k8s.io", *words)

    def _pids(self, node):
        return {words[0]: int(words[1]) for words in map(str.split, self._ctr(node, "tasks", "ls").splitlines()[1:])}

    def of_container(self, namespace, pod, container):
        """The pid of a container's first process; fails while it does not run."""
        found = self.cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        statuses = [*found["status"].get("initContainerStatuses", []), *found["status"].get("containerStatuses", [])]
        identity = next(status["containerID"] for status in statuses if status["name"] == container)
        return self._pids(found["spec"]["nodeName"])[identity.removeprefix("containerd://")]

    def of_sandbox(self, namespace, pod):
        found = self.cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        node, pids = found["spec"]["nodeName"], self._pids(found["spec"]["nodeName"])
        chosen = f'labels."io.kubernetes.pod.uid"=={found["metadata"]["uid"]},labels."io.cri-containerd.kind"==sandbox'
        return next(pids[identity] for identity in self._ctr(node, "containers", "ls", "--quiet", chosen).split() if identity in pids)

    @staticmethod
    def started(pid):
        """When a process started, in seconds since 1970."""
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(") ")[2].split()[19])
        with open("/proc/uptime") as file:
            up = float(file.read().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")

    kill = staticmethod(os.kill)
    KILL, STOP, CONTINUE = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
