"""Credentials of servers: the sidecar has them, the agent does not, and so nothing is gained by going around it."""

import base64
import hashlib
import json
import time
import uuid

from kube import AGENT_IMAGE, LOOK, SIDECAR, Failure, Slow, agent, expect, expect_in, kubectl, total, until
from settings import SYSTEM

from . import scenario
from .denials import toolweir
from .policies import MESSAGE

SECRET, KEY = "agent-credentials", "guarded-token"
AUDIENCE = "verified.toolweir-e2e"
CALLS, MOST = 35, 30
# The kubelet looks at a pod's volumes about once a minute.
KUBELET = 100
STANDARD = {f"pod-security.kubernetes.io/{level}": "restricted" for level in ("enforce", "warn")}
# The pages of the sidecar's ports, and a request with a token of the agent's own: the status and the text of each.
PAGES = """
import json, urllib.error, urllib.request
client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "pages", "version": "1"}}
call = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client}
explain = {"server": "guarded", "tool": "get_page_info", "arguments": {}}
own = {"authorization": "Bearer of-the-agent", "content-type": "application/json", "accept": "application/json, text/event-stream"}
said = {}
for url, body, headers in (
    ("http://127.0.0.1:15000/policy", None, {}),
    ("http://127.0.0.1:15000/limits", None, {}),
    ("http://127.0.0.1:15000/log-level", None, {}),
    ("http://127.0.0.1:15000/explain", explain, {}),
    ("http://127.0.0.1:15020/metrics", None, {}),
    ("http://127.0.0.1:15001/.well-known/oauth-protected-resource/guarded", None, {}),
    ("http://127.0.0.1:15001/guarded", call, own),
):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            said[url] = [response.status, response.read().decode()]
    except urllib.error.HTTPError as error:
        said[url] = [error.code, str(error.headers) + error.read().decode()]
print(json.dumps(said))
"""
# Every file of the sidecar's state, as text.
STATE = """
import json, os
print(json.dumps({name: open(f"/state/{name}").read() for name in os.listdir("/state") if os.path.isfile(f"/state/{name}")}))
"""


class Guarded:
    """Two servers that take the right credential alone: `guarded` wants one of two bearer tokens, `verified` a token of a service
    account, which it checks with the cluster's own keys."""

    def __init__(self, cluster, tokens):
        self.cluster, self.namespace = cluster, cluster.namespace("credentials-tools", inject=False, **STANDARD)
        hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
        self.hashes = dict(zip(tokens, hashes))
        for name, words in (("guarded", ["hashes", *hashes]), ("verified", ["audience", AUDIENCE])):
            pod = agent(name, "/opt/agent/guard.py", *words, labels={"app": name}, automountServiceAccountToken=name == "verified")
            pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
            service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 8000}]}}
            cluster.apply(pod, service, namespace=self.namespace)
        cluster.ready(self.namespace, "guarded", "verified")

    def url(self, server):
        return f"http://{server}.{self.namespace}.svc:8000/mcp"

    def lines(self, server, field):
        """Returns the values of a field in the server's own log: `tool`, `accepted` or `refused`."""
        lines = [json.loads(line) for line in self.cluster.logs(self.namespace, server).splitlines() if line.startswith("{")]
        return [line[field] for line in lines if field in line]


def governed(cluster, servers):
    """A policy with both credentials, a pod of an agent that has neither, and the restricted namespace for them."""
    namespace = cluster.namespace("credentials", **STANDARD)
    tools = [{"name": "send_dm_to_user", "limits": [{"max": MOST, "window": "minute"}]}, {"name": "get_page_info"}]
    policy = {
        "apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": {"name": "credentials", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app": "agent"}},
            "servers": [
                {"name": "guarded", "url": servers.url("guarded"), "credential": {"bearer": {"secretKey": KEY}}, "tools": tools},
                {"name": "verified", "url": servers.url("verified"), "credential": {"serviceAccountToken": {"audience": AUDIENCE}}, "tools": tools},
            ],
        },
    }
    # With the token that Kubernetes gives every pod, which the agent may have, and which opens nothing here.
    pod = agent("agent", automountServiceAccountToken=True)
    pod["metadata"]["annotations"] = {
        "toolweir.dev/credentials": SECRET, "toolweir.dev/token-audiences": f" {AUDIENCE} , another.toolweir-e2e", "toolweir.dev/sidecar-log-level": "trace",
    }
    return policy, pod, namespace


