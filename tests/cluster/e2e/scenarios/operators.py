"""The operator: outages, authentication, rotation of certificates, load."""

import base64
import json
import os
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import h2stream
from kube import Failure, agent, expect, expect_in, kubectl, never_scheduled, percentile, run, total, until
from settings import ADMISSIONS, CERT_SECONDS, INJECTOR, NODE_DIR, OPERATOR, OUT, ROOT, SIDECAR_CHANGES, SIDECARS, STREAM_NAME, SYSTEM

from . import scenario
from .policies import MESSAGE, send

# Ends the sidecar from the agent's container: both share their processes in that pod, and the user.
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:
        continue
    if command[0].endswith("toolweir-sidecar"):
        os.kill(int(pid), signal.SIGKILL)
        print("killed", pid)
"""


def exec_in(namespace, pod, *words):
    return run("kubectl", "-n", namespace, "exec", pod, "-c", "agent", "--", *words)


def connected(cluster, namespace, pods):
    """Returns the number of sidecars with an open stream that enforce its content."""
    return sum(total(cluster.sidecar_metrics(namespace, pod), "toolweir_policy_connected") for pod in pods)


@scenario(
    "operator-gone", "operator gone (all replicas deleted)",
    "enforcement goes on; a sidecar whose container restarts keeps its last policy; a new pod in an opted-in namespace is refused, elsewhere untouched; back again: all acknowledged within 10 s",
)
def operator_gone(cluster, measured):
    namespace, plain = cluster.namespace("gone"), cluster.namespace("plain", inject=False)
    policy = cluster.policy(namespace, tools=[send(2)])
    pods = ["agent-0", "agent-1", "agent-2"]
    cluster.apply(policy, agent(pods[0], user=65532, shareProcessNamespace=True), *map(agent, pods[1:]), namespace=namespace)
    cluster.ready(namespace, *pods)
    cluster.programmed(policy, len(pods))
    try:
        cluster.scale(0)
        until(60, "no operator is left", lambda: not cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/pods", labelSelector="app.kubernetes.io/component=operator")["items"])
        until(60, "the sidecars notice", lambda: connected(cluster, namespace, pods) == 0)
        answers = cluster.call(namespace, pods[1], "send_dm_to_user", 4, **MESSAGE) + cluster.call(namespace, pods[1], "delete_post", post_id="1")
        expect("calls without an operator", ["ok", "ok", "denied", "denied", "denied"], [a["outcome"] for a in answers])

        expect_in("the end of the sidecar", "killed", exec_in(namespace, pods[0], "python3", "-c", KILL))

        def restarted():
            status = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pods[0]}")["status"]["initContainerStatuses"][0]
            return status["restartCount"] == 1 and status.get("started") and "running" in status["state"]

        until(60, "the sidecar's container runs again", restarted, 0.3)
        answers = until(20, "the sidecar answers again", lambda: (a := cluster.call(namespace, pods[0], "send_dm_to_user", 4, **MESSAGE))[0]["http"] and a)
        expect("calls after its restart", ["ok", "ok", "denied", "denied"], [a["outcome"] for a in answers])
        expect("tools after its restart", ["send_dm_to_user"], cluster.tools(namespace, pods[0]))
        samples = cluster.sidecar_metrics(namespace, pods[0])
        if not total(samples, "toolweir_policy_age_seconds") > 0 or total(samples, "toolweir_policy_connected"):
            raise Failure("the restarted sidecar does not say that it is without its operator")

        expect_in("a new pod in an opted-in namespace", "failed calling webhook", cluster.refused(agent("late"), namespace=namespace))
        expect_in("a new policy", "failed calling webhook", cluster.refused(cluster.policy(namespace, "late", tools=[send(1)])))
        cluster.apply(agent("elsewhere"), namespace=plain)
        spec = cluster.api.get(f"/api/v1/namespaces/{plain}/pods/elsewhere")["spec"]
        expect("init containers elsewhere", [], spec.get("initContainers", []))
        cluster.ready(plain, "elsewhere")
    finally:
        cluster.scale(2)
    ready = lambda pod: any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))  # noqa: E731
    until(90, "an operator is ready", lambda: any(map(ready, cluster.operators())), 0.05)
    began = time.monotonic()
    until(60, "all sidecars are connected", lambda: connected(cluster, namespace, pods) == len(pods))
    until(60, "all sidecars have acknowledged", lambda: total(operator_metrics(cluster), "toolweir_operator_acks_total") >= len(pods))
    seconds = time.monotonic() - began
    cluster.rollout()
    policy["spec"]["servers"][0]["tools"] = [send(3)]
    until(30, "a policy is taken again", lambda: cluster.apply(policy))
    cluster.programmed(policy, len(pods))
    measured.note("enforcement went on; the restarted container kept its policy; a new pod and a new policy were refused, and a pod elsewhere untouched")
    measured.at_most("all acknowledged after an operator was ready again:", seconds, 10, "s")


# Writes a name with an address of nobody's to the pod's hosts file, or its DNS server; prints what the name is then.
MISLEAD = """
import socket, sys
what, name = sys.argv[1:]
with open(f"/etc/{what}", "r+") as file:
    if what == "hosts":
        file.seek(0, 2)
        file.write(f"10.244.0.253 {name}\\n")
    else:
        file.truncate()
        file.write("nameserver 10.244.0.253\\noptions timeout:1 attempts:1\\n")
