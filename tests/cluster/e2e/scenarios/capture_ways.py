"""Ways out of captured pods on a real node, with the scripts of tests/capture: what leaves a pod's device decides."""

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from capturing import Processes, captured
from kube import SIDECAR, Background, Failure, Slow, agent, expect, kubectl, run, until
from settings import OPERATOR, OUT, ROOT, SYSTEM

from . import scenario
from .nodes import nodes, on

WAYS = ROOT / "tests/capture"
NETNS, DEVICE = "toolweir-outside", "tw-outside"
LINK, LINK6 = "10.244.254", "fd00:10:244:fe::"
# Ranges for documentation, which tests/capture calls the outside.
RANGES, RANGES6 = ["203.0.113.0/24", "198.51.100.0/24"], ["2001:db8::/32"]
OPEN = ("answered", "taken", "deleted")
ROWS = 40


def of_capture(name):
    """A module of tests/capture."""
    if str(WAYS) not in sys.path:
        sys.path.append(str(WAYS))
    return __import__(name)


class World:
    """The outside: a network namespace that has every address, behind the first node; its DNS server has the zone `test`."""

    def __init__(self, cluster):
        self.cluster, self.processes, self.folder = cluster, Processes(cluster), OUT / "ways"
        self.folder.mkdir(parents=True, exist_ok=True)

    def enter(self, *command, **options):
        return run("nsenter", f"--net=/run/netns/{NETNS}", *command, **options)

    @contextmanager
    def outside(self):
        network, names = of_capture("network"), of_capture("ways_http").NAMES
        self.remove()
        certificate = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=outside", "-addext", "subjectAltName=DNS:*.test"]
        run("openssl", "req", "-x509", *certificate, "-keyout", self.folder / "server.key", "-out", self.folder / "server.crt")
        (self.folder / "names.json").write_text(json.dumps(names))
        try:
            run("ip", "netns", "add", NETNS)
            run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "pod0", "netns", NETNS)
            # Without duplicate address detection: until it is over, 2 s later, the kernel asks for no neighbour, and nothing gets through by IPv6.
            dad = "! [ -d /proc/sys/net/ipv6/conf/{0} ] || sysctl -qw net.ipv6.conf.{0}.accept_dad=0"
            here = [dad.format(DEVICE), f"ip addr add {LINK}.1/30 dev {DEVICE}", f"ip link set {DEVICE} up", *(f"ip route add {r} via {LINK}.2" for r in RANGES)]
            there = [
                "ip link set lo up", dad.format("pod0"), f"ip addr add {LINK}.2/30 dev pod0", "ip link set pod0 up", f"ip route add 10.244.0.0/16 via {LINK}.1",
                "ip route add local default dev lo table main", "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.pod0.rp_filter=0",
            ]
            if self.six():
                here += [f"ip addr add {LINK6}1/64 dev {DEVICE} nodad", *(f"ip route add {r} via {LINK6}2" for r in RANGES6)]
                there += [f"ip addr add {LINK6}2/64 dev pod0 nodad", f"ip route add fd00:10:244::/48 via {LINK6}1", "ip -6 route add local default dev lo table main"]
            run("sh", "-ec", "\n".join(here))
            self.enter("sh", "-ec", "\n".join(there))
            self.enter("nft", "-f", "-", input=network.ANSWERS)
            with Background("nsenter", f"--net=/run/netns/{NETNS}", "python3", WAYS / "outside.py", self.folder) as answers:
                answers.line(20, "the outside answers", lambda line: line == "ready" or None)
                yield
        finally:
            self.remove()

    @staticmethod
    def remove():
        for words in (("link", "delete", DEVICE), ("netns", "delete", NETNS)):
            subprocess.run(["ip", *words], capture_output=True)

    @staticmethod
    def six():
        return Path("/proc/sys/net/ipv6/conf/cni0/disable_ipv6").exists() and any(":" in line for line in run("ip", "-6", "addr", "show", "dev", "cni0", "scope", "global").split())


