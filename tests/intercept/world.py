"""A captured pod whose sidecar opens HTTPS, and the servers outside."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "capture"), str(HERE.parent / "shared")]
from certificates import Authority, fingerprint, pem  # noqa: E402
from network import GID, PORTS, UID, World  # noqa: E402
from processes import wait_until  # noqa: E402

NAMESPACE, POD_NAME = "agents", "agent-0"
CONTROL_PLANE = 15443
# Where containers find the bundle. Here, it is another folder.
MOUNT = "/etc/toolweir"
# Where somebody in the pod serves what the pod's authority was made to sign. Loopback is not captured.
ROGUE = 9443
# Every server outside is one process.
ANSWERS = """
table inet answers {
	chain arriving {
		type nat hook prerouting priority -100;
		meta l4proto { tcp, udp } th dport 53 redirect to :4
		tcp dport { 443, 8443 } redirect to :6
		meta l4proto tcp redirect to :1
	}
}
"""
LOOPBACK = ["127.0.0.1", "::1"]


def addresses(number):
    return [f"203.0.113.{number}", f"2001:db8:9::{number}"]


def policy(*servers, name="intercept", **spec):
    """A policy of the pod's namespace."""
    metadata = {"name": name, "namespace": NAMESPACE}
    spec = {"podSelector": {}, "servers": list(servers)} | spec
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": metadata, "spec": spec}


def server(name, url, *tools, tls="Intercept", **more):
    given = {"tls": tls} if tls else {}
    return {"name": name, "url": url, "tools": list(tools) or [{"name": "get_page_fan_count"}]} | given | more


