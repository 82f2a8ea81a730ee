"""Capture while parts of it are gone: the sidecar dead or hung, the pod's sandbox recreated, no operator."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from capturing import CAPTURE_CONTAINER, Outside, Processes, captured
from kube import SIDECAR, Failure, agent, expect, expect_in, kubectl, total, until
from settings import SYSTEM

from . import scenario

TOOL, FORBIDDEN = "get_page_fan_count", "delete_post"


class Prober:
    """A pod that never stops to try, and what it said."""

    def __init__(self, cluster, namespace, name, url, places):
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.pod = agent(name, "/opt/agent/leak.py", url, TOOL, FORBIDDEN, *places)

    def said(self):
        """Its lines, also of the container before."""
        lines = self.cluster.logs(self.namespace, self.name).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def first(self, seconds, what, after, **words):
        """Waits for the first line after a time that has these words; gives its time."""

        def probe():
            return next((line["time"] for line in self.said() if line["time"] > after and words.items() <= line.items()), None)

        return until(seconds, f"{self.name}: {what}", probe, 0.1)

    def passing(self):
        """Waits until calls pass and a stream is open."""
        self.first(60, "calls pass", 0, call="ok")
        self.first(60, "a stream is open", 0, held="open")


def restarts(cluster, namespace, name):
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"]
    return {status["name"]: status["restartCount"] for kind in ("initContainerStatuses", "containerStatuses") for status in found.get(kind, [])}


def restarted(cluster, processes, prober, old):
    """Waits until the sidecar's container runs again; gives the time at which its process started."""

    def probe():
        pid = processes.of_container(prober.namespace, prober.name, SIDECAR)
        return pid if pid != old else None

    return processes.started(until(60, f"{prober.name}: the sidecar runs again", probe, 0.05))


def dead(cluster, processes, prober):
    """SIGKILL of the sidecar: how long until its connections ended, and until a call passed after its restart, in seconds."""
    pid = processes.of_container(prober.namespace, prober.name, SIDECAR)
    killed = time.time()
    processes.kill(pid, processes.KILL)
    ended = prober.first(10, "the open stream ends", killed, held="ended") - killed
    began = restarted(cluster, processes, prober, pid)
    back = prober.first(20, "calls pass after the restart", began, call="ok") - began
    expect(f"{prober.name}: restarts", {CAPTURE_CONTAINER: 0, SIDECAR: 1, "agent": 0}, restarts(cluster, prober.namespace, prober.name))
    return ended, back


def hung(processes, prober):
    """SIGSTOP of the sidecar: how long until a call passed after it went on, in seconds."""
    pid = processes.of_container(prober.namespace, prober.name, SIDECAR)
    stopped = time.time()
    processes.kill(pid, processes.STOP)
    try:
        prober.first(20, "calls wait, and fail", stopped, call="TimeoutError")
    finally:
        continued = time.time()
        processes.kill(pid, processes.CONTINUE)
    return prober.first(20, "calls pass again", continued, call="ok") - continued


def recreated(cluster, processes, prober):
    """SIGKILL of the pause container: the kubelet makes a new network for the pod, in which the rules are written anew."""
    before = cluster.api.get(f"/api/v1/namespaces/{prober.namespace}/pods/{prober.name}")["status"]["podIP"]
    killed = time.time()
    processes.kill(processes.of_sandbox(prober.namespace, prober.name), processes.KILL)
    until(90, "the pod has another address", lambda: cluster.api.get(f"/api/v1/namespaces/{prober.namespace}/pods/{prober.name}")["status"].get("podIP") not in (None, before), 0.2)
    back = prober.first(90, "calls pass in the new network", killed, call="ok") - killed
    if restarts(cluster, prober.namespace, prober.name)[CAPTURE_CONTAINER] < 1:
        raise Failure("the rules were not written anew")
    return back


@scenario(
    "capture-outages", "capture while the sidecar is dead or hung, after the pod's sandbox was recreated, and without an operator",
    "nothing leaves, by TCP or UDP, IPv4 or IPv6; open governed connections end; a call passes within 1 s after the sidecar's restart; a new pod is refused while there is no operator",
)
def outages(cluster, measured):
    processes, outside = Processes(cluster), Outside(cluster, "capture-outside")
    namespace = captured(cluster, "capture-outages")
    policy = cluster.policy(namespace, tools=[{"name": TOOL}])
    cluster.apply(policy)
    server = cluster.api.get("/api/v1/namespaces/toolweir-e2e-tools/pods/just-facebook")["status"]["podIP"]
    probers = {name: Prober(cluster, namespace, name, cluster.server_url(), outside.places()) for name in ("dead", "hung", "recreated", "alone")}
    # What goes around: the server itself too, by its address, as a call that the policy denies.
    cluster.apply(*(prober.pod for prober in probers.values()), namespace=namespace)
    control = agent("control", "/opt/agent/leak.py", f"http://{server}:8000/mcp", TOOL, TOOL, *outside.places())
    cluster.apply(control, namespace=outside.namespace)
    cluster.ready(outside.namespace, "control")
    cluster.ready(namespace, *probers)
    sources = {ip["ip"] for ip in cluster.api.get(f"/api/v1/namespaces/{outside.namespace}/pods/control")["status"]["podIPs"]}
    try:
        gone(cluster, processes, outside, sources, probers, measured)
    finally:
        # However long something else took.
        expect("what arrived outside from captured pods", [], [key for key in outside.arrived() if key[1] not in sources])
        expect("calls of what is denied that the server got", [], [line for line in cluster.delivered() if line["tool"] == FORBIDDEN])
    counts = [sum(line.get("tried", 0) for line in prober.said()[-1:]) for prober in probers.values()]
    measured.note(f"0 of over {sum(counts)} tries by {len(probers)} pods arrived outside; the same tries of a pod without capture did")


def gone(cluster, processes, outside, sources, probers, measured):
    """The parts of capture, one after another."""
    for prober in probers.values():
        prober.passing()
    # Without capture, all of it arrives.
    until(20, "the control's arrive", lambda: {(kind, ip) for kind in ("tcp", "udp") for ip in sources} <= set(outside.arrived()), 0.5)
    kubectl("-n", outside.namespace, "delete", "pod", "control", "--now", "--wait=true")
    with ThreadPoolExecutor(3) as threads:
        results = [threads.submit(*words) for words in ((dead, cluster, processes, probers["dead"]), (hung, processes, probers["hung"]), (recreated, cluster, processes, probers["recreated"]))]
        (ended, back), again, renewed = [result.result() for result in results]
    measured.at_most("sidecar dead: its open connections end", ended, 1, "s")
    measured.at_most("back after its restart", back, 1, "s")
    measured.at_most("hung: back after it goes on", again, 1, "s")
    measured.note(f"sandbox recreated: calls pass {renewed:.1f} s later")
    without_operator(cluster, processes, probers["alone"], measured)


def without_operator(cluster, processes, prober, measured):
    """No operator, and the sidecar dies: it has the rules and its last policy."""
    try:
        cluster.scale(0)
        until(60, "no operator is left", lambda: not cluster.operators(leaving=True))
        _, back = dead(cluster, processes, prober)
        said = cluster.refused(agent("late"), namespace=prober.namespace)
        expect_in("a new pod without an operator", "failed calling webhook", said)
    finally:
        cluster.scale(2)
        cluster.rollout()
    cluster.settled()
    until(60, "the sidecar is connected", lambda: total(cluster.sidecar_metrics(prober.namespace, prober.name), "toolweir_policy_connected"))
    measured.at_most("without an operator: back after a restart", back, 1, "s")
