"""An hour of sample metrics of a small fleet, as OpenMetrics for `promtool tsdb create-blocks-from openmetrics`.

    sample.py END     END: seconds since 1970

For checks without a cluster: every name and label is one that docs/metrics.md lists, and every panel has something to show. What the
programs really export is for tests/dashboards/live.sh.
"""
import math
import sys
from collections import defaultdict

END = int(sys.argv[1])
STEP, LENGTH = 15, 2 * 3600
families = defaultdict(lambda: defaultdict(dict))  # name -> labels -> time -> value
types = {}


def text(labels):
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def put(kind, name, labels, value):
    """`value`: a function of the seconds since the beginning, or a number."""
    types[name.removesuffix("_total") if kind == "counter" else name] = kind
    series = families[name.removesuffix("_total") if kind == "counter" else name][name + text(labels)]
    for at in range(0, LENGTH + 1, STEP):
        now = value(at) if callable(value) else value
        if now is not None:
            series[END - LENGTH + at] = now


def histogram(name, labels, bounds, rate, middle):
    """Observations around `middle`, at `rate` per second."""
    types[name] = "histogram"
    for bound in [*bounds, math.inf]:
        share = 1 if bound == math.inf else 1 / (1 + (middle / bound) ** 3)
        le = "+Inf" if bound == math.inf else repr(float(bound))
        series = families[name][f"{name}_bucket" + text({**labels, "le": le})]
        for at in range(0, LENGTH + 1, STEP):
            series[END - LENGTH + at] = round(rate * at * share)
    for suffix, each in (("count", 1), ("sum", middle)):
        series = families[name][f"{name}_{suffix}" + text(labels)]
        for at in range(0, LENGTH + 1, STEP):
            series[END - LENGTH + at] = round(rate * at) * each


def wave(rate, swing=0.5, period=1800, shift=0.0):
    """A counter with a varying rate."""
    omega = 2 * math.pi / period
    return lambda at: math.floor(rate * (at + swing / omega * (math.cos(shift) - math.cos(omega * at + shift))))


def burst(begin, rate, length=600):
    return lambda at: math.floor(rate * min(max(at - begin, 0), length))


UPSTREAM = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OVERHEAD = (0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)
DECISION = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0)
ADMISSION = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)