def write(cluster, namespace, token):
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {KEY: token}}, namespace=namespace)


def nudge(namespace):
    """A change of the pod lets the kubelet look at its volumes at once."""
    kubectl("-n", namespace, "annotate", "pod", "agent", f"toolweir-e2e/nudge={time.time()}", "--overwrite")


@scenario(
    "credentials", "credentials that only the sidecar has: a bearer token, and a token of the pod's service account; in a restricted namespace",
    f"{MOST} of {CALLS} calls delivered for each; a direct call is refused with everything that the agent finds in its pod; the secret is nowhere but in the Secret; "
    f"a rotated Secret in force within {KUBELET} s and without a restart; calls fail closed, and the condition CredentialsReady says why, without the Secret and in a pod without the annotation",
)
def credentials(cluster, measured):
    first, second = (f"marker-{uuid.uuid4().hex}" for _ in range(2))
    servers = Guarded(cluster, [first, second])
    policy, pod, namespace = governed(cluster, servers)
    write(cluster, namespace, first)
    said = cluster.apply(policy, pod, namespace=namespace)
    if "PodSecurity" in said:
        raise Failure(f"a warning: {said}")
    cluster.ready(namespace, "agent")
    cluster.programmed(policy, 1)
    cluster.condition(policy, "CredentialsReady", 30, "True", "Ready")
    uid = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")["metadata"]["uid"]

    for server in ("guarded", "verified"):
        delivered(cluster, servers, namespace, server, measured)
    expect("whose token came", {servers.hashes[first]}, set(servers.lines("guarded", "accepted")))
    expect("whose token came", {f"system:serviceaccount:{namespace}:default"}, set(servers.lines("verified", "accepted")))
    direct = [stolen(cluster, servers, namespace, server) for server in ("guarded", "verified")]
    measured.note(f"direct calls with {direct[0]} and {direct[1]} texts of the pod refused")

    not_mounted(cluster, servers, namespace, policy)
    rotated(cluster, servers, namespace, second, measured)
    gone(cluster, servers, namespace, policy, second)
    nowhere(cluster, servers, namespace, [first, second])
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")
    expect("the pod", uid, found["metadata"]["uid"])
    expect("restarts", [0, 0], [c["restartCount"] for kind in ("initContainerStatuses", "containerStatuses") for c in found["status"][kind]])
    measured.note("without the Secret, and in a pod without the annotation: calls denied, nothing sent, condition and `kubectl toolweir status` say why; the secret is in no file, environment, page, log, metric, event, status or state")


def delivered(cluster, servers, namespace, server, measured):
    answers = cluster.call(namespace, "agent", "send_dm_to_user", CALLS, server=server, **MESSAGE)
    expect(f"{server}: calls", ["ok"] * MOST + ["denied"] * (CALLS - MOST), [answer["outcome"] for answer in answers])
    expect(f"{server}: reasons", {"rate_limit"}, {answer["denial"]["reason"] for answer in answers[MOST:]})
    expect(f"{server}: what it got", ["send_dm_to_user"] * MOST, servers.lines(server, "tool"))
    expect(f"{server}: tokens that it refused", [], servers.lines(server, "refused"))
    measured.note(f"{server}: {MOST} of {CALLS} delivered")