class Pod:
    """A pod that tries ways out, and what left it."""

    def __init__(self, world, namespace, name):
        self.world, self.namespace, self.name = world, namespace, name
        cluster = world.cluster
        self.spec = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        self.ips = [ip["ip"] for ip in self.spec["status"]["podIPs"]]
        pid = world.processes.of_sandbox(namespace, name)
        inside = json.loads(run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "link", "show", "eth0"))[0]["link_index"]
        self.device = next(link["ifname"] for link in json.loads(run("ip", "-j", "link")) if link["ifindex"] == inside)
        service = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/services/{OPERATOR}")["spec"]["clusterIP"]
        self.dns = cluster.api.get("/api/v1/namespaces/kube-system/services/kube-dns")["spec"]["clusterIPs"]
        self.operator, self.node = service, [a["address"] for a in cluster.api.get(f"/api/v1/nodes/{self.spec['spec']['nodeName']}")["status"]["addresses"]]

    def targets(self, neighbours):
        sidecar = next((c["securityContext"] for c in self.spec["spec"].get("initContainers", []) if c["name"] == SIDECAR), {})
        pick = lambda all, six: next((one for one in all if (":" in one) == six), None)  # noqa: E731
        link = run("ip", "-j", "-6", "addr", "show", "dev", "cni0", "scope", "link")
        link = next((a["local"] for device in json.loads(link) for a in device.get("addr_info", []) if a), None)
        found = {
            "device": "eth0", "sidecar": {"uid": sidecar.get("runAsUser", 61501), "gid": sidecar.get("runAsGroup", 61502), "admin": 15000, "proxy": 15001, "capture": 15002, "metrics": 15020},
            "4": {"outside": "203.0.113.9", "neighbour": pick(neighbours, False), "own": pick(self.ips, False), "resolver": pick(self.dns, False), "metadata": "169.254.169.254", "link_local": "169.254.7.7", "broadcast": "10.244.0.255"},
        }
        if pick(self.ips, True):
            # The cluster's DNS has no IPv6 address; the node's stands for it.
            found["6"] = {"outside": "2001:db8:9::9", "neighbour": pick(neighbours, True), "own": pick(self.ips, True), "resolver": pick(self.node, True), "metadata": "fd00:ec2::254", "link_local": link}
        found["families"] = [4, 6] if "6" in found else [4]
        return found

    def tried(self, script, targets):
        """Runs the ways of a script in the agent's container: each with what left the pod meanwhile."""
        with Background("python3", WAYS / "recorder.py", self.device) as recorder:
            recorder.line(10, "the recorder is ready", lambda line: line == "ready" or None)
            words = ["exec", self.name, "-c", "agent", "--", "python3", "-c", (WAYS / script).read_text(), json.dumps(targets)]
            code, out, err = kubectl("-n", self.namespace, *words, check=False, timeout=400)
            time.sleep(0.5)
            packets = [json.loads(line) for line in list(recorder.lines)[1:] if line.endswith("}")]
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if code or not lines:
            raise Failure(f"{script} in {self.name}: {code}: {err[-600:]}")
        packets = [packet for packet in packets if not self.needed(packet)]
        for line in lines:
            line["arrived"] = [packet for packet in packets if line["began"] <= packet["time"] <= line["ended"]]
        return lines

    def needed(self, packet):
        """Whether the network itself needs a packet, or the sidecar sends it: to the operator, to cluster DNS, to who asks for metrics."""
        data, port = packet["data"].encode("latin-1"), packet.get("port")
        if packet["protocol"] == "arp":
            return packet["to"] in (*self.node, *self.ips)
        if packet["protocol"] == "icmpv6" and not packet.get("extensions"):
            solicited = data[8:24]
            known = [of_capture("network").address6(ip) for ip in (*self.node, *self.ips) if ":" in ip]
            return packet["kind"] in (133, 136, 143) or packet["kind"] == 135 and (solicited in known or solicited[:2] == b"\xfe\x80")
        if packet["protocol"] in ("tcp", "udp") and packet.get("to") in self.dns and port == 53:
            return True
        return packet["protocol"] == "tcp" and (packet.get("to"), port) == (self.operator, 8444) or packet.get("from_port") == 15020 and packet.get("to") in self.node


def is_open(line):
    return bool(line["arrived"]) or line["result"] in OPEN


def astray(line):
    """What left for where it may not, or carries what is smuggled; as tests/capture judges it."""
    away = [one for one in line["arrived"] if one.get("to") not in line["may"] or line["token"] in one["data"]]
    return [one for one in away if one["protocol"] != "tcp" or one["data"] or "S" in one.get("flags", "")]