try:
    print(socket.gethostbyname(name))
except OSError:
    print("nothing")
"""


@scenario(
    "names", "an agent that is root and writes to the /etc/hosts and the /etc/resolv.conf that its pod's containers share",
    "the agent itself is led elsewhere for the operator; its sidecar connects to every new operator and enforces what changes",
)
def names(cluster, measured):
    namespace = cluster.namespace("names")
    policy = cluster.policy(namespace, tools=[send(2)])
    root = agent("agent", user=0)
    root["spec"]["securityContext"]["runAsNonRoot"] = False
    root["spec"]["containers"][0]["securityContext"] = {}
    cluster.apply(policy, root, namespace=namespace)
    cluster.ready(namespace, "agent")
    cluster.programmed(policy, 1)
    # The hosts file is read before any server is asked.
    for most, what in enumerate(("hosts", "resolv.conf"), 3):
        said = exec_in(namespace, "agent", "python3", "-c", MISLEAD, what, f"{OPERATOR}.{SYSTEM}.svc").strip()
        expect(f"where the agent finds the operator, after it wrote to /etc/{what}", "10.244.0.253", said)
        run("kubectl", "-n", SYSTEM, "rollout", "restart", f"deployment/{OPERATOR}")
        cluster.rollout()
        cluster.settled()
        policy["spec"]["servers"][0]["tools"] = [send(most)]
        until(30, "the policy is taken", lambda: cluster.apply(policy))
        cluster.programmed(policy, 1)
    expect("the sidecar is connected", 1, connected(cluster, namespace, ["agent"]))
    measured.note("the agent finds the operator at 10.244.0.253; its sidecar found both new deployments of the operator, and each changed policy was in force")


def operator_metrics(cluster):
    """Of the replicas that answer: one may only be starting."""
    samples = []
    for pod in cluster.operators():
        try:
            samples += cluster.scrape(SYSTEM, pod["metadata"]["name"], 8080)
        except Failure:
            pass
    return samples


# ---- tokens


def token(cluster, namespace, pod=None, audience="toolweir", seconds=3600):
    """A token of the default service account, bound to a pod as the kubelet's are."""
    spec = {"audiences": [audience] if audience else [], "expirationSeconds": seconds}
    if pod:
        uid = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
    return cluster.api("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", {"spec": spec})["status"]["token"]


def expired(cluster, namespace, pod):
    """A token that was good and has expired. On the node of node.sh, whose key is here, one is signed; elsewhere none lives shorter
    than 10 minutes, so this waits."""
    key = NODE_DIR / "run/pki/sa.key"
    good = token(cluster, namespace, pod, seconds=600)
    if not key.exists() or os.environ.get("KUBECONFIG") != str(NODE_DIR / "run/admin.kubeconfig"):
        time.sleep(615)
        return good
    head, payload, _ = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    def signed(claims):
        text = f"{head}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}"
        done = subprocess.run(["openssl", "dgst", "-sha256", "-sign", str(key)], input=text.encode(), capture_output=True, check=True)
        return f"{text}.{base64.urlsafe_b64encode(done.stdout).decode().rstrip('=')}"

    # That it is the time alone which makes it bad shows the same one, signed in the same way, with its time.
    expect("a token that was signed here and has not expired", 200, stream(cluster, signed(claims), 3)[0])
    return signed({**claims, "exp": claims["exp"] - 7200, "iat": claims["iat"] - 7200, "nbf": claims["nbf"] - 7200})


