"""A pod and what is outside it: two network namespaces with a pair of devices between them, both families, and a recorder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))
from processes import wait_until  # noqa: E402

UID, GID = 61501, 61502
PORTS = {"admin": 15000, "proxy": 15001, "capture": 15002, "metrics": 15020}
POD = {4: "10.77.0.2", 6: "fd77::2"}
GATEWAY = {4: "10.77.0.1", 6: "fd77::1"}
NEIGHBOUR = {4: "10.77.0.3", 6: "fd77::3"}
# Of the ranges for documentation. The proof of the rules uses others.
OUTSIDE = {4: "203.0.113.9", 6: "2001:db8:9::9"}
NODE_LOCAL = "169.254.20.10"
EXTRA = {"4": ["198.51.100.77"], "6": ["2001:db8:77::77"]}
DROPPED = ["setpriv", "--bounding-set", "-all", "--inh-caps=-all", "--no-new-privs"]
USERS = {
    "unprivileged": ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", *DROPPED[1:]],
    "root": DROPPED,
    "sidecar": ["setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups", *DROPPED[1:]],
}
# Redirections of what arrives outside to `outside.py`.
ANSWERS = """
table inet answers {
	chain arriving {
		type nat hook prerouting priority -100;
		meta l4proto { tcp, udp } th dport 53 redirect to :4
		tcp dport { 443, 8443 } redirect to :2
		tcp dport 9000 redirect to :5
		meta l4proto tcp redirect to :1
		meta l4proto udp redirect to :3
	}
}
"""


def sh(*command, **options):
    """Runs a command that must succeed; its output."""
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout


class Namespace:
    """A network and mount namespace, which lives as long as a process in it."""

    def __init__(self, world, name, prepare=""):
        self.world = world
        self.process = world.popen(
            name, ["unshare", "--net", "--mount", "sh", "-ec", f"{prepare}\nip link set lo up\necho ready\nexec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline() == "ready\n", (world.logs / f"{name}.log").read_text()
        self.enter = ["nsenter", "--net", "--mount", "--target", str(self.process.pid), "--"]

    def run(self, *command, **options):
        return subprocess.run([*self.enter, *map(str, command)], capture_output=True, text=True, **options)

    def sh(self, *command, **options):
        return sh(*self.enter, *command, **options)


class World:
    """A pod, the outside, and the processes in both. `binary` is the sidecar."""

    # To which of `outside.py`'s ports leads what arrives outside, and the search domains of the pod.
    answers, search = ANSWERS, ()

    def __init__(self, binary, logs, python):
        self.logs, self.python = logs, python
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self.processes = []
        # Where every user can read it, which a checkout need not be.
        self.dir = Path(tempfile.mkdtemp(prefix="toolweir-capture-"))
        self.dir.chmod(0o755)
        self.binary = self.dir / "toolweir-sidecar"
        shutil.copy(binary, self.binary)
        self.binary.chmod(0o755)
        self.set_uid = self.dir / "python"
        shutil.copy(Path(python).resolve(), self.set_uid)
        shutil.chown(self.set_uid, UID, GID)
        self.set_uid.chmod(0o6755)
        self.resolv = self.dir / "resolv.conf"
        search = f"search {' '.join(self.search)}\n" if self.search else ""
        self.resolv.write_text(f"{search}nameserver {GATEWAY[4]}\nnameserver {NODE_LOCAL}\nnameserver {GATEWAY[6]}\noptions timeout:1\n")

    def popen(self, name, command, **options):
        with open(self.logs / f"{name}.log", "a") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "text": True} | options
            process = subprocess.Popen([str(word) for word in command], **options)
        self.processes.append(process)
        return process

    def pod(self, name="pod"):
        """A namespace with the pod's resolvers."""
        return Namespace(self, name, f"mount --bind {self.resolv} /etc/resolv.conf")

    def connect(self):
        """The pod with its device, and the outside behind it, which has every address."""
        self.outside, self.inside = Namespace(self, "outside"), self.pod()
        at = str(self.inside.process.pid), str(self.outside.process.pid)
        sh("ip", "link", "add", "eth0", "netns", at[0], "type", "veth", "peer", "name", "pod0", "netns", at[1])
        self.inside.sh(
            "sh",
            "-ec",
            f"""
            sysctl -qw net.ipv6.conf.eth0.accept_dad=0
            ip link set eth0 up
            ip addr add {POD[4]}/24 dev eth0; ip addr add {POD[6]}/64 dev eth0 nodad
            ip addr add {EXTRA["4"][0]}/32 dev lo; ip addr add {EXTRA["6"][0]}/128 dev lo nodad
            sysctl -qw net.ipv4.ping_group_range="0 2147483647" net.ipv4.tcp_fastopen=3
            """,
        )
        self.outside.sh(
            "sh",
            "-ec",
            f"""
            sysctl -qw net.ipv6.conf.pod0.accept_dad=0
            ip link set pod0 up
            ip addr add {GATEWAY[4]}/24 dev pod0; ip addr add {GATEWAY[6]}/64 dev pod0 nodad
            ip addr add {NEIGHBOUR[4]}/24 dev pod0; ip addr add {NEIGHBOUR[6]}/64 dev pod0 nodad
            ip route add local default dev lo table main; ip -6 route add local default dev lo table main
            sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.pod0.rp_filter=0 net.ipv4.tcp_fastopen=3
            nft -f - <<'EOF'
            {self.answers}
            """,
        )
        # The link-local gateway, as of many networks of pods.
        self.inside.sh("sh", "-ec", f"ip route add default via {GATEWAY[4]}; ip -6 route add default via {GATEWAY[6]}")
        shown = json.loads(self.outside.sh("ip", "-j", "-6", "addr", "show", "dev", "pod0", "scope", "link"))
        self.link = next(one["local"] for device in shown for one in device.get("addr_info", ()) if one)
        self.popen("outside", [*self.outside.enter, self.python, "-c", (HERE / "outside.py").read_text(), self.dir])
        self.popen("recorder", [*self.outside.enter, self.python, "-c", (HERE / "recorder.py").read_text(), "pod0"], stdout=open(self.logs / "packets", "w"))
        wait_until("the recorder is ready", lambda: (self.logs / "packets").read_text().startswith("ready"))
        wait_until("the outside is ready", lambda: "ready" in (self.logs / "outside.log").read_text())

    def targets(self, **more):
        """What `ways_out.py` is told."""
        found = {
            str(family): {
                "outside": OUTSIDE[family],
                "neighbour": NEIGHBOUR[family],
                "own": POD[family],
                "resolver": GATEWAY[family],
                "metadata": "169.254.169.254" if family == 4 else "fd00:ec2::254",
                "link_local": "169.254.7.7" if family == 4 else self.link,
            }
            for family in (4, 6)
        }
        found["4"]["broadcast"] = "10.77.0.255"
        found |= {"device": "eth0", "sidecar": {"uid": UID, "gid": GID} | PORTS, "set_uid": str(self.set_uid), "extra": EXTRA}
        return json.dumps(found | more)

    def container(self, user, *command, writable=False):
        """A command in a container of the pod: its own processes, nobody's capabilities, and the kernel's settings read-only."""
        settings = [] if writable else ["sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]
        apart = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        return [*self.inside.enter, *apart, *settings, *USERS[user], *map(str, command)]

    def capture(self, *flags, where=None, **options):
        where = where or self.inside
        return where.run(self.binary, "capture", "--uid", UID, "--gid", GID, *flags, **options)

    def sidecar(self, policy):
        """The sidecar with a policy, in its container; ready when this returns."""
        (self.dir / "policy.yaml").write_text(policy)
        return self.run_sidecar("--policy", self.dir / "policy.yaml")

    def run_sidecar(self, *flags, **options):
        command = [self.binary, "--log-format", "json", "run", *flags, "--capture-port", PORTS["capture"]]
        addresses = [f"--pod-ips={','.join(POD.values())}", f"--node-ips={GATEWAY[4]}"]
        with open(self.logs / "audit", "a") as audit:
            process = self.popen("sidecar", self.container("sidecar", *command, *addresses), stdout=audit, **options)
        self.wait_for_sidecar()
        return process

    def wait_for_sidecar(self):
        ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORTS['metrics']}/readyz', timeout=1)"
        wait_until("the sidecar is ready", lambda: self.inside.run(self.python, "-c", ask).returncode == 0)

    @staticmethod
    def inner(process):
        """The process of a container, of which `unshare` is the parent; None once it has ended."""
        try:
            return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        except (OSError, IndexError):
            return None

    def stop(self, process):
        """Kills a container. `--kill-child` does not reach one that has changed its user."""
        if process.poll() is None:
            if inner := self.inner(process):
                os.kill(inner, signal.SIGKILL)
            process.kill()
        process.wait()
        self.processes.remove(process)

    def packets(self, began, ended):
        """What the recorder got in a span of time."""
        time.sleep(0.15)
        lines = (self.logs / "packets").read_text().splitlines()[1:]
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [one for one in found if began <= one["time"] <= ended]

    def close(self):
        for process in reversed(self.processes[:]):
            self.stop(process)
        shutil.rmtree(self.dir, ignore_errors=True)


