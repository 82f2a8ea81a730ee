"""Limits across pods: the shared store counts them, and what happens without it."""

import base64
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from kube import LOOK, SIDECAR, STORE_IMAGE, Background, Failure, Slow, agent, expect, expect_in, kubectl, total, until
from settings import IMAGE_TAG, SYSTEM

from . import scenario
from .denials import room, toolweir
from .policies import MESSAGE

REPLICAS, EACH, MOST = 3, 35, 30
STATE = "toolweir-state"
SECRET, KEY = "toolweir-e2e-counts", "password"
# The 50 ms of the chart are for nodes that have more than two cores for everything, the API server and the test among it. The scenarios
# hold with them too, but a busy machine could make them fail.
BUDGET = ["--set", "sharedStore.budgetMilliseconds=1000"]
# The chart's Valkey: this machine's redis-server under its names. The node of the tests has no storage class.
EMBEDDED = [
    "--set", "sharedStore.embedded=true,sharedStore.store.persistence.enabled=false",
    "--set", f"sharedStore.store.image.repository={STORE_IMAGE.rpartition(':')[0]},sharedStore.store.image.pullPolicy=Never",
    "--set-string", f"sharedStore.store.image.tag={IMAGE_TAG}",
]
START = 'exec valkey-server - <<END\nrequirepass "$(cat /etc/counts/password)"\nappendonly no\nsave ""\nEND'


class Counts:
    """A store of the tests: a Deployment of one pod, with a password from a Secret."""

    def __init__(self, cluster):
        self.cluster, self.password = cluster, f"p-{uuid.uuid4().hex}"
        self.namespace = cluster.namespace("counts", inject=False)
        secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {KEY: self.password}}
        # The operator's, in the namespace of the release, and the store's own.
        cluster.apply({**secret, "metadata": {"name": SECRET, "namespace": SYSTEM}}, {**secret, "metadata": {"name": "counts", "namespace": self.namespace}})
        pod = agent("counts", labels={"app": "counts"}, volumes=[{"name": "password", "secret": {"secretName": "counts"}}])
        pod["spec"]["containers"][0].update({
            "name": "store", "image": STORE_IMAGE, "command": ["sh", "-c"], "args": [START],
            "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
            "volumeMounts": [{"name": "password", "mountPath": "/etc/counts", "readOnly": True}],
        })
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "counts"}, "spec": {"selector": {"app": "counts"}, "ports": [{"port": 6379}]}}
        cluster.apply(service, deployment("counts", pod, 1), namespace=self.namespace)
        cluster.rolled_out(self.namespace, "deployment/counts")
        self.url = f"redis://counts.{self.namespace}.svc:6379"
        self.values = ["--set", f"sharedStore.url={self.url},sharedStore.passwordSecret.name={SECRET}", *BUDGET]

    def scale(self, replicas):
        """Sets the number of pods, 0 or 1, and waits for it."""
        kubectl("-n", self.namespace, "scale", "deployment/counts", f"--replicas={replicas}")
        if replicas:
            self.cluster.rolled_out(self.namespace, "deployment/counts")
        else:
            until(60, "the store's pod is gone", lambda: not self.cluster.pods(self.namespace))

    def command(self, password, *words):
        """Returns the store's response to a command."""
        script = 'read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec valkey-cli "$@"'
        said = kubectl("-n", self.namespace, "exec", "-i", "deployment/counts", "--", "sh", "-c", script, "sh", *words, input=f"{password}\n").strip()
        if said.startswith(("ERR", "NOAUTH", "WRONGPASS")):
            raise Failure(f"the store answers to {words[0]}: {said}")
        return said


def deployment(name, pod, replicas):
    """Creates a Deployment of pods like this one."""
    labels = {"app": pod["metadata"]["labels"]["app"]}
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def limited(cluster, namespace, most, window="minute", **spec):
    """A policy whose limit all pods of a workload share."""
    return cluster.policy(namespace, tools=[{"name": "send_dm_to_user", "limits": [{"max": most, "window": window, "scope": "Workload"}]}], **spec)


@contextmanager
def store(cluster, values):
    """Installs the chart with a store, and in the end without one, as the other scenarios need it."""
    try:
        configure(cluster, *values)
        yield
    finally:
        configure(cluster)
        kubectl("-n", SYSTEM, "delete", "secret", SECRET, "--ignore-not-found")


def configure(cluster, *values):
    cluster.helm("upgrade", *values)
    cluster.rollout()
    cluster.settled()


def condition(cluster, policy, seconds, status, *reasons):
    """Waits for the condition `SharedStoreReady` of a policy; gives it."""
    return cluster.condition(policy, "SharedStoreReady", seconds, status, *reasons)