def stream(cluster, token, seconds=6, header=None):
    """Opens a policy stream: the status, and the messages that came within some seconds. The operator waits 3 s for word of a pod
    that it does not know."""
    pod = cluster.operators()[0]["metadata"]["name"]
    headers = [("authorization", header or f"Bearer {token}")] if header or token else []
    with cluster.reach(SYSTEM, pod, 8444) as (host, port):
        status, text = h2stream.post(host, port, STREAM_NAME, "/v1/policies", headers, cluster.ca(), seconds)
    return status, [json.loads(line) for line in text.splitlines()] if status == 200 else text


@scenario("tokens", "a token of pod A, of another audience, expired, or none", "gets nothing that is not pod A's: 401 or 403, counted")
def tokens(cluster, measured):
    ours, theirs = cluster.namespace("tokens-a"), cluster.namespace("tokens-b")
    cluster.apply(cluster.policy(ours, "mine", tools=[send(1)]), agent("agent"), namespace=ours)
    cluster.apply(cluster.policy(theirs, "secret", tools=[send(2)]), agent("agent"), agent("over", "-c", "pass", restart="Never"), agent("gone"), namespace=theirs)
    cluster.ready(ours, "agent")
    cluster.ready(theirs, "agent", "gone")
    of_the_past, of_the_over = token(cluster, theirs, "gone"), token(cluster, theirs, "over")
    cluster.ended(theirs, "over")
    run("kubectl", "-n", theirs, "delete", "pod", "gone", "--grace-period=1")

    status, messages = stream(cluster, token(cluster, ours, "agent"), 3)
    expect("pod A's token", 200, status)
    snapshots = [m["snapshot"] for m in messages if "snapshot" in m]
    names = {f"{p['metadata'].get('namespace')}/{p['metadata']['name']}" for s in snapshots for p in s["policies"]}
    expect("what pod A's token gets", {f"{ours}/mine"}, names)

    late = expired(cluster, ours, "agent")
    counts = lambda: total(cluster.operator_metrics(), "toolweir_operator_stream_refused_total")  # noqa: E731
    before, tried = counts(), 0
    wrong = []
    for what, want, words, shown in [
        ("no token", 401, {}, None),
        ("no bearer", 401, {"header": "Basic YTpi"}, None),
        ("a forged token", 401, {}, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."),
        ("another audience", 401, {}, token(cluster, ours, "agent", audience="vault")),
        ("the API server's audience", 401, {}, token(cluster, ours, "agent", audience=None)),
        ("an expired one", 401, {}, late),
        # Nobody is asked whose it is: the operator sees that there is no such pod.
        ("one of a pod that is gone", 403, {}, of_the_past),
        ("one of no pod", 403, {}, token(cluster, ours)),
        ("one of a pod that has ended", 403, {}, of_the_over),
    ]:
        status, said = stream(cluster, shown, **words)
        tried += 1
        if status != want:
            wrong.append(f"{what}: expected {want}, got {status}: {said!r:.200}")
    if wrong:
        raise Failure("; ".join(wrong))
    expect("refusals in toolweir_operator_stream_refused_total", tried, counts() - before)
    measured.note(f"pod A's token gets pod A's policies alone; {tried} of {tried} others: 401 or 403, counted")


# ---- certificates


@scenario("certificates", "certificates with a life of one minute", "10 minutes of pod creations and streams with no failure")
def certificates(cluster, measured):
    namespace = cluster.namespace("certificates")
    policy = cluster.policy(namespace, tools=[send(1000)])
    pods = ["agent-0", "agent-1"]
    cluster.helm("upgrade", "--set-string", "certificates.caLife=1m,certificates.leafLife=1m")
    cluster.webhooks()
    try:
        cluster.apply(policy, *map(agent, pods), namespace=namespace)
        cluster.ready(namespace, *pods)
        until(30, "the streams are open", lambda: connected(cluster, namespace, pods) == len(pods))
        bad = lambda: {pod: troubles(cluster, namespace, pod) for pod in pods}  # noqa: E731
        before, made = bad(), rotations(cluster)
        began, failures, created, started, changes = time.monotonic(), [], 0, 0, 0
        step = 0
        while (now := time.monotonic() - began) < CERT_SECONDS:
            step += 1
            # Creations as they are admitted, none of which is kept.
            status, text = cluster.api.raw("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", agent(f"dry-{step}"))
            created += 1
            if status != 201 or '"toolweir-sidecar"' not in text:
                failures.append(f"after {now:.0f} s: a pod was not admitted with a sidecar: {status}: {text:.300}")
            try:
                if step % 3 == 0:
                    policy["spec"]["servers"][0]["tools"] = [send(1000 + step)]
                    cluster.api.patch(cluster.path(policy), policy)
                    cluster.programmed(policy, len(pods), 10)
                    changes += 1
                if step % 8 == 0:
                    # A sidecar that starts now: trusts what it was injected with, and opens its first stream.
                    cluster.apply(agent("new"), namespace=namespace)
                    cluster.ready(namespace, "new", seconds=20)
                    started += 1
                    run("kubectl", "-n", namespace, "delete", "pod", "new", "--grace-period=1")
            except Failure as failure:
                failures.append(f"after {now:.0f} s: {failure}")
            time.sleep(max(0, began + 1.5 * step - time.monotonic()))
        after, renewed = bad(), rotations(cluster) - made
        if failures:
            raise Failure(f"{len(failures)} failures: " + "; ".join(failures[:5]))
        expect("streams that broke, and connections that failed", before, after)
        expect("toolweir_operator_certificate_failures_total", 0, total(cluster.operator_metrics(), "toolweir_operator_certificate_failures_total"))
        if renewed < 2 * CERT_SECONDS / 60:
            raise Failure(f"only {renewed:.0f} certificates were made in {CERT_SECONDS} s")
        measured.note(f"{CERT_SECONDS} s, {renewed:.0f} certificates made: {created} creations admitted, {started} new sidecars, {changes} changes acknowledged by {len(pods)} streams, 0 failures")
    finally:
        cluster.helm("upgrade")
        cluster.webhooks()


def rotations(cluster):
    return total(cluster.operator_metrics(), "toolweir_operator_certificate_rotations_total")


def troubles(cluster, namespace, pod):
    """What went wrong with the stream of a sidecar so far."""
    samples = cluster.sidecar_metrics(namespace, pod)
    connects = {l["result"]: v for n, l, v in samples if n == "toolweir_control_plane_connects_total" and l["result"] != "ok"}
    return {**connects, **{l["end"]: v for n, l, v in samples if n == "toolweir_control_plane_disconnects_total" and l["end"] != "ended"}}


# ---- load


def create_all(cluster, namespace, names, labels=None):
    """Creates pods that never run, four at a time; the milliseconds that each took."""

    def create(name):
        began = time.monotonic()
        cluster.api("POST", f"/api/v1/namespaces/{namespace}/pods", never_scheduled(name, labels))
        return (time.monotonic() - began) * 1000

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(create, names))


