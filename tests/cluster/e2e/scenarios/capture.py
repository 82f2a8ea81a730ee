"""Capture, as agents see it that nobody configured: real clients, each with a spelling of the server's own URL."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from capturing import CLIENTS_IMAGE, captured
from kube import SIDECAR, Failure, agent, expect, total, until

from . import scenario

TOOL, TEXT, CALLS, MOST = "get_page_fan_count", "1911", 35, 30
NAME = "just-facebook.toolweir-e2e-tools"
OLD, NEW = "2025-11-25", "2026-07-28"
# Each client with its arguments for python3 or node, the version that it speaks to this server, and how it spells the server's URL.
CLIENTS = {
    "py1": (["/opt/clients/py1.py"], OLD, f"http://{NAME}.svc:8000/mcp"),
    "py2": (["/opt/agent/stay.py", "/opt/clients/py2.py"], NEW, f"http://{NAME}:8000/mcp"),
    "ts1": (["/opt/clients/ts1.mjs"], OLD, f"http://{NAME}.svc.cluster.local:8000/mcp"),
    "ts2": (["/opt/clients/ts2.mjs"], NEW, f"http://{NAME.upper()}.svc:8000/mcp"),
    "gosdk": (["/opt/clients/driver.py"], NEW, f"http://{NAME}.svc.CLUSTER.local:8000/mcp"),
    "rmcp": (["/opt/clients/driver.py"], NEW, "http://Just-Facebook.toolweir-e2e-tools.SVC:8000/mcp"),
    "curl": (["/opt/clients/driver.py"], OLD, f"http://{NAME}.svc.cluster.local.:8000/mcp"),
    # Not by capture: what the others are held against.
    "local": (["/opt/agent/stay.py", "/opt/clients/py2.py"], NEW, "http://127.0.0.1:15001/facebook"),
}
DRIVERS = {"gosdk": ["/opt/clients/gosdk"], "rmcp": ["/opt/clients/rmcp-driver"], "curl": ["python3", "/opt/agent/curl.py"]}
PYTHON = ["/opt/clients", "/opt/agent", "/opt/agent/packages"]


def steps(policy):
    """What every client does, as tests/sdk/steps.py says it."""
    denied = {"what": "call over the limit", "call": TOOL, "args": {}, "text": "Try again in", "denied": {"policy": policy, "reason": "rate_limit"}}
    deleted = {"what": "delete_post", "call": "delete_post", "args": {"post_id": "1"}, "text": "delete_post", "denied": {"policy": policy, "reason": "not_listed"}}
    return [
        {"what": "list", "list": {"present": [TOOL], "absent": ["delete_post", "send_dm_to_user"]}},
        *[{"what": f"call {number}", "call": TOOL, "args": {}, "text": TEXT} for number in range(1, MOST + 1)],
        *[denied] * (CALLS - MOST), deleted,
    ]


def client(name, policy, clients=CLIENTS):
    """The pod of a client."""
    words, version, url = clients[name]
    pod = agent(name, *words, url, "http", version, json.dumps(steps(policy)), restart="Never")
    container = pod["spec"]["containers"][0]
    container["image"] = CLIENTS_IMAGE
    if name.startswith("ts"):
        container["command"] = ["/usr/bin/node"]
    packages = ["/opt/clients/mcp1"] if name == "py1" else PYTHON
    env = {"PYTHONPATH": ":".join(dict.fromkeys([*PYTHON[:1], *packages])), "MCP_MODE": "auto", "DRIVER": json.dumps(DRIVERS.get(name, []))}
    container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    return pod


def said(cluster, namespace, name, want):
    """Waits for all lines of a client; gives those that are wrong."""

    def probe():
        lines = cluster.logs(namespace, name).splitlines()
        phase = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"].get("phase")
        if len(lines) < want and phase not in ("Succeeded", "Failed"):
            raise Failure(f"{name} is {phase} and said {lines[-2:]}")
        return lines

    lines = until(90, f"{name} has taken its steps", probe, 0.5)
    wrong = [line for line in lines if not line.startswith("ok ")]
    return wrong or ([] if len(lines) == want else [f"{len(lines)} lines of {want}"])


def audit(cluster, namespace, name):
    """The lines of the audit log of one pod, without what differs from call to call."""
    lines = [json.loads(line) for line in cluster.logs(namespace, name, SIDECAR).splitlines() if '"decision"' in line]
    return Counter(json.dumps({key: line.get(key) for key in ("server", "tool", "decision", "reason", "policy", "entry")}, sort_keys=True) for line in lines)


def counted(cluster, namespace, name):
    """What the metrics say of requests and calls."""
    samples = cluster.sidecar_metrics(namespace, name)
    return {(metric, tuple(sorted(labels.items()))): value for metric, labels, value in samples if metric in ("toolweir_tool_calls_total", "toolweir_requests_total")}


@scenario(
    "capture", "capture: clients of six SDKs and curl that nobody configured, each with another spelling of the server's own URL",
    f"{MOST} of {CALLS} calls delivered for each, other tools hidden, denials in words; the server's log agrees; audit log and metrics as by the local URL; every spelling of a server is governed",
)
def capture(cluster, measured):
    namespace = captured(cluster, "capture")
    tools = [{"name": TOOL, "limits": [{"max": MOST, "window": "minute"}]}]
    policy = cluster.policy(namespace, tools=tools)
    cluster.apply(policy)
    before = len(cluster.delivered())
    full_name = f"{namespace}/facebook"
    cluster.apply(*(client(name, full_name) for name in CLIENTS), namespace=namespace)
    want = len(steps(full_name)) + 1
    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        wrong = dict(zip(CLIENTS, threads.map(lambda name: said(cluster, namespace, name, want), CLIENTS)))
    if wrong := {name: lines for name, lines in wrong.items() if lines}:
        raise Failure(f"clients: {json.dumps(wrong):.1500}")
    got = Counter(line["tool"] for line in cluster.delivered()[before:])
    expect("what the server got", {TOOL: MOST * len(CLIENTS)}, dict(got))
    logs = {name: audit(cluster, namespace, name) for name in CLIENTS}
    for name in CLIENTS:
        expect(f"{name}: the audit log, against the local URL's", logs["local"], logs[name])
    expect("decisions in the audit log", CALLS + 1, sum(logs["local"].values()))
    expect("metrics, against the local URL's", counted(cluster, namespace, "local"), counted(cluster, namespace, "py2"))
    measured.note(f"{MOST} of {CALLS} delivered, and the rest denied in words, for each of {', '.join(name for name in CLIENTS if name != 'local')}; audit log and metrics as by the local URL")
    spellings(cluster, measured)


def listed(cluster, namespace, servers):
    """How many lists of tools the sidecar has counted, of all servers."""
    samples = cluster.sidecar_metrics(namespace, "agent")
    return sum(total(samples, "toolweir_requests_total", server=entry["name"], method="tools/list") for entry in servers)


def spellings(cluster, measured):
    """Every way to write the URL of a server of one's own namespace, and of one by its IPv6 address."""
    namespace = captured(cluster, "capture-spellings")
    opted_out = {"toolweir.dev/inject": "disabled", "toolweir.dev/capture": "disabled"}
    pages = []
    for name, words in (("page", []), ("page6", ["::"])):
        server = agent(name, "/opt/agent/serve.py", *words, labels={"app": name, **opted_out})
        if not words:  # The kubelet looks at the first address, which has no IPv6.
            server["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
        pages.append(server)
    ports = [{"name": "mcp", "port": 8000}, {"name": "http", "port": 80, "targetPort": 8000}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "page"}, "spec": {"selector": {"app": "page"}, "ports": ports}}
    cluster.apply(pages[0], service, namespace=namespace)
    six = None
    if any(":" in ip["ip"] for ip in cluster.api.get("/api/v1/namespaces/toolweir-e2e-tools/pods/just-facebook")["status"]["podIPs"]):
        spec = {**service["spec"], "selector": {"app": "page6"}, "ipFamilies": ["IPv6"]}
        cluster.apply(pages[1], {**service, "metadata": {"name": "page6"}, "spec": spec}, namespace=namespace)
        cluster.ready(namespace, "page6")
        six = cluster.api.get(f"/api/v1/namespaces/{namespace}/services/page6")["spec"]["clusterIP"]
    policy = cluster.policy(namespace, url=f"http://page.{namespace}.svc:8000/mcp", tools=[{"name": TOOL}])
    first = policy["spec"]["servers"][0]
    servers = [first, {**first, "name": "plain", "url": f"http://page.{namespace}.svc/mcp"}]
    if six:
        servers.append({**first, "name": "six", "url": f"http://[{six}]:8000/mcp"})
    policy["spec"]["servers"] = servers
    cluster.apply(policy, agent("agent"), namespace=namespace)
    cluster.ready(namespace, "agent", "page")
    cluster.programmed(policy, 1)
    names = ["page", f"page.{namespace}", f"page.{namespace}.svc", f"page.{namespace}.svc.cluster.local", f"page.{namespace}.svc.cluster.local.", f"PAGE.{namespace}.SVC"]
    urls = [f"http://{name}{port}/mcp" for name in names for port in (":8000", "", ":80")]
    if six:
        urls += [f"http://[{address}]:8000/mcp" for address in (six, ip_address(six).exploded, six.upper())]
        until(20, "the server listens by IPv6", lambda: cluster.tools(namespace, "agent", server="six") == [TOOL], 0.5)
    before = listed(cluster, namespace, servers)
    with ThreadPoolExecutor(4) as threads:
        answers = zip(urls, threads.map(lambda url: cluster.tools(namespace, "agent", server=url), urls))
    if wrong := {url: answer for url, answer in answers if answer != [TOOL]}:
        raise Failure(f"URLs that are not governed: {json.dumps(wrong):.1500}")
    expect("lists that the sidecar counted", len(urls), listed(cluster, namespace, servers) - before)
    measured.note(f"{len(urls)} spellings of a server of the own namespace are governed{', IPv6 literals too' if six else ''}")
