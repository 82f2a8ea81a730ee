"""HTTPS of captured agents: real clients that nobody configured, given the server's own https URL, which an authority of its own vouches for."""

import base64
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from capturing import CAPTURE_CONTAINER, captured
from kube import SIDECAR, Failure, agent, expect, expect_in, kubectl, run, total, until
from settings import OUT

from . import scenario
from .capture import CALLS, MOST, NEW, OLD, TOOL, audit, client, counted, said, steps
from .denials import toolweir

NAMESPACE = "toolweir-e2e-intercept-tools"
HOST = f"page.{NAMESPACE}.svc"
URL = f"https://{HOST}/mcp"
BUNDLE, STORE = "/etc/toolweir/ca-bundle.pem", "/etc/toolweir/ca-bundle.jks"
VARIABLES = dict.fromkeys(("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "DENO_CERT", "CURL_CA_BUNDLE"), BUNDLE)
VARIABLES["JAVA_TOOL_OPTIONS"] = f"-Djavax.net.ssl.trustStore={STORE}"
# As in `capture`: each client with the version that it speaks, and how it spells the server's URL.
CLIENTS = {
    "py1": (["/opt/clients/py1.py"], OLD, URL),
    "py2": (["/opt/agent/stay.py", "/opt/clients/py2.py"], NEW, f"https://page.{NAMESPACE}/mcp"),
    "ts1": (["/opt/clients/ts1.mjs"], OLD, f"https://{HOST}.cluster.local/mcp"),
    "ts2": (["/opt/clients/ts2.mjs"], NEW, f"https://{HOST.upper()}:443/mcp"),
    "gosdk": (["/opt/clients/driver.py"], NEW, URL),
    "rmcp": (["/opt/clients/driver.py"], NEW, f"https://{HOST}.cluster.local:443/mcp"),
    "curl": (["/opt/clients/driver.py"], OLD, URL),
    # Not by its https URL: what the others are held against.
    "local": (["/opt/agent/stay.py", "/opt/clients/py2.py"], NEW, "http://127.0.0.1:15001/facebook"),
}
# A TLS handshake as a client that trusts whatever it is shown: who vouches for what it sees, or how it ends.
SHAKE = """
import json, socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    with context.wrap_socket(socket.create_connection((sys.argv[1], 443), 10), server_hostname=sys.argv[1]) as made:
        print(json.dumps("connected"))
except OSError as error:
    print(json.dumps(type(error).__name__))
"""


def https_server(cluster):
    """An MCP server that only an authority of its own vouches for; the authority's certificate."""
    namespace, folder = cluster.namespace("intercept-tools", inject=False), OUT / "intercept"
    folder.mkdir(parents=True, exist_ok=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    authority, server = folder / "ca.crt", folder / "tls.crt"
    run("openssl", "req", "-x509", *key, "-subj", "/CN=e2e authority", "-addext", "keyUsage=critical,keyCertSign", "-keyout", folder / "ca.key", "-out", authority)
    names = ",".join(f"DNS:{name}" for name in (f"page.{NAMESPACE}", HOST, f"{HOST}.cluster.local"))
    leaf = ["-CA", authority, "-CAkey", folder / "ca.key", "-subj", "/CN=page", "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"]
    run("openssl", "req", "-x509", *key, *leaf, "-keyout", folder / "tls.key", "-out", server)
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (server, folder / "tls.key")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "page"}, "type": "kubernetes.io/tls", "data": data}
    pod = agent("page", "/opt/agent/serve.py", labels={"app": "page"}, volumes=[{"name": "tls", "secret": {"secretName": "page"}}])
    pod["spec"]["containers"][0] |= {
        "env": [{"name": "SERVE_TLS", "value": "/tls"}], "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "page"}, "spec": {"selector": {"app": "page"}, "ports": [{"port": 443, "targetPort": 8000}]}}
    cluster.apply(secret, pod, service, namespace=namespace)
    return authority


def delivered(cluster):
    return Counter(json.loads(line)["tool"] for line in cluster.logs(NAMESPACE, "page").splitlines() if line.startswith("{"))


@scenario(
    "intercept", "HTTPS of captured agents: clients of six SDKs and curl that nobody configured, given the server's own https URL",
    f"{MOST} of {CALLS} calls delivered for each, other tools hidden, denials in words; the server's log agrees; audit log and metrics as by the local URL; a pod that is older than the policy is refused with its reason, and the policy's condition names it; "
    "`explain` names the intermediate; the variables are in every container, and one's own is kept and warned of",
)
def intercept(cluster, measured):
    authority = https_server(cluster)
    namespace = captured(cluster, "intercept")
    try:
        cluster.helm("upgrade", "--set-file", f"capture.extraRoots={authority}")
        cluster.settled()
        cluster.apply(agent("older"), namespace=namespace)
        cluster.ready(NAMESPACE, "page")
        cluster.ready(namespace, "older")
        policy = cluster.policy(namespace, url=URL, tools=[{"name": TOOL, "limits": [{"max": MOST, "window": "minute"}]}])
        policy["spec"]["servers"][0]["tls"] = "Intercept"
        cluster.apply(policy)
        # Then the operators know of it, and a new pod gets an authority.
        needed = cluster.condition(policy, "InterceptionReady", 30, "False", "NewPodsNeeded")
        expect_in("the condition", f"{namespace}/older", needed["message"])
        cluster.programmed(policy, 1)
        governed(cluster, namespace, measured)
        older(cluster, namespace, measured)
        containers(cluster, namespace, measured)
        kubectl("-n", namespace, "delete", "pod", "older", "--now", "--wait=false")
        cluster.condition(policy, "InterceptionReady", 30, "True", "Ready")
    finally:
        cluster.helm("upgrade")


def governed(cluster, namespace, measured):
    """Real clients, each in a pod of its own."""
    full_name = f"{namespace}/facebook"
    cluster.apply(*(client(name, full_name, CLIENTS) for name in CLIENTS), namespace=namespace)
    want = len(steps(full_name)) + 1
    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        wrong = dict(zip(CLIENTS, threads.map(lambda name: said(cluster, namespace, name, want), CLIENTS)))
    if wrong := {name: lines for name, lines in wrong.items() if lines}:
        raise Failure(f"clients: {json.dumps(wrong):.1500}")
    expect("what the server got", {TOOL: MOST * len(CLIENTS)}, dict(delivered(cluster)))
    logs = {name: audit(cluster, namespace, name) for name in CLIENTS}
    for name in CLIENTS:
        expect(f"{name}: the audit log, against the local URL's", logs["local"], logs[name])
    expect("decisions in the audit log", CALLS + 1, sum(logs["local"].values()))
    expect("metrics, against the local URL's", counted(cluster, namespace, "local"), counted(cluster, namespace, "py2"))
    samples = cluster.sidecar_metrics(namespace, "py2")
    expect("servers whose TLS can be opened", 1, total(samples, "toolweir_interception_ready", server="facebook"))
    if not total(samples, "toolweir_interception_handshakes_total", result="completed"):
        raise Failure("the metrics count no completed handshake")
    explained = toolweir("explain", "-n", namespace, "py2", "--url", URL)
    if not (opened := re.search(rf"opened by: .*{re.escape(namespace)}/py2.*SHA-256 [0-9a-f:]{{8,}}.*", explained)):
        raise Failure(f"explain names no intermediate: {explained:.800}")
    measured.note(f"{MOST} of {CALLS} delivered, and the rest denied in words, for each of {', '.join(name for name in CLIENTS if name != 'local')}; audit log and metrics as by the local URL; {opened[0].strip():.120} ...")


def older(cluster, namespace, measured):
    """The pod from before the policy: its connections end, whatever its client trusts."""
    got = json.loads(kubectl("-n", namespace, "exec", "older", "-c", "agent", "--", "python3", "-c", SHAKE, HOST))
    expect("TLS of a pod that is older than the policy", "ConnectionResetError", got)
    refused = until(10, "the refusal is counted", lambda: total(cluster.sidecar_metrics(namespace, "older"), "toolweir_egress_connections_total", reason="new_pod_needed"))
    expect("refusals that were counted", 1, refused)
    told = [json.loads(line) for line in cluster.logs(namespace, "older", SIDECAR).splitlines() if '"new_pod_needed"' in line]
    expect("lines of the audit log", ["denied"], [line["decision"] for line in told if "decision" in line])
    expect_in("explain", "new_pod_needed", toolweir("explain", "-n", namespace, "older", "--url", URL, code=1))
    expect("calls of it that the server got", {TOOL: MOST * len(CLIENTS)}, dict(delivered(cluster)))
    measured.note("a pod that is older than the policy: reset, new_pod_needed, named in InterceptionReady")


def variables(container):
    return {variable["name"]: variable.get("value") for variable in container.get("env", []) if variable["name"] in VARIABLES}


def containers(cluster, namespace, measured):
    """What every container of a pod is given, and of one that sets a variable itself."""
    pod = agent("own")
    first = pod["spec"]["containers"][0]
    pod["spec"]["containers"].append({**first, "name": "beside"})
    pod["spec"]["initContainers"] = [{**first, "name": "before", "args": ["-c", "print(open('/etc/toolweir/ca-bundle.pem').read().count('BEGIN CERTIFICATE'))"]}]
    pod["spec"]["containers"][0] = {**first, "env": [{"name": "SSL_CERT_FILE", "value": "/own.pem"}]}
    warned = cluster.apply(pod, namespace=namespace)
    expect_in("the warning", "SSL_CERT_FILE", warned)
    made = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/own")["spec"]
    found = {container["name"]: variables(container) for container in (*made["initContainers"], *made["containers"]) if container["name"] not in (SIDECAR, CAPTURE_CONTAINER)}
    expect("variables", {"before": VARIABLES, "beside": VARIABLES, "agent": {**VARIABLES, "SSL_CERT_FILE": "/own.pem"}}, found)
    plain = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/older")["spec"]["containers"][0]
    expect("variables of a pod that is older than the policy", {}, variables(plain))
    cluster.ready(namespace, "own")
    count = int(cluster.logs(namespace, "own", "before"))
    if count < 100:
        raise Failure(f"the bundle has {count} certificates when an init container starts")
    measured.note(f"variables in every container, one's own is kept and warned of; {count} certificates in the bundle before an init container starts")