def audited(cluster, namespace, pod):
    """The lines of a sidecar's audit log."""
    return [json.loads(line) for line in cluster.logs(namespace, pod, SIDECAR).splitlines() if '"decision"' in line]


@scenario(
    "shared", "a limit across pods (`scope: Workload`), with a store of one's own and with the chart's",
    f"{REPLICAS} replicas call at the same time, {EACH} times each: exactly {MOST} delivered in the MCP server's own log, the rest denied (rate_limit); metrics, audit logs and `explain` agree; the store's password is in no environment variable and no file of an agent",
)
def shared(cluster, measured):
    counts = Counts(cluster)
    with store(cluster, counts.values):
        measured.note("store of one's own: " + one_limit(cluster, "shared-url", counts.password, in_clear=True))
        # A store of the chart: new counts, with a password that the chart made.
        configure(cluster, *EMBEDDED, *BUDGET)
        made = password(cluster)
        measured.note("the chart's store: " + one_limit(cluster, "shared-embedded", made, in_clear=False))
        configure(cluster, *EMBEDDED, *BUDGET)
        expect("the password after an upgrade", made, password(cluster))


def password(cluster):
    """The one that the chart has made."""
    secret = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/secrets/toolweir-store")
    return base64.b64decode(secret["data"][KEY]).decode()


def one_limit(cluster, name, secret, in_clear):
    """The replicas of a Deployment use up a limit together; what was found. A store that is reached `in_clear` is warned of."""
    namespace = cluster.namespace(name)
    policy = limited(cluster, namespace, MOST)
    # An operator that knows of the store looks at it.
    until(20, "the policy is accepted", lambda: cluster.apply(policy), 0.5)
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "agent"}}}
    cluster.apply(deployment("social", agent("social", topologySpreadConstraints=[spread]), REPLICAS), namespace=namespace)
    cluster.rolled_out(namespace, "deployment/social")
    cluster.programmed(policy, REPLICAS)
    said = condition(cluster, policy, 30, "True", "Connected")
    expect("a warning that the store is without TLS", in_clear, "without TLS" in said["message"])
    pods = cluster.pods(namespace)
    nodes = {cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["spec"]["nodeName"] for pod in pods}
    logs = [cluster.logs(namespace, pod, SIDECAR) for pod in pods]
    expect("the same in the sidecars' logs", {in_clear}, {"without TLS" in log for log in logs})
    expect("replicas", REPLICAS, len(pods))
    expect("nodes", min(REPLICAS, len(cluster.api.get("/api/v1/nodes")["items"])), len(nodes))
    before = len(cluster.delivered())

    # All of them from the same moment on, when every one has its session.
    began = time.time() + 5
    with ThreadPoolExecutor(REPLICAS) as threads:
        answers = list(threads.map(lambda pod: cluster.call(namespace, pod, "send_dm_to_user", EACH, at=began, **MESSAGE), pods))
    took = time.time() - began
    passed = [sum(answer["outcome"] == "ok" for answer in said) for said in answers]
    others = [answer for said in answers for answer in said if answer["outcome"] != "ok"]
    room_of = [room(json.loads(toolweir("explain", "-n", namespace, pod, "send_dm_to_user", json.dumps(MESSAGE), "-o", "json", code=1))) for pod in pods]
    text = toolweir("explain", "-n", namespace, pods[0], "send_dm_to_user", json.dumps(MESSAGE), code=1)
    if (looked := time.time() - began) >= 60:
        raise Slow(f"this took {looked:.0f} s, and the limit's window is a minute")

    got = [line["tool"] for line in cluster.delivered()[before:]]
    expect("what the server got", ["send_dm_to_user"] * MOST, got)
    expect("calls that passed", MOST, sum(passed))
    expect("reasons of the others", {"rate_limit"}, {(answer["denial"] or {}).get("reason") or answer["text"] for answer in others})
    expect("the limit that they name", {(MOST, "Workload")}, {(limit["max"], limit.get("scope")) for limit in (answer["denial"]["limit"] for answer in others)})
    expect("explain, in each pod", [{(f"{namespace}/facebook", "send_dm_to_user", f"{MOST}/minute/Workload"): (MOST, 0, False)}] * REPLICAS, room_of)
    expect_in("explain", f"{MOST}/minute/Workload  all       {MOST}    0     1", text)

    want = {"allowed": MOST, "denied": REPLICAS * EACH - MOST}
    samples = [sample for pod in pods for sample in cluster.sidecar_metrics(namespace, pod)]
    expect("in the metrics", want, {decision: total(samples, "toolweir_tool_calls_total", decision=decision) for decision in want})
    expect("denied in the metrics for the limit", want["denied"], total(samples, "toolweir_tool_calls_total", decision="denied", reason="rate_limit"))
    asked = {outcome: int(total(samples, "toolweir_shared_store_calls_total", outcome=outcome)) for outcome in ("ok", "lease", "refused", "known_full", "unavailable", "timeout")}
    expect("let through by the store", (MOST, 0, 0), (asked["ok"] + asked["lease"], asked["unavailable"], asked["timeout"]))
    expect("sidecars that reach the store", REPLICAS, total(samples, "toolweir_shared_store_up"))
    lines = [line for pod in pods for line in audited(cluster, namespace, pod)]
    expect("in the audit logs", want, {decision: sum(line["decision"] == decision for line in lines) for decision in want})
    expect("lines without the store", [], [line for line in lines if "sharedStore" in line])

    where_the_password_is_not(cluster, namespace, pods, secret)
    return f"{'+'.join(map(str, passed))} of {REPLICAS * EACH} calls delivered in {took:.1f} s, {len(others)} denied (rate_limit), {asked['ok']} let through by a question to the store; on {len(nodes)} nodes; explain: {MOST} of {MOST} used in each pod"