def inevitable(packet, world):
    """Whether a packet is of what the network itself needs: where the gateway is, and the groups of neighbour discovery."""
    data = packet["data"].encode("latin-1")
    if packet["protocol"] == "arp":
        return packet["to"] in (GATEWAY[4], POD[4])
    if packet["protocol"] != "icmpv6" or packet.get("extensions"):
        return False
    known = [address6(one) for one in (GATEWAY[6], POD[6], world.link)]
    if packet["kind"] in (135, 136):
        return data[8:24] in known or packet["kind"] == 136 or data[8:10] == b"\xfe\x80"
    if packet["kind"] == 143:
        groups = [data[at : at + 20] for at in range(8, len(data), 20)]
        return all(group[1:4] == bytes(3) and group[4:17] == SOLICITED for group in groups)
    return packet["kind"] == 133


def address6(text):
    return socket.inet_pton(socket.AF_INET6, text)


SOLICITED = address6("ff02::1:ff00:0")[:13]


def shown(packet):
    ports = f" {packet.get('from_port', '')}>{packet.get('port', '')}" if "port" in packet else ""
    return f"{packet['protocol']}{ports} {packet.get('flags', packet.get('kind', ''))} {packet.get('from', '')} -> {packet.get('to')} {packet['data'][:40]!r}"
