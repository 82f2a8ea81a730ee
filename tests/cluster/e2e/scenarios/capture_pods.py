"""Captured pods: what still works in them, and what is refused of them."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from capturing import CAPTURE, CAPTURE_CONTAINER, Outside, captured
from kube import INJECT, SIDECAR, Background, Failure, agent, expect, expect_in, kubectl, total, until

from . import scenario
from .agents import README, finished
from .nodes import connect
from .policies import MESSAGE

# Connects to HOST PORT, and prints the seconds until the other one's first bytes were there, and these.
GREET = """
import json, socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    text = sock.recv(100).decode()
    took = time.monotonic() - began
    sock.sendall(b"bye")
print(json.dumps([took, text]))
"""
RESOLVE = """
import json, socket, sys
print(json.dumps([sorted({found[4][0] for found in socket.getaddrinfo(name, None)}) for name in sys.argv[1:]]))
"""
FETCH = """
import sys, urllib.request
for url in sys.argv[1:]:
    print(urllib.request.urlopen(url, timeout=5).status)
"""


def python(namespace, pod, script, *words):
    return kubectl("-n", namespace, "exec", pod, "-c", "agent", "--", "python3", "-c", script, *words)


def served(namespace):
    """An agent that serves something itself, with probes of every kind, and its Service."""
    pod = agent("served", "-m", "http.server", "8080", "--directory", "/opt/agent", "--bind", "::", labels={"app": "agent", "serves": "true"})
    http = {"httpGet": {"path": "/wait.py", "port": 8080}, "periodSeconds": 1}
    pod["spec"]["containers"][0].update({
        "readinessProbe": http, "livenessProbe": {**http, "initialDelaySeconds": 1}, "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    })
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "served"}, "spec": {"selector": {"serves": "true"}, "ports": [{"port": 80, "targetPort": 8080}], "ipFamilyPolicy": "PreferDualStack"}}
    return pod, service


def job(url):
    """A Job of an agent, with an init container that calls the server before it."""
    pod = agent("job", "/opt/agent/agent.py", url, restart="Never")
    first = {**pod["spec"]["containers"][0], "name": "first", "args": ["/opt/agent/call.py", url, "--list"]}
    pod["spec"]["initContainers"] = [first]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}}}


@scenario(
    "capture-pods", "what must still work in captured pods",
    "probes, Services to the pod, exec, port-forward, Jobs (complete), init containers after ours, DNS, both address families; a server-first protocol that a policy allows; from a pod without any policy nothing leaves",
)
def pods(cluster, measured):
    outside, namespace = Outside(cluster, "capture-world"), captured(cluster, "capture-pods")
    policy = cluster.policy(namespace, tools=README)
    policy["spec"]["egress"] = {"allow": [{"domainNames": [outside.name], "ports": [9000]}]}
    url = cluster.server_url()
    cluster.apply(policy)
    # Of no policy.
    alone = agent("alone", "/opt/agent/leak.py", url, "get_page_info", "delete_post", *outside.places(), labels={"app": "alone"})
    before = len(cluster.delivered())
    cluster.apply(*served(namespace), job(url), alone, agent("caller"), namespace=namespace)
    cluster.apply(agent("visitor"), namespace=outside.namespace)
    cluster.ready(namespace, "served", "alone", "caller")
    cluster.ready(outside.namespace, "visitor")

    with ThreadPoolExecutor(4) as threads:
        checks = [threads.submit(check, cluster, namespace, outside) for check in (inbound, port_forward, resolved, greeted)]
        notes = [check.result() for check in checks]
    finished(cluster, namespace, "job", 90)
    name = next(pod for pod in cluster.pods(namespace) if pod.startswith("job-"))
    expect("the Job's calls", "  30 delivered, 5 denied. The model reads:", next(line for line in cluster.logs(namespace, name).splitlines() if "delivered" in line))
    expect("what its init container saw", ["send_dm_to_user"], json.loads(cluster.logs(namespace, name, "first"))["text"])
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["spec"]["initContainers"]
    expect("init containers", [CAPTURE_CONTAINER, SIDECAR, "first"], [container["name"] for container in found])
    notes.append("a Job completes, its init container is governed too")

    # The pods that no policy selects have tried all the while.
    samples = cluster.sidecar_metrics(namespace, "alone")
    denied = total(samples, "toolweir_egress_connections_total", decision="denied")
    if not denied or total(samples, "toolweir_egress_connections_total", decision="allowed"):
        raise Failure(f"the metrics of a pod without a policy: {denied} denied")
    theirs = {ip["ip"] for ip in cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/alone")["status"]["podIPs"]}
    expect("what arrived from a pod without a policy", [], [key for key in outside.arrived() if key[1] in theirs])
    expect("calls of it that the server got", [], [line for line in cluster.delivered()[before:] if line["tool"] != "send_dm_to_user"])
    notes.append(f"without a policy {denied:.0f} connections denied, none arrived")
    notes.append(without_host_users(cluster, namespace))
    for note in notes:
        measured.note(note)


def inbound(cluster, namespace, outside):
    """From other pods: by the Service and by address. The pod is ready, so its probes pass."""
    status = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/served")["status"]
    hosts = [f"served.{namespace}.svc", *(f"[{ip['ip']}]:8080" if ":" in ip["ip"] else f"{ip['ip']}:8080" for ip in status["podIPs"])]
    said = python(outside.namespace, "visitor", FETCH, *(f"http://{host}/wait.py" for host in hosts)).split()
    expect("what a visitor got", ["200"] * len(hosts), said)
    time.sleep(3)
    expect("restarts", 0, sum(s["restartCount"] for s in cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/served")["status"]["containerStatuses"]))
    return f"probes, a Service and {len(status['podIPs'])} addresses of the pod answer"


def port_forward(cluster, namespace, _outside):
    with Background("kubectl", "-n", namespace, "port-forward", "pod/served", ":8080", "--address=127.0.0.1") as forward:
        _, port = forward.line(20, "kubectl port-forward", lambda line: int(line.rpartition("127.0.0.1:")[2].split()[0]) if "127.0.0.1:" in line else None)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/wait.py", timeout=10) as response:
            expect("through port-forward", 200, response.status)
    return "exec and port-forward work"


def resolved(cluster, namespace, outside):
    service = cluster.api.get(f"/api/v1/namespaces/{outside.namespace}/services/outside")["spec"]["clusterIP"]
    said = json.loads(python(namespace, "caller", RESOLVE, outside.name, outside.name.removesuffix(".svc.cluster.local")))
    expect("what the agent resolves", [[service]] * 2, said)
    return "DNS answers, with search paths"


def greeted(cluster, namespace, outside):
    """A server that speaks first, as databases do; by its name, which the policy allows, and by another way, which it does not."""
    took, text = json.loads(python(namespace, "caller", GREET, outside.name, "9000"))
    expect("what it said first", "hello\n", text)
    if took > 2:
        raise Failure(f"a server that speaks first was heard after {took:.1f} s")
    ours = {ip["ip"] for ip in cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/caller")["status"]["podIPs"]}
    until(10, "it arrives", lambda: [key for key in outside.arrived() if key[1] in ours])
    expect("a call meanwhile", "ok", cluster.call(namespace, "caller", "send_dm_to_user", server=cluster.server_url(), **MESSAGE)[0]["outcome"])
    return f"a server that speaks first is heard after {took * 1000:.0f} ms"


def without_host_users(cluster, namespace):
    """`hostUsers: false`, if the container runtime has it."""
    pod = agent("users", hostUsers=False)
    cluster.apply(pod, namespace=namespace)

    def probe():
        found = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/users")["status"]
        if any(c["type"] == "Ready" and c["status"] == "True" for c in found.get("conditions", [])):
            return "ready"
        events = kubectl("-n", namespace, "get", "events", "--field-selector=involvedObject.name=users", "-o", "jsonpath={.items[*].message}")
        return "unsupported" if "user namespaces" in events.lower() else None

    if until(60, "a pod with hostUsers: false runs", probe, 0.5) == "unsupported":
        kubectl("-n", namespace, "delete", "pod", "users", "--now", "--wait=false")
        return "hostUsers: false is not tried: the container runtime of this node has no user namespaces"
    expect("a call with hostUsers: false", "ok", cluster.call(namespace, "users", "send_dm_to_user", server=cluster.server_url(), **MESSAGE)[0]["outcome"])
    return "hostUsers: false works"


# ---- refusals


def change(pod, **container):
    pod["spec"]["containers"][0]["securityContext"].update(container)


def volume(pod, source):
    pod["spec"]["volumes"] = [{"name": "more", **source}]


# What is done to a pod, and the reason for which it is refused. Others cannot be reached so: MethodNone needs another installation,
# CaptureMissing and InitContainerBefore another webhook, and injection takes away mounts of the sidecar's volumes.
REFUSALS = {
    "NotInjected": lambda pod: pod["metadata"]["labels"].update({INJECT: "disabled"}),
    "HostNetwork": lambda pod: pod["spec"].update(hostNetwork=True),
    "HostPid": lambda pod: pod["spec"].update(hostPID=True),
    "HostIpc": lambda pod: pod["spec"].update(hostIPC=True),
    "ShareProcessNamespace": lambda pod: pod["spec"].update(shareProcessNamespace=True),
    "HostPath": lambda pod: volume(pod, {"hostPath": {"path": "/tmp"}}),
    "Sysctls": lambda pod: pod["spec"]["securityContext"].update(sysctls=[{"name": "net.ipv4.conf.all.route_localnet", "value": "1"}]),
    "Privileged": lambda pod: change(pod, privileged=True, allowPrivilegeEscalation=True),
    "PrivilegeEscalation": lambda pod: change(pod, allowPrivilegeEscalation=True),
    "CapabilitiesNotDropped": lambda pod: change(pod, capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}),
    "Seccomp": lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
    "ProcMount": lambda pod: (change(pod, procMount="Unmasked"), pod["spec"].update(hostUsers=False)),
    "Windows": lambda pod: pod["spec"].update(nodeSelector={"kubernetes.io/os": "windows"}),
}


@scenario(
    "capture-refusals", "what captured pods may not have", "each is refused by kubectl with its reason, field and advice; ephemeral containers that could undo capture too; `toolweir.dev/pod-security: restricted` admits captured pods and refuses careless ones",
)
def refusals(cluster, measured):
    namespace = captured(cluster, "capture-refusals")
    policy = cluster.policy(namespace, tools=README)
    cluster.apply(policy, agent("agent"), namespace=namespace)
    cluster.ready(namespace, "agent")

    def refused(case):
        reason, spoil = case
        pod = agent(reason.lower())
        spoil(pod)
        said = cluster.refused(pod, namespace=namespace)
        return reason, said if f"({reason})" not in said else None

    with ThreadPoolExecutor(4) as threads:
        wrong = {reason: said for reason, said in threads.map(refused, REFUSALS.items()) if said}
    # The sidecar's own user is chosen for a pod without one; an ephemeral container can take it.
    mine = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")
    sidecar = next(container for container in mine["spec"]["initContainers"] if container["name"] == SIDECAR)["securityContext"]
    wrong |= ephemeral(cluster, namespace, sidecar)
    if wrong:
        raise Failure(f"not refused with its reason: {json.dumps(wrong):.2000}")
    debug = kubectl("-n", namespace, "debug", "agent", f"--image={mine['spec']['containers'][-1]['image']}", "--profile=netadmin", "--target=agent", "--", "true", check=False)
    expect_in("kubectl debug --profile=netadmin", "(CapabilitiesNotDropped)", debug[2])
    measured.note(f"{len(REFUSALS)} of {len(REFUSALS)} reasons by kubectl, 4 of ephemeral containers, kubectl debug too")
    restricted(cluster, measured)


def ephemeral(cluster, namespace, sidecar):
    """Ephemeral containers: those that are not refused with their reason."""
    path = f"/api/v1/namespaces/{namespace}/pods/agent/ephemeralcontainers"
    plain = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsUser": 1000}
    cases = {
        "SidecarUser": {"securityContext": {**plain, "runAsUser": sidecar["runAsUser"], "runAsGroup": sidecar["runAsGroup"]}},
        "ShareProcessNamespace": {"securityContext": plain, "targetContainerName": SIDECAR},
        "PrivilegeEscalation": {"securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsUser": 1000}},
        "SidecarVolume": {"securityContext": plain, "volumeMounts": [{"name": "toolweir-state", "mountPath": "/state"}]},
    }
    image, wrong = agent("x")["spec"]["containers"][0]["image"], {}
    for reason, more in cases.items():
        container = {"name": reason.lower(), "image": image, "imagePullPolicy": "Never", "args": ["-c", "pass"], **more}
        status, said = cluster.api.raw("PATCH", path, {"spec": {"ephemeralContainers": [container]}}, content="application/strategic-merge-patch+json")
        if status < 400 or f"({reason})" not in said:
            wrong[f"ephemeral {reason}"] = f"{status}: {said:.300}"
    # One that is in order.
    container = {"name": "look", "image": image, "imagePullPolicy": "Never", "args": ["-c", "pass"], "securityContext": plain}
    status, said = cluster.api.raw("PATCH", path, {"spec": {"ephemeralContainers": [container]}}, content="application/strategic-merge-patch+json")
    if status >= 300:
        wrong["an ephemeral container in order"] = f"{status}: {said:.300}"
    return wrong


def restricted(cluster, measured):
    """A namespace with the chart's policy in place of the Pod Security Standard."""
    namespace = captured(cluster, "capture-restricted", **{"toolweir.dev/pod-security": "restricted"})
    cluster.apply(cluster.policy(namespace, tools=README))
    careless = agent("careless", labels={INJECT: "disabled", CAPTURE: "disabled"})
    del careless["spec"]["securityContext"], careless["spec"]["containers"][0]["securityContext"]
    until(20, "a careless pod is refused", lambda: "restricted" in cluster.refused(careless, namespace=namespace), 0.5, late=Failure)
    cluster.apply(agent("agent"), namespace=namespace)
    cluster.ready(namespace, "agent")
    answers = cluster.call(namespace, "agent", "send_dm_to_user", server=cluster.server_url(), **MESSAGE)
    expect("a call", ["ok"], [answer["outcome"] for answer in answers])
    # The Standard itself refuses the init container.
    baseline = captured(cluster, "capture-baseline", **{"pod-security.kubernetes.io/enforce": "baseline"})
    expect_in("in a namespace that enforces baseline", "NET_ADMIN", cluster.refused(agent("agent"), namespace=baseline))
    measured.note("toolweir.dev/pod-security: restricted admits captured pods and refuses a careless one; a namespace that enforces baseline refuses the init container")