def tell(lines, wrong, what):
    """A failure that names what is open."""
    if wrong:
        shown = [f"{line['row']} {line['family']}: {line['result']} {line['detail']:.120} {[(p['protocol'], p.get('to'), p.get('port'), p['data'][:30]) for p in line['arrived'][:3]]}" for line in wrong]
        raise Failure(f"{what}: {len(wrong)} of {len(lines)} are open: {'; '.join(shown):.2500}")
    ran = [line for line in lines if line["result"] != "untried"]
    if len(ran) < ROWS:
        raise Failure(f"{what}: only {len(ran)} rows were tried: {Counter(line['result'] for line in lines)}")
    return len(ran)


def worked(lines, what):
    """The longest time that something took which must work. One that waited in vain is late; any other answer is wrong."""
    must = [line for line in lines if line["row"].startswith("works_")]
    missed = [(line["row"], line["family"], line["result"], line["detail"][:120]) for line in must if line["result"] != "answered"]
    expect(f"{what}: what must work and does not", [], [miss for miss in missed if miss[2] != "silent"])
    if missed:
        raise Slow(f"{what}: what must work is not answered: {missed}")
    return max(line["ended"] - line["began"] for line in must)


@scenario(
    "capture-ways", "ways out of captured pods on a real node: addresses, protocols, sockets, namespaces, HTTP and TLS",
    f"at least {ROWS} rows, each as an unprivileged user and as root with all capabilities dropped, IPv4 and IPv6: nothing leaves the pod's device but what the policy allows; the same ways are open without capture; each refusal is counted",
)
def ways(cluster, measured):
    world = World(cluster)
    names, http = nodes(cluster), of_capture("ways_http")
    namespace = captured(cluster, "capture-ways")
    policy = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", input=http.POLICY))
    policy["metadata"]["namespace"] = namespace
    cluster.apply(policy)
    pods = []
    for name, user in (("unprivileged", 1000), ("root", 0)):
        for kind in ("out", "http"):
            pod = on(names[0], agent(f"{name}-{kind}", user=user))
            pod["spec"]["securityContext"]["runAsNonRoot"] = bool(user)
            pods.append(pod)
    elsewhere = cluster.namespace("capture-free", inject=False)
    # One that tries the same without capture, and a neighbour for all: who is tried at answers, which is no way out.
    cluster.apply(on(names[0], agent("free")), on(names[0], agent("neighbour")), namespace=elsewhere)
    cluster.apply(*pods, namespace=namespace)
    made = [pod["metadata"]["name"] for pod in pods]
    cluster.ready(namespace, *made, seconds=90)
    cluster.ready(elsewhere, "free", "neighbour")
    cluster.programmed(policy, len(made))
    with world.outside(), ExitStack() as stack:
        until(20, "the cluster's DNS has the outside's names", lambda: kubectl("-n", elsewhere, "exec", "free", "-c", "agent", "--", "python3", "-c", "import socket; print(socket.gethostbyname('allowed.test'))"))
        tried = {name: Pod(world, namespace if name in made else elsewhere, name) for name in [*made, "free"]}
        neighbours = Pod(world, elsewhere, "neighbour").ips
        threads = stack.enter_context(ThreadPoolExecutor(5))

        def attempt(name):
            pod = tried[name]
            targets = pod.targets(neighbours)
            if name.endswith("http"):
                return pod.tried("ways_out_http.py", {"names": http.NAMES, "families": targets["families"]})
            return pod.tried("ways_out.py", targets)

        found = dict(zip(tried, threads.map(attempt, tried)))
    (world.folder / "found.json").write_text(json.dumps(found, indent=1))
    counts = {name: tell(found[name], [line for line in found[name] if (astray(line) if name.endswith("http") else is_open(line))], name) for name in made}
    slowest = max(worked(found[name], name) for name in made if name.endswith("http"))
    effective = sum(map(is_open, found["free"]))
    if effective < 20:
        raise Failure(f"without capture only {effective} of {len(found['free'])} ways are open, so this shows little")
    denied = {name: sum(v for metric, l, v in cluster.sidecar_metrics(namespace, name) if metric == "toolweir_egress_connections_total" and l["decision"] == "denied") for name in made}
    expect("pods whose refusals are not counted", [], [name for name, value in denied.items() if not value])
    untried = sorted({line["row"] for name in made for line in found[name] if line["result"] == "untried"})
    measured.note(f"rows by pod: {', '.join(f'{name} {count}' for name, count in counts.items())}: none open; {effective} of {len(found['free'])} open without capture; connections denied and counted: {sum(denied.values()):.0f}; what must work took {slowest:.2f} s at most; not to be tried here: {', '.join(untried) or 'none'}")