class InterceptedPod(World):
    """`names`: the addresses of those that DNS knows, besides the servers of `certificates`. The sidecar has no policy before `govern`."""

    answers, search = ANSWERS, ("agents.svc.cluster.local", "svc.cluster.local", "cluster.local")

    def __init__(self, binary, logs, python):
        super().__init__(binary, logs, python)
        self.outside_dir, self.rogue_dir, self.control_dir = (self.dir / name for name in ("servers", "rogue", "control-plane"))
        for folder in (self.outside_dir, self.rogue_dir, self.control_dir):
            (folder / "certificates").mkdir(parents=True)
        # As volumes: the state is the sidecar's alone, the others are the agent's to read.
        self.state, self.bundle_dir = self.dir / "state", self.dir / "toolweir"
        for folder, mode in ((self.state, 0o700), (self.bundle_dir, 0o755)):
            folder.mkdir()
            folder.chmod(mode)
            shutil.chown(folder, UID, GID)
        self.bundle, self.interception = self.bundle_dir / "ca-bundle.pem", self.state / "interception.json"
        self.home = self.dir / "home"
        self.home.mkdir()
        self.public, self.version = Authority.root("Authority of the outside"), 0
        self.names = {}
        (self.dir / "token").write_text("of nobody")
        self.process = self.operator = None

    def host(self, name, where, certificate=None):
        """A server outside, with a certificate of the outside's authority unless another is given."""
        self.names[name] = where
        self.certificate(self.outside_dir, name, certificate or self.public.leaf(name))

    @staticmethod
    def certificate(folder, name, text):
        (folder / f"certificates/{name}.pem").write_text(text)

    def begin(self, sessions=True):
        """All that is outside, and the rules. Without `sessions`, the server takes a call as the first message."""
        if not sessions:
            (self.outside_dir / "without-sessions").touch()
        (self.dir / "names.json").write_text(json.dumps(self.names))
        self.connect()
        self.certificate(self.outside_dir, "default", self.public.leaf("default.test"))
        self.serve("servers", self.outside, 6, self.outside_dir)
        written = self.capture()
        assert written.returncode == 0, written.stderr

    def serve(self, name, where, *words):
        process = self.popen(name, [*where.enter, sys.executable, HERE / "server.py", *words], stdout=subprocess.PIPE)
        self.wait_ready(name, process)

    def wait_ready(self, name, process):
        assert process.stdout.readline() == "ready\n", f"{name}: {(self.logs / f'{name}.log').read_text()[-2000:]}"

    def snapshot(self, *policies):
        """What the operator sends from now on."""
        self.version += 1
        line = json.dumps({"snapshot": {"version": str(self.version), "policies": policies}})
        fresh = self.control_dir / "snapshot.new"
        fresh.write_text(line)
        fresh.rename(self.control_dir / "snapshot.json")

    def govern(self, *policies, seconds=10):
        """Sends policies, with the operator and the sidecar if they do not run yet. They are in force when this returns."""
        self.snapshot(*policies)
        if not self.operator:
            command = [*self.inside.enter, sys.executable, HERE / "control_plane.py", CONTROL_PLANE, self.control_dir]
            self.operator = self.popen("control-plane", command, stdout=subprocess.PIPE)
            self.wait_ready("control-plane", self.operator)
        if not self.process:
            self.start()
        wait_until("the policies are in force", lambda: any(one.get("version") == str(self.version) for one in self.reports()), seconds)

    def start(self):
        """The sidecar."""
        flags = ["--control-plane", f"http://127.0.0.1:{CONTROL_PLANE}", "--token-file", self.dir / "token", "--state-dir", self.state]
        flags += ["--agent-ca-dir", self.bundle_dir, "--pod-name", POD_NAME, "--pod-namespace", NAMESPACE]
        self.process = self.run_sidecar(*flags, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TOOLWEIR_EXTRA_ROOTS": pem(self.public.certificate)})

    def kill(self):
        """SIGKILL to the sidecar."""
        self.stop(self.process)
        self.process = None

    def restart(self):
        self.kill()
        self.start()

    def reports(self):
        """What the sidecar told the operator."""
        file = self.control_dir / "reports"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def environment(self):
        """The variables of an agent's container: what the operator adds, and no more than programs need."""
        return variables(self.bundle_dir) | {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8"}

    def agent(self, *command, user="root", environment=(), seconds=60, **options):
        """A command in a container of the agent. Root has no capabilities there; what is in the cache folder is its own to read."""
        options = {"capture_output": True, "text": True, "timeout": seconds, "cwd": self.home, "env": self.environment() | dict(environment)} | options
        return subprocess.run([str(word) for word in self.container(user, *command)], **options)

    def requests(self, folder=None):
        return [json.loads(line) for line in ((folder or self.outside_dir) / "requests").read_text().splitlines()]

    def delivered(self):
        """The calls that the server has got."""
        file = self.outside_dir / "tools"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def ask(self, port, path, body=None):
        """The sidecar's answer at one of its own ports."""
        data = ["--data-binary", "@-"] if body else []
        command = [*self.inside.enter, "curl", "-sS", "--max-time", "5", *data, f"http://127.0.0.1:{PORTS[port]}{path}"]
        ran = subprocess.run(list(map(str, command)), input=body and json.dumps(body), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def samples(self):
        """The metrics: {name: [(labels, value)]}."""
        return parse_metrics(self.ask("metrics", "/metrics"))

    def metric(self, name, **labels):
        return total(self.samples(), name, **labels)

    def audit(self):
        return [json.loads(line) for line in (self.logs / "audit").read_text().splitlines()]

    def log(self):
        """The sidecar's log."""
        return (self.logs / "sidecar.log").read_text()

    def fingerprint(self):
        return fingerprint(Authority.of_pod(self.interception).certificate)


def variables(folder):
    """What the operator gives every container of an agent, by the golden file of a pod that it has injected."""
    pod = (HERE.parent.parent / "operator/tests/pods/captured-intercepted.golden.yaml").read_text()
    found = dict(re.findall(rf"- name: (\w+)\n +value: (\S*{MOUNT}/ca-bundle\.\w+)$", pod, re.M))
    assert len(found) >= 7, found
    return {name: value.replace(MOUNT, str(folder)) for name, value in found.items()}


def parse_metrics(text):
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def total(samples, name, **labels):
    return sum(value for given, value in samples.get(name, ()) if all(given.get(key) == want for key, want in labels.items()))


class Growth:
    """How much metrics have grown since this was made."""

    def __init__(self, world):
        self.world, self.before = world, world.samples()

    def __call__(self, name, **labels):
        return round(total(self.world.samples(), name, **labels) - total(self.before, name, **labels))

    def handshakes(self, result):
        return self("toolweir_interception_handshakes_total", result=result)

    def connections(self, reason):
        return self("toolweir_egress_connections_total", reason=reason)