def stolen(cluster, servers, namespace, server):
    """The agent calls the server directly with all that it finds; how many texts that were."""
    before = len(servers.lines(server, "accepted"))
    said = json.loads(kubectl("-n", namespace, "exec", "agent", "-c", "agent", "--", "python3", "/opt/agent/steal.py", servers.url(server)))
    expect(f"{server}: what got in directly", ([], {"401"}), (said["entered"], set(said["statuses"])))
    # Its token for the API server is among what was tried, or little was.
    if said["jwts"] < 1 or said["tried"] < 20:
        raise Failure(f"{server}: the agent found too little to try: {said}")
    expect(f"{server}: accepted meanwhile", before, len(servers.lines(server, "accepted")))
    if server == "verified":
        expect_in("why the agent's own token was refused", "InvalidAudienceError", "\n".join(servers.lines(server, "refused")))
    return said["tried"]


def denied(cluster, servers, namespace, pod, server, times=3):
    """The calls are denied, and the server gets nothing; what the model reads."""
    before = [len(servers.lines(server, field)) for field in ("tool", "accepted", "refused")]
    answers = cluster.call(namespace, pod, "get_page_info", times, server=server)
    expect(f"calls of {pod} to {server}", [("denied", "credential_unavailable")] * times, [(a["outcome"], (a["denial"] or {}).get("reason")) for a in answers])
    expect(f"what {server} got of {pod}", before, [len(servers.lines(server, field)) for field in ("tool", "accepted", "refused")])
    return answers[0]["text"]


def not_mounted(cluster, servers, namespace, policy):
    """A pod that was created without the annotations."""
    cluster.apply(agent("bare"), namespace=namespace)
    cluster.ready(namespace, "bare")
    said = cluster.condition(policy, "CredentialsReady", 30, "False", "NotMounted")
    expect_in("the condition", "bare", said["message"])
    for server in ("guarded", "verified"):
        denied(cluster, servers, namespace, "bare", server, 1)
    expect("a call of the other pod", "ok", cluster.call(namespace, "agent", "get_page_info", server="guarded")[0]["outcome"])
    status = toolweir("status", "-n", namespace, code=1)
    expect_in("kubectl toolweir status", "NotMounted", status)
    expect_in("kubectl toolweir status", "bare", status)
    for kind in ("bearer", "serviceAccountToken"):
        expect_in("kubectl toolweir status", kind, status)
    kubectl("-n", namespace, "delete", "pod", "bare", "--now", "--timeout=60s")
    cluster.condition(policy, "CredentialsReady", 30, "True", "Ready")


def rotated(cluster, servers, namespace, token, measured):
    """The Secret gets another token, which is in force when the kubelet has written it. No call fails meanwhile."""
    write(cluster, namespace, token)
    began = time.monotonic()
    while servers.hashes[token] not in servers.lines("guarded", "accepted"):
        if (waited := time.monotonic() - began) > KUBELET:
            raise Slow(f"the new token is not in force after {waited:.0f} s")
        expect("a call while the Secret is replaced", "ok", cluster.call(namespace, "agent", "get_page_info", server="guarded")[0]["outcome"])
        time.sleep(1)
    measured.at_most("a rotated Secret in force", time.monotonic() - began, KUBELET, "s")


def gone(cluster, servers, namespace, policy, token):
    """The Secret is deleted, and comes again."""
    kubectl("-n", namespace, "delete", "secret", SECRET)
    nudge(namespace)
    said = cluster.condition(policy, "CredentialsReady", KUBELET, "False", "NotReady")
    expect_in("the condition", KEY, said["message"])
    expect_in("the condition", "agent", said["message"])
    expect_in("what the model reads", KEY, denied(cluster, servers, namespace, "agent", "guarded"))
    expect("a call to the other server", "ok", cluster.call(namespace, "agent", "get_page_info", server="verified")[0]["outcome"])
    status = toolweir("status", "-n", namespace, code=1)
    expect_in("kubectl toolweir status", KEY, status)
    samples = cluster.sidecar_metrics(namespace, "agent")
    ready = {(labels["server"], labels["kind"]): value for name, labels, value in samples if name == "toolweir_credential_ready"}
    expect("in the metrics", {("guarded", "bearer"): 0, ("verified", "serviceAccountToken"): 1}, ready)
    left = [value for name, labels, value in samples if name == "toolweir_credential_expiry_seconds" and labels["server"] == "verified"]
    if len(left) != 1 or not 0 < left[0] <= 3600:
        raise Failure(f"seconds left of the token of the service account: {left}")
    if total(samples, "toolweir_requests_total", server="guarded", outcome="credential_unavailable") < 3:
        raise Failure("the metrics do not count the calls that were denied")

    write(cluster, namespace, token)
    nudge(namespace)
    cluster.condition(policy, "CredentialsReady", KUBELET, "True", "Ready")
    expect("a call with the Secret that came again", "ok", cluster.call(namespace, "agent", "get_page_info", server="guarded")[0]["outcome"])