def histogram(samples, name):
    """Returns the counts by upper bound."""
    found = {}
    for sample, labels, value in samples:
        if sample == f"{name}_bucket":
            bound = float(labels["le"].replace("+Inf", "inf"))
            found[bound] = found.get(bound, 0) + value
    return found


@scenario("admission", "admission of a pod", f"p99 under 20 ms in the operator over {ADMISSIONS} creations")
def admission(cluster, measured):
    namespace, name = cluster.namespace("admission"), "toolweir_operator_admission_duration_seconds"
    before = histogram(cluster.operator_metrics(), name)
    took = create_all(cluster, namespace, [f"pod-{n}" for n in range(ADMISSIONS)])
    after = histogram(cluster.operator_metrics(), name)
    counts = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    seen = counts[float("inf")]
    if seen < ADMISSIONS:
        raise Failure(f"the operator counted {seen:.0f} of {ADMISSIONS} admissions")
    bound = lambda share: next(bound for bound, count in counts.items() if count >= seen * share / 100) * 1000  # noqa: E731
    measured.at_most("p99 at most", bound(99), 20, "ms")
    measured.note(f"median at most {bound(50):.3g} ms, of {seen:.0f} in the operator; a creation takes {percentile(took, 50):.0f} ms in the API server, p99 {percentile(took, 99):.0f} ms")


