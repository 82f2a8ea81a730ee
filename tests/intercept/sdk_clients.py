"""The clients of tests/sdk, given the server's own https URL: what they see, what the server gets, and what metrics and audit log say, against
those of the local URL."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from runtimes import built
from processes import wait_until
from world import HERE, NAMESPACE, addresses, policy, server, total

SDK, AGENT = HERE.parent / "sdk", HERE.parent / "cluster/agent"
TOOL, TEXT, CALLS, MOST = "get_page_fan_count", "1911", 35, 30
POLICY = f"{NAMESPACE}/intercept"
OLD, NEW = "2025-11-25", "2026-07-28"
# Each client with the version that it speaks to this server, and the URL that it is given.
CLIENTS = {
    "py1": (OLD, "https://py1.test/mcp"),
    "py2": (NEW, "https://py2.test/mcp"),
    "ts1": (OLD, "https://ts1.test:8443/mcp"),
    "ts2": (NEW, "https://TS2.test:8443/mcp"),
    "gosdk": (NEW, "https://gosdk:8443/mcp"),
    "rmcp": (NEW, "https://rmcp.agents.svc/mcp"),
    "curl": (OLD, "https://curl.test.:443/mcp"),
    # What the others are held against.
    "local": (NEW, "http://127.0.0.1:15001/local"),
}
# Where a policy declares them, if that is not as their clients write it.
DECLARED = {
    "ts2": "https://ts2.test:8443/mcp",
    "gosdk": "https://gosdk.agents.svc.cluster.local:8443/mcp",
    "rmcp": "https://rmcp.agents.svc.cluster.local/mcp",
    "curl": "https://curl.test/mcp",
    "local": "https://local.test/mcp",
}


def command(name):
    driver = [sys.executable, SDK / "driver.py"]
    return {
        "py1": [built("MCP1"), SDK / "py1.py"],
        "py2": [built("MCP2"), SDK / "py2.py"],
        "ts1": ["node", f"{built('NPM')}/ts1.mjs"],
        "ts2": ["node", f"{built('NPM')}/ts2.mjs"],
        "local": [built("MCP2"), SDK / "py2.py"],
    }.get(name, driver)


def drivers():
    return {"gosdk": [built("GOSDK")], "rmcp": [built("RMCP")], "curl": [sys.executable, str(AGENT / "curl.py")]}


def steps():
    """What every client does, as tests/sdk/steps.py says it."""
    denied = {"what": "call over the limit", "call": TOOL, "args": {}, "text": "Try again in", "denied": {"policy": POLICY, "reason": "rate_limit"}}
    hidden = {
        "what": "delete_post",
        "call": "delete_post",
        "args": {"post_id": "1"},
        "text": "delete_post",
        "denied": {"policy": POLICY, "reason": "not_listed"},
    }
    return [
        {"what": "list", "list": {"present": [TOOL], "absent": ["delete_post", "send_dm_to_user"]}},
        *[{"what": f"call {number}", "call": TOOL, "args": {}, "text": TEXT} for number in range(1, MOST + 1)],
        *[denied] * (CALLS - MOST),
        hidden,
    ]


def run(world, name):
    """The lines of a client that are wrong."""
    version, url = CLIENTS[name]
    environment = {"MCP_MODE": "auto", "DRIVER": json.dumps(drivers().get(name, []))}
    try:
        ran = world.agent(*command(name), url, "http", version, json.dumps(steps()), environment=environment, seconds=90)
    except subprocess.TimeoutExpired as error:
        return [f"it did not end: {(error.stdout or b'')[-300:]}"]
    lines = ran.stdout.splitlines()
    wrong = [line for line in lines if not line.startswith("ok ")]
    return wrong or ([] if len(lines) == len(steps()) + 1 else [f"{len(lines)} lines of {len(steps()) + 1}: {ran.stderr[-400:]}"])


def audit_of(world, name):
    """The lines of the audit log of one server, without what differs from call to call."""
    lines = [line for line in world.audit() if line.get("server") == name]
    return Counter(json.dumps({key: line.get(key) for key in ("tool", "decision", "reason", "policy", "entry", "outcome")}) for line in lines)


CALL_METRIC, REQUEST_METRIC = "toolweir_tool_calls_total", "toolweir_requests_total"


def metrics_of(samples, name, *metrics):
    """What metrics say of one server."""
    return {
        (metric, *sorted((key, value) for key, value in labels.items() if key != "server")): value
        for metric in metrics
        for labels, value in samples.get(metric, ())
        if labels["server"] == name
    }


def scenario_mcp(scenario, world):
    for number, name in enumerate(CLIENTS, 40):
        host = DECLARED.get(name, CLIENTS[name][1]).split("/")[2].partition(":")[0]
        world.host(host, addresses(number))
    world.begin()
    tools = {"name": TOOL, "limits": [{"max": MOST, "window": "minute"}]}
    world.govern(policy(*(server(name, DECLARED.get(name, url), tools) for name, (_, url) in CLIENTS.items())))
    with ThreadPoolExecutor(3) as threads:
        wrong = dict(zip(CLIENTS, threads.map(lambda name: run(world, name), CLIENTS)))
    wait_until("the audit log is written", lambda: len([line for line in world.audit() if line.get("server")]) >= (CALLS + 1) * len(CLIENTS))
    after = world.samples()
    print(f"\n  {'client':<8} {'URL':<32} {'allowed':<8} {'denied':<7} audit log and metrics")
    for name, (_, url) in CLIENTS.items():
        lines = audit_of(world, name)
        decided = Counter(line["decision"] for line in world.audit() if line.get("server") == name)
        # The same SDK sends the same requests; others open other streams.
        compared = [CALL_METRIC] + [REQUEST_METRIC] * (name == "py2")
        same = lines == audit_of(world, "local") and metrics_of(after, name, *compared) == metrics_of(after, "local", *compared)
        print(f"  {name:<8} {url:<32} {decided['allowed']:<8} {decided['denied']:<7} {'as by the local URL' if same else 'DIFFER'}")
        scenario.require(
            not wrong[name],
            f"{name}: {wrong[name][:3] or 'listed what it may call, got 30 answers and 6 denials in words'}",
            "30 of 35, and one that is hidden",
        )
        scenario.require(same, f"{name}: {'the same' if same else lines - audit_of(world, 'local')} in audit log and metrics", "as by the local URL")
    got = Counter(line["tool"] for line in world.delivered())
    scenario.require(got == {TOOL: MOST * len(CLIENTS)}, f"the server got {dict(got)}", {TOOL: MOST * len(CLIENTS)})
    refused = [line for line in world.audit() if "destination" in line]
    scenario.require(not refused, f"connections that were not governed: {refused[:3] or 'none'}", "none")
    calls = total(after, CALL_METRIC, server="py2", decision="allowed", tool=TOOL)
    scenario.require(calls == MOST, f"{CALL_METRIC} of py2, allowed: {calls:.0f}", MOST)