def where_the_password_is_not(cluster, namespace, pods, secret):
    """The password is nowhere in the agent's container, in no object of its namespace and in no log."""
    pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pods[0]}")
    mounted = {c["name"]: [m["name"] for m in c.get("volumeMounts", [])] for c in pod["spec"]["initContainers"] + pod["spec"]["containers"]}
    # The addresses of its servers, in a form that agents read.
    expect("what the agent mounts", ["toolweir-config"], mounted["agent"])
    expect_in("what the sidecar mounts", STATE, mounted[SIDECAR])
    expect("volumes from Secrets", [], [v for v in pod["spec"]["volumes"] if "secret" in v or any("secret" in s for s in v.get("projected", {}).get("sources", []))])
    # What would be found: the pod's name is in the environment and in a file.
    found = json.loads(kubectl("-n", namespace, "exec", "-i", pods[0], "-c", "agent", "--", "python3", "-c", LOOK, input=f"{secret}\n{pods[0]}\n"))
    expect("places with the password", [], found["found"][0])
    if not {"environment", "/etc/hostname"} <= set(found["found"][1]):
        raise Failure(f"the search did not find the pod's name where it is: {found}")
    everything = {
        "the objects of the namespace": kubectl("-n", namespace, "get", "all,configmaps,secrets,events,mcppolicies", "-o", "json"),
        "the operator's ConfigMap": kubectl("-n", SYSTEM, "get", "configmaps,deployments", "-o", "json"),
        **{f"the log of {name}": cluster.logs(namespace, name, SIDECAR) for name in pods},
        **{"the operator's log": cluster.logs(SYSTEM, p["metadata"]["name"], "operator") for p in cluster.operators()},
    }
    for what, text in everything.items():
        if secret in text or base64.b64encode(secret.encode()).decode() in text:
            raise Failure(f"the store's password is in {what}")