@scenario(
    "sidecars", f"{SIDECARS} simulated sidecars on one operator",
    "a policy change acknowledged by all within 5 s; operator under 100 MiB resident; at most 1 status write a second for a policy",
)
def sidecars(cluster, measured):
    # tests/cluster/simulate.py measures it, on any cluster; it exits with 1 if a target is missed, and prints its figures anyway.
    command = ["python3", ROOT / "tests/cluster/simulate.py", "--operator-namespace", SYSTEM, "--operator", OPERATOR, "--injector", INJECTOR]
    # It connects from here, which is no pod, so the chart's NetworkPolicy would refuse it on another node.
    allow = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "e2e-simulator"},
        "spec": {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}}, "ingress": [{"ports": [{"port": 8444}, {"port": 8080}]}]},
    }
    cluster.apply(allow, namespace=SYSTEM)
    try:
        code, out, err = run(*command, "--count", SIDECARS, "--changes", SIDECAR_CHANGES, timeout=900, check=False)
    finally:
        kubectl("-n", SYSTEM, "delete", "networkpolicy", "e2e-simulator")
    (OUT / "simulate.log").write_text(err)
    if code not in (0, 1):
        raise Failure(f"simulate.py: {err.strip()[-800:]}")
    figures = json.loads(out)
    (OUT / "simulate.json").write_text(out)
    for target in figures["targets"]:
        measured.note(f"{target['target']}: {target['figure']:.3g}")
        measured.figures[target["target"]] = target["figure"]
        if not target["holds"] and target.get("of_time"):
            measured.missed.append(f"{target['target']}: {target['figure']:.3g}")
    expect("targets that are missed on any machine", [], [target for target in figures["targets"] if not target["holds"] and not target.get("of_time")])
    streams = figures["streams"]
    expect("streams that were lost or refused", ({}, {}, 0), (streams["lost"], streams["refused"], streams["reconnects"]))
    measured.note(f"all connected in {figures['connected_seconds']:.1f} s; {figures['resident_mib_before']:.0f} MiB before they connected")


@scenario("client-certificate", "the API server's certificate is demanded (`webhooks.clientCA`)", "its reviews pass; a client without a certificate, or with another one, is refused in the handshake, and counted")
def client_certificate(cluster, measured):
    code, text, _ = kubectl("-n", "kube-system", "get", "configmap", "webhook-clients", "-o", r"jsonpath={.data.ca\.crt}", check=False)
    if code or not text:
        raise Failure("the API server of this cluster shows no certificate to webhooks, or ConfigMap webhook-clients in kube-system does not say who signs it; tests/cluster/node.sh sets both up")
    namespace = cluster.namespace("certificate")
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "api-servers"}, "data": {"ca.crt": text}}, namespace=SYSTEM)
    try:
        cluster.helm("upgrade", "--set", "webhooks.clientCA.configMap=api-servers", "--set", "webhooks.clientCA.names={kube-apiserver}")
        cluster.rollout()
        cluster.settled()
        # The API server's: of a pod, and of a policy.
        policy = cluster.policy(namespace, tools=[{"name": "*"}])
        cluster.governed(namespace, policy)
        said = cluster.refused(cluster.policy(namespace, "wrong", tools=[{"name": "t", "validations": [{"expression": "args."}]}]))
        expect_in("a wrong policy", "expression", said)
        # Everybody else's.
        folder = OUT / "client-certificate"
        folder.mkdir(parents=True, exist_ok=True)
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key", "-out", folder / "certificate", "-days", "1", "-subj", "/CN=kube-apiserver")
        pod = cluster.operators()[0]["metadata"]["name"]
        closed = lambda: total(cluster.scrape(SYSTEM, pod, 8080), "toolweir_operator_connections_closed_total", port="webhooks", reason="certificate")  # noqa: E731
        before = closed()
        for identity in (None, (folder / "certificate", folder / "key")):
            context = ssl.create_default_context(cadata=cluster.ca())
            if identity:
                context.load_cert_chain(*identity)
            with cluster.reach(SYSTEM, pod, 8443) as address, socket.create_connection(address, 10) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname=STREAM_NAME) as stream:
                        stream.sendall(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
                        answer = stream.recv(1024)
                except (ssl.SSLError, ConnectionError):
                    continue
                if answer:
                    raise Failure(f"a client with the certificate {identity} got {answer!r:.200}")
        until(10, "both were counted", lambda: closed() - before >= 2)
    finally:
        cluster.helm("upgrade")
        cluster.rollout()
        kubectl("-n", SYSTEM, "delete", "configmap", "api-servers", "--ignore-not-found")
    measured.note("pods are injected and a wrong policy is refused by its words; 2 of 2 others were refused in the handshake, and counted")