def nowhere(cluster, servers, namespace, secrets):
    """The secrets are nowhere but in the Secret, and what the agent sends as its own token does not pass."""
    texts = {form for secret in secrets for form in (secret, base64.b64encode(secret.encode()).decode())}
    needles = sorted(texts)
    found = json.loads(kubectl("-n", namespace, "exec", "-i", "agent", "-c", "agent", "--", "python3", "-c", LOOK, input="\n".join([*needles, "agent"]) + "\n"))["found"]
    expect("places in the agent's container", [[]] * len(needles), found[:-1])
    if not {"environment", "/etc/hostname"} <= set(found[-1]):
        raise Failure(f"the search did not find the pod's name where it is: {found[-1]}")

    accepted, refused = (len(servers.lines("guarded", field)) for field in ("accepted", "refused"))
    pages = json.loads(kubectl("-n", namespace, "exec", "agent", "-c", "agent", "--", "python3", "-c", PAGES))
    expect("statuses of the sidecar's pages", {404 if "well-known" in url else 200 for url in pages}, {status for status, _ in pages.values()})
    expect("the document of the server's authorization", 404, next(status for url, (status, _) in pages.items() if "well-known" in url))
    if len(servers.lines("guarded", "accepted")) <= accepted:
        raise Failure(f"the request with a token of the agent's own did not arrive with the sidecar's: {pages}")
    expect("tokens of the agent that arrived", refused, len(servers.lines("guarded", "refused")))

    log = cluster.logs(namespace, "agent", SIDECAR)
    expect_in("the sidecar's log", "TRACE", log)
    state = kept(cluster, namespace)
    expect_in("the sidecar's state", KEY, state.get("policies.json", ""))
    everything = {
        **{url: text for url, (_, text) in pages.items()},
        "the sidecar's log": log,
        "the metrics": cluster.api.raw("GET", f"/api/v1/namespaces/{namespace}/pods/agent:15020/proxy/metrics")[1],
        "the objects of the namespace": kubectl("-n", namespace, "get", "all,configmaps,events,mcppolicies", "-o", "json"),
        "all events": kubectl("get", "events", "-A", "-o", "json"),
        "the operator's objects": kubectl("-n", SYSTEM, "get", "configmaps,secrets,deployments", "-o", "json"),
        "kubectl toolweir status": until(30, "status finds everything in order", lambda: toolweir("status", "-n", namespace), 1),
        **{f"{name} of the sidecar's state": text for name, text in state.items()},
        **{f"the log of {p['metadata']['name']}": cluster.logs(SYSTEM, p["metadata"]["name"], "operator") for p in cluster.operators()},
    }
    for what, text in everything.items():
        if any(form in text for form in texts):
            raise Failure(f"the secret is in {what}")


def kept(cluster, namespace):
    """The files of the sidecar's state, which only its own user can read. Who may add containers to a pod can read everything in it."""
    look = {
        "name": "look", "image": AGENT_IMAGE, "imagePullPolicy": "Never", "args": ["-c", STATE],
        "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "toolweir-state", "mountPath": "/state", "readOnly": True}],
    }
    path = f"/api/v1/namespaces/{namespace}/pods/agent/ephemeralcontainers"
    cluster.api("PATCH", path, {"spec": {"ephemeralContainers": [look]}}, content="application/strategic-merge-patch+json")
    return json.loads(until(60, "the state was read", lambda: cluster.logs(namespace, "agent", "look"), 0.5))