@scenario(
    "store-gone", "the shared store gone, and with another password",
    "onStoreFailure Deny: denied (store_unavailable), Allow and PerPod: let through, all with `sharedStore` in the audit log; the condition SharedStoreReady names the fault; back again: works within 5 s, nothing restarted",
)
def store_gone(cluster, measured):
    counts = Counts(cluster)
    with store(cluster, counts.values):
        namespace = cluster.namespace("store-gone")
        policy = limited(cluster, namespace, 1_000_000, "day", onStoreFailure="Deny")
        until(20, "the policy is accepted", lambda: cluster.apply(policy), 0.5)
        cluster.apply(agent("agent"), namespace=namespace)
        cluster.ready(namespace, "agent")
        cluster.programmed(policy, 1)
        condition(cluster, policy, 30, "True", "Connected")

        def called(action, outcome, reason="none"):
            """Three calls, what came of them, and what the audit log says of each."""
            before, written = len(cluster.delivered()), len(audited(cluster, namespace, "agent"))
            answers = cluster.call(namespace, "agent", "send_dm_to_user", 3, **MESSAGE)
            expect(f"calls ({action})", [outcome] * 3, [answer["outcome"] for answer in answers])
            expect(f"calls that the server got ({action})", 3 if outcome == "ok" else 0, len(cluster.delivered()) - before)
            lines = until(10, "the audit log has them", lambda: (all_lines := audited(cluster, namespace, "agent"))[written + 2] and all_lines[written:])
            expect(f"in the audit log ({action})", [(reason, action)] * 3, [(line["reason"], line.get("sharedStore")) for line in lines])
            return answers[0]

        called(None, "ok")
        counts.scale(0)
        until(20, "the sidecar notices", lambda: cluster.sidecar_metrics(namespace, "agent") and not total(cluster.sidecar_metrics(namespace, "agent"), "toolweir_shared_store_up"))
        denied = called("Deny", "denied", "store_unavailable")
        expect("the reason that the agent is told", "store_unavailable", denied["denial"]["reason"])
        expect_in("what the model reads", f"Denied by policy {namespace}/facebook: send_dm_to_user is limited across pods, and the shared store of counts does not answer. Try again in ", denied["text"])
        # Nobody listens there: what that looks like is for the cluster's network to say.
        gone = condition(cluster, policy, 30, "False", "Refused", "Timeout")
        expect_in("the condition", f"counts.{counts.namespace}.svc", gone["message"])
        expect_in("the condition", "onStoreFailure", gone["message"])
        text = toolweir("explain", "-n", namespace, "agent", "send_dm_to_user", json.dumps(MESSAGE), code=1)
        expect_in("explain", "no: the shared store does not answer", text)
        for action in ("PerPod", "Allow"):
            policy["spec"]["onStoreFailure"] = action
            cluster.apply(policy)
            cluster.programmed(policy, 1)
            called(action, "ok")
        policy["spec"]["onStoreFailure"] = "Deny"
        cluster.apply(policy)
        cluster.programmed(policy, 1)
        back = back_again(cluster, namespace, lambda: counts.scale(1))
        measured.at_most("after the store was ready again, calls pass within 5 s:", back, 5, "s")
        called(None, "ok")
        condition(cluster, policy, 30, "True", "Connected")
        # The store has begun anew with nothing, and knows from the sidecar what went through before it was gone and meanwhile.
        answer = json.loads(toolweir("explain", "-n", namespace, "agent", "send_dm_to_user", json.dumps(MESSAGE), "-o", "json"))
        went = sum(line["decision"] == "allowed" for line in audited(cluster, namespace, "agent"))
        expect("used, as the new store says", [went], [used for used, _, _ in room(answer).values()])

        # Another password than the one that the operator was given. Connections that are open outlive it: they are closed.
        other = f"p-{uuid.uuid4().hex}"
        expect("the store with another password", "OK", counts.command(counts.password, "CONFIG", "SET", "requirepass", other))
        counts.command(other, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wrong = condition(cluster, policy, 30, "False", "WrongPassword")
        for secret in (other, counts.password):
            if secret in wrong["message"]:
                raise Failure(f"the condition tells a password: {wrong['message']}")
        called("Deny", "denied", "store_unavailable")
        failures = total(cluster.sidecar_metrics(namespace, "agent"), "toolweir_shared_store_failures_total", fault="wrong_password")
        if not failures:
            raise Failure("the sidecar's metrics do not say that the password is wrong")
        right = back_again(cluster, namespace, lambda: counts.command(other, "CONFIG", "SET", "requirepass", counts.password))
        measured.at_most("after the password was right again:", right, 5, "s")
        called(None, "ok")
        condition(cluster, policy, 30, "True", "Connected")

        pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")
        expect("restarts", [0, 0], [c["restartCount"] for kind in ("initContainerStatuses", "containerStatuses") for c in pod["status"][kind]])
        expect("restarts of the operators", {0}, {c["restartCount"] for p in cluster.operators() for c in p["status"]["containerStatuses"]})
        measured.note(f"Deny: 6 of 6 denied (store_unavailable); PerPod and Allow: 6 of 6 let through; conditions: {gone['reason']}, {wrong['reason']} ({wrong['message']:.160}), each gone again; nothing restarted")


def back_again(cluster, namespace, act):
    """Does what brings the store back, and gives the seconds until a call went through."""
    command = ["kubectl", "-n", namespace, "exec", "agent", "-c", "agent", "--", "python3", "/opt/agent/prober.py", "facebook", "send_dm_to_user", json.dumps(MESSAGE), "ok"]
    with Background(*command) as prober:
        seen, _ = prober.line(30, "calls are denied", lambda line: line if line.startswith("{") and json.loads(line)["max"] is None else None, late=Failure)
        act()
        done = time.time()
        _, line = prober.line(30, "calls pass", lambda line: line if line.startswith("{") and json.loads(line)["max"] == "ok" else None, seen + 1)
    # It may work before `act` has found out that it does.
    return max(0, json.loads(line)["time"] - done)