# pod, workload, namespace, its servers, policies (mode), version
FLEET = [
    ("social-agent-7d9c5b8f6d-x2x7k", "social-agent", "agents", ["facebook"], [("agents/facebook", "Enforce"), ("guardrail", "Enforce")], "3f9a1c02d7e45b68"),
    ("social-agent-7d9c5b8f6d-q8w4m", "social-agent", "agents", ["facebook"], [("agents/facebook", "Enforce"), ("guardrail", "Enforce")], "3f9a1c02d7e45b68"),
    ("research-agent-0", "research-agent", "research", ["web", "papers"], [("research/web", "Audit"), ("guardrail", "Enforce")], "b07c44e19a2d8f35"),
]
for number, (pod, workload, namespace, servers, policies, version) in enumerate(FLEET):
    scraped = {"job": "toolweir-sidecar", "instance": f"10.244.0.{number + 20}:15020", "namespace": namespace, "pod": pod, "workload": workload}

    def call(server, tool, decision, reason, policy, value):
        put("counter", "toolweir_tool_calls_total", {**scraped, "server": server, "tool": tool, "decision": decision, "reason": reason, "policy": policy}, value)

    def operation(server, method, name, decision, reason, policy, value):
        labels = {"server": server, "operation": method, "name": name, "decision": decision, "reason": reason, "policy": policy}
        put("counter", "toolweir_operations_total", {**scraped, **labels}, value)

    for server in servers:
        policy = policies[0][0]
        operation(server, "prompts/get", "summarize", "allowed", "none", policy, wave(0.1))
        operation(server, "resources/read", "file:///plans.txt", "allowed", "none", policy, wave(0.3, shift=number))
        operation(server, "resources/read", "_other", "denied", "not_listed", policy, burst(4800, 0.05))
        operation(server, "sampling/createMessage", "sampling", "allowed", "none", policy, wave(0.05))
        operation(server, "sampling/createMessage", "sampling", "denied", "rate_limit", policy, burst(5200, 0.1))
        operation(server, "roots/list", "roots", "would_deny", "not_listed", policy, wave(0.01))
        operation(server, "elicitation/create", "elicitation", "would_ask", "approval_pending", policy, wave(0.01))
        operation(server, "logging/setLevel", "logging/setLevel", "denied", "no_policy", "", burst(5600, 0.02))

    if "facebook" in servers:
        call("facebook", "send_dm_to_user", "allowed", "none", "agents/facebook", wave(0.4, shift=number))
        call("facebook", "get_post_comments", "allowed", "none", "agents/facebook", wave(1.2))
        call("facebook", "send_dm_to_user", "denied", "rate_limit", "agents/facebook", burst(4800, 0.3))
        call("facebook", "delete_comment_from_post", "denied", "denied", "agents/facebook", wave(0.01))
        call("facebook", "delete_post", "denied", "not_listed", "agents/facebook", burst(5600, 0.02))
        call("facebook", "get_post_comments", "denied", "rate_limit", "guardrail", burst(6000, 0.15, 400))
        call("facebook", "_other", "denied", "not_listed", "agents/facebook", 0)
        call("facebook", "get_page_info", "denied", "pin_drift", "agents/facebook", burst(5000, 0.05))
    else:
        call("web", "fetch", "allowed", "none", "research/web", wave(2.0))
        call("web", "fetch", "would_deny", "validation", "research/web", wave(0.08))
        call("web", "search", "would_deny", "rate_limit", "research/web", burst(5000, 0.1))
        call("papers", "download", "denied", "concurrency", "guardrail", burst(5200, 0.04))
        call("papers", "download", "allowed", "none", "guardrail", wave(0.3))
        call("papers", "cite", "would_deny", "not_pinned", "research/web", burst(5400, 0.02))
    for server in servers:
        put("counter", "toolweir_requests_total", {**scraped, "server": server, "method": "tools/call", "outcome": "ok"}, wave(1.6))
        histogram("toolweir_upstream_duration_seconds", {**scraped, "server": server}, UPSTREAM, 1.6, 0.08)
        histogram("toolweir_overhead_seconds", {**scraped, "server": server}, OVERHEAD, 1.6, 0.00004)
        tool = {"facebook": "send_dm_to_user", "web": "fetch", "papers": "download"}[server]
        put("gauge", "toolweir_limit_used_ratio", {**scraped, "server": server, "tool": tool, "policy": policies[0][0], "limit": "30/minute"}, lambda at: round(0.6 + 0.4 * math.sin(at / 600 + number), 3))
        put("gauge", "toolweir_limit_used_ratio", {**scraped, "server": server, "tool": "*", "policy": "guardrail", "limit": "300/hour"}, lambda at: round(0.4 + 0.1 * math.sin(at / 900), 3))
        call(server, tool, "would_ask", "approval_pending", policies[0][0], wave(0.02))
        put("gauge", "toolweir_approvals_waiting", {**scraped, "server": server}, lambda at: max(0, round(2 * math.sin(at / 500 + number))))
        for outcome, rate in (("requested", 0.02), ("approved", 0.012), ("denied", 0.004), ("expired", 0.004), ("used", 0.011), ("full", 0.001)):
            put("counter", "toolweir_approvals_total", {**scraped, "server": server, "outcome": outcome}, wave(rate))
        histogram("toolweir_approval_decision_seconds", {**scraped, "server": server}, DECISION, 0.016, 45)
    # A token of an OAuth server, which is renewed with a quarter of its life left; all others last.
    server, kind = servers[-1], {"agents": "serviceAccountToken", "research": "oauth2ClientCredentials"}[namespace]
    put("gauge", "toolweir_credential_ready", {**scraped, "server": server, "kind": kind}, lambda at: 0 if 3000 < at < 3090 and number == 2 else 1)
    put("gauge", "toolweir_credential_expiry_seconds", {**scraped, "server": server, "kind": kind}, lambda at: 3600 - at % 2700)
    if kind == "oauth2ClientCredentials":
        put("counter", "toolweir_credential_fetches_total", {**scraped, "server": server, "outcome": "ok"}, lambda at: 1 + at // 2700)
        put("counter", "toolweir_credential_fetches_total", {**scraped, "server": server, "outcome": "timeout"}, burst(3000, 0.05, 90))
    # A description that its server changed, and two tools that it added.
    part, tools = {"agents": ("description", 1), "research": ("tool", 2)}[namespace]
    put("gauge", "toolweir_tools_drifted", {**scraped, "server": server}, lambda at, tools=tools: tools if at >= 4900 else 0)
    for known in ("title", "description", "inputSchema", "annotations", "tool"):
        risen = tools if known == part else 0
        put("counter", "toolweir_tool_drift_total", {**scraped, "server": server, "part": known}, lambda at, risen=risen: risen if at >= 4900 else 0)
    # Captured connections: to what policies allow, and of a library that reports home.
    connection = lambda decision, reason, name, value: put("counter", "toolweir_egress_connections_total", {**scraped, "decision": decision, "reason": reason, "name": name}, value)
    connection("allowed", "none", "api.example.com", wave(0.3))
    connection("denied", "not_allowed", "_other", burst(4800, 0.2, 900))
    connection("denied", "address", "_address", burst(5400, 0.05))
    connection("denied", "no_policy", "_other", 0)
    if namespace == "research":
        connection("would_deny", "not_allowed", "_other", wave(0.05))
    put("gauge", "toolweir_egress_open_connections", scraped, lambda at: round(6 + 4 * math.sin(at / 700 + number)))
    for policy, mode in policies:
        put("gauge", "toolweir_policy_info", {**scraped, "policy": policy, "mode": mode, "version": version}, 1)
    put("gauge", "toolweir_policy_age_seconds", scraped, lambda at: max(0, min(at - 3000, 90)) if 3000 < at < 3090 and number == 2 else 0)
    put("gauge", "toolweir_policy_connected", scraped, 1)
    put("gauge", "toolweir_shared_store_up", scraped, 1)
    put("counter", "toolweir_control_plane_connects_total", {**scraped, "result": "ok"}, lambda at: 1 + at // 3300)
    put("counter", "toolweir_control_plane_connects_total", {**scraped, "result": "unreachable"}, burst(3000, 0.1, 90))
    put("gauge", "toolweir_build_info", {**scraped, "version": "0.1.0"}, 1)
    put("gauge", "process_start_time_seconds", scraped, END - LENGTH - 300)

# An agent of a CronJob that lived for ten minutes: all of its calls are over before it is scraped for the first time.
BORN = 5700
nightly = {"job": "toolweir-sidecar", "instance": "10.244.0.30:15020", "namespace": "agents", "pod": "nightly-29383920-8xk2v", "workload": "nightly"}


def lived(value):
    return lambda at: value if BORN <= at <= BORN + 600 else None


for tool, decision, reason, value in (("send_dm_to_user", "allowed", "none", 30), ("send_dm_to_user", "denied", "rate_limit", 5), ("delete_post", "denied", "not_listed", 1)):
    put("counter", "toolweir_tool_calls_total", {**nightly, "server": "facebook", "tool": tool, "decision": decision, "reason": reason, "policy": "agents/facebook"}, lived(value))
put("gauge", "process_start_time_seconds", nightly, lived(END - LENGTH + BORN - 7))
put("gauge", "toolweir_policy_connected", nightly, lived(1))

for number, pod in enumerate(("toolweir-operator-6c9f8d7b5-4xq2p", "toolweir-operator-6c9f8d7b5-zt8lw")):
    scraped = {"job": "toolweir-operator", "instance": f"10.244.0.{number + 10}:8080", "namespace": "toolweir-system", "pod": pod}
    put("gauge", "toolweir_build_info", {**scraped, "version": "0.1.0"}, 1)
    put("gauge", "process_start_time_seconds", scraped, END - LENGTH - 600)
    put("gauge", "toolweir_operator_synced", scraped, 1)
    put("gauge", "toolweir_operator_approvals_guarded", scraped, 1)
    put("gauge", "toolweir_operator_streams", scraped, 2 - number)
    put("gauge", "toolweir_operator_streams_acknowledged", scraped, 2 - number)
    for result, reason, rate in (("injected", "", 0.02), ("skipped", "OptedOut", 0.005), ("skipped", "AlreadyInjected", 0.01), ("refused", "Invalid", 0)):
        put("counter", "toolweir_operator_admissions_total", {**scraped, "webhook": "inject", "result": result, "reason": reason}, wave(rate, 0.9))
    for result, reason, rate in (("allowed", "", 0.004), ("refused", "Invalid", 0.001)):
        put("counter", "toolweir_operator_admissions_total", {**scraped, "webhook": "validate", "result": result, "reason": reason}, wave(rate, 0.9))
    histogram("toolweir_operator_admission_duration_seconds", scraped, ADMISSION, 0.035, 0.0004)
    put("counter", "toolweir_operator_watch_failures_total", {**scraped, "resource": "pods"}, burst(4000, 0.01, 300))
    put("counter", "toolweir_operator_certificate_failures_total", scraped, 0)
    put("counter", "toolweir_operator_status_writes_total", {**scraped, "result": "failed"}, 0)
    for certificate, life in (("ca", 365 * 86400), ("leaf", 86400)):
        put("gauge", "toolweir_operator_certificate_expiry_timestamp_seconds", {**scraped, "certificate": certificate}, END + life * 0.7)
        put("gauge", "toolweir_operator_certificate_lifetime_seconds", {**scraped, "certificate": certificate}, life)
    for namespace, pods in (("agents", 0), ("research", 1)):
        put("gauge", "toolweir_operator_pods_without_sidecar", {**scraped, "pod_namespace": namespace, "reason": "NotInjected"}, pods)
    if number == 0:  # the leader
        for policy, mode, programmed, pods in (
            ("agents/facebook", "Enforce", "Programmed", (2, 2, 2)),
            ("research/web", "Audit", "NoSidecar", (2, 1, 1)),
            ("guardrail", "Enforce", "NoSidecar", (4, 3, 3)),
            ("agents/drafts", "Enforce", "NoPods", (0, 0, 0)),
        ):
            put("gauge", "toolweir_operator_policy_status", {**scraped, "policy": policy, "mode": mode, "accepted": "Accepted", "programmed": programmed}, 1)
            if policy != "agents/drafts":
                put("gauge", "toolweir_operator_policy_interception", {**scraped, "policy": policy, "interception": "Ready"}, 1)
            for state, count in zip(("selected", "injected", "acknowledged"), pods):
                put("gauge", "toolweir_operator_policy_pods", {**scraped, "policy": policy, "state": state}, count)

for name, series in families.items():
    print(f"# TYPE {name} {types[name]}")
    for labelled, samples in series.items():
        for at, value in samples.items():
            print(labelled, value, at)
print("# EOF")
