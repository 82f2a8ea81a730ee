"""Toolweir / Denials: which agents call which tools, which calls, prompts, resources and connections are denied, by which policy and why, which calls wait for a
person, which tools are not as they were pinned, and which limits are nearly used up."""

from common import (
    BLUE, CALL_DECISIONS, DECISIONS, GREEN, GREY, ORANGE, RED, YELLOW,
    board, coloured, counted, lines, number, prop, quantile, query, now, row, rows, source, stacked, steps, variable,
)

POD = 'job=~"$job", namespace=~"$namespace", workload=~"$workload"'
SERVER = f'{POD}, server=~"$server"'
CALL = f'{SERVER}, policy=~"$policy"'


def calls(more=""):
    return f"toolweir_tool_calls_total{{{CALL}{more}}}"


DENIED, WOULD = calls(', decision="denied"'), calls(', decision="would_deny"')
CONNECTION = "toolweir_egress_connections_total"
OPERATION = f"toolweir_operations_total{{{CALL}"
LIMIT = f"toolweir_limit_used_ratio{{{CALL}}}"
NOT_PASSED = ', decision="denied"'
NO_CONNECTIONS, NO_CONNECTION_DENIED = "No connection was captured in this range", "No connection was denied in this range"
DRIFTED = f"toolweir_tools_drifted{{{SERVER}}}"
DRIFT = f"toolweir_tool_drift_total{{{SERVER}}}"
OF_PINS = ', reason=~"pin_drift|not_pinned|pin_unverified"'
NO_PINS, NOTHING_CHANGED = "No server is held to pins", "No tool changed in this range"
REQUESTS, WAITING = f"toolweir_approvals_total{{{SERVER}}}", f"toolweir_approvals_waiting{{{SERVER}}}"
NOBODY_ASKS, NONE_ASKED = "No policy asks a person", "Nobody was asked in this range"
OF_SERVERS = ', operation=~"sampling/createMessage|elicitation/create|roots/list"'
NO_OPERATIONS, NO_OPERATION_DENIED = "Nothing else was asked for in this range", "Nothing else was denied in this range"
NO_CALLS, NONE_DENIED = "No calls in this range", "No calls were denied in this range"


def connections(more=""):
    return f"{CONNECTION}{{{POD}{more}}}"


def operations(more=""):
    return f"{OPERATION}{more}}}"


def variables():
    any_sidecar = 'toolweir_policy_connected{job=~"$job"'
    return [
        source(),
        variable("job", "Job", "The scrape job of the sidecars.", "toolweir_policy_connected", everything=".+"),
        variable("namespace", "Namespace", "The namespace of the agents.", f"{any_sidecar}}}"),
        variable("workload", "Workload", "The Deployment, StatefulSet, Job ... of the agents.", f'{any_sidecar}, namespace=~"$namespace"}}'),
        variable("server", "Server", "The MCP server, as policies name it.", f"toolweir_overhead_seconds_count{{{POD}}}"),
        variable("policy", "Policy", "The policy that decided: namespace/name, or the name of a cluster policy.", f"toolweir_policy_info{{{POD}}}"),
    ]


def by(label, title, description, nothing=NONE_DENIED, limit=None):
    expr = counted(DENIED, [label], per_second=True)
    if limit:
        expr = f"topk({limit}, {expr})"
    return stacked(title, description, "reqps", nothing, query(expr, f"{{{{{label}}}}}"))


def percentiles(title, description, nothing, histogram):
    return lines(
        title, description, "s", nothing,
        *(query(quantile(q, histogram, SERVER), name, ref) for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"), (0.99, "p99", "C"))),
    )


def build():
    all_calls, denied, would = counted(calls(), []), counted(DENIED, []), counted(WOULD, [])
    made = board(
        "toolweir-denials", "Toolweir / Denials",
        "Which agents call which tools, which calls are denied, by which policy and why, and which limits are nearly used up.",
        variables(), "Toolweir",
    )
    made = (
        made.with_row(row("Tool calls"))
        .with_panel(number("Calls", "All tool calls in this range.", "short", NO_CALLS, all_calls, steps(BLUE)))
        .with_panel(number("Denied", "Tool calls that a policy denied in this range.", "short", "None", denied, steps(GREEN, (1, RED))))
        .with_panel(
            number(
                "Denial ratio", "The share of tool calls in this range that were denied.", "percentunit", NO_CALLS,
                f"({denied} or vector(0))\n/\n({all_calls} > 0)", steps(GREEN, (0.05, YELLOW), (0.25, RED)), decimals=1,
            )
        )
        .with_panel(
            number(
                "Would be denied", "Tool calls in this range that were allowed because the policy that would have denied them is in audit mode.",
                "short", "None", would, steps(GREEN, (1, ORANGE)),
            )
        )
        .with_panel(
            number(
                "Fullest limit", "How full the fullest limit is now. At 100 %, the next call that it counts is denied.", "percentunit", "No limits",
                f"max({LIMIT})", steps(GREEN, (0.8, YELLOW), (1, RED)),
            )
        )
        .with_panel(
            number(
                "Sidecars", "Sidecars that are scraped now. If there are fewer than agents, see Toolweir / Fleet.", "short", "No sidecar is scraped",
                f"count(toolweir_policy_connected{{{POD}}})", steps(BLUE),
            )
        )
        .with_panel(
            coloured(
                stacked(
                    "Calls by decision", "Tool calls per second: allowed, denied, and allowed although a policy in audit mode would deny them, or ask a person.",
                    "reqps", NO_CALLS,
                    *(
                        query(counted(calls(f', decision="{decision}"'), [], per_second=True), decision, ref)
                        for decision, ref in zip(CALL_DECISIONS, "ABCD")
                    ),
                ),
                CALL_DECISIONS,
            )
        )
        .with_panel(
            lines(
                "Denial ratio by server", "The share of tool calls to each server that are denied.", "percentunit", NONE_DENIED,
                query(
                    f"{counted(DENIED, ['server'], per_second=True)}\n/\n({counted(calls(), ['server'], per_second=True)} > 0)",
                    "{{server}}",
                ),
            ).max(1.0)
        )
        .with_row(row("Denied calls"))
        .with_panel(by("reason", "Denials by reason", "Denied calls per second, by reason. docs/metrics.md explains the reasons."))
        .with_panel(by("policy", "Denials by policy", "Denied calls per second, by the policy that decided. Empty: no policy names the server."))
        .with_panel(by("server", "Denials by server", "Denied calls per second, by MCP server."))
        .with_panel(by("tool", "Denials by tool", "Denied calls per second, for the ten tools with the most. _other: a name that is in no policy and in no list of tools.", limit=10))
        .with_panel(
            rows(
                "Top denied tools", "The 20 tools that were denied most often in this range, by agent, policy and reason.",
                "short", NONE_DENIED,
                {"namespace": "Namespace", "workload": "Workload", "server": "Server", "tool": "Tool", "reason": "Reason", "policy": "Policy", "Value": "Denied"},
                now(f"topk(20, {counted(DENIED, ['namespace', 'workload', 'server', 'tool', 'reason', 'policy'])} > 0)"),
                sort="Denied", width=24,
            ).decimals(0)
        )
        .with_panel(
            rows(
                "Would be denied, by policies in audit mode",
                "Calls that would be denied if the policy had the mode Enforce: the 20 most frequent in this range.",
                "short", "No policy in audit mode would have denied a call in this range",
                {"namespace": "Namespace", "workload": "Workload", "server": "Server", "tool": "Tool", "reason": "Reason", "policy": "Policy", "Value": "Would be denied"},
                now(f"topk(20, {counted(WOULD, ['namespace', 'workload', 'server', 'tool', 'reason', 'policy'])} > 0)"),
                sort="Would be denied", width=24, height=7,
            ).decimals(0)
        )
        .with_row(row("Prompts, resources and requests of servers"))
        .with_panel(
            coloured(
                stacked(
                    "Operations by decision",
                    "What else was asked for than tool calls, per second: allowed, denied, and allowed although a policy in audit mode would deny it, or ask a person.",
                    "reqps", NO_OPERATIONS,
                    *(
                        query(counted(operations(f', decision="{decision}"'), [], per_second=True), decision, ref)
                        for decision, ref in zip(CALL_DECISIONS, "ABCD")
                    ),
                    width=8,
                ),
                CALL_DECISIONS,
            )
        )
        .with_panel(
            stacked(
                "Denied operations", "What was denied per second, by MCP method. _other: a method that MCP does not have.", "reqps", NO_OPERATION_DENIED,
                query(f"{counted(operations(NOT_PASSED), ['operation'], per_second=True)} > 0", "{{operation}}"), width=8,
            )
        )
        .with_panel(
            stacked(
                "Requests of servers",
                "What servers ask of agents per second: their models (sampling/createMessage), their users (elicitation/create), their folders (roots/list).",
                "reqps", "No server asked for anything in this range",
                query(f"{counted(operations(OF_SERVERS), ['operation', 'decision'], per_second=True)} > 0", "{{operation}} {{decision}}"), width=8,
            )
        )
        .with_panel(
            rows(
                "Top denied operations",
                "The 20 prompts, resources, requests of servers and other methods that were denied most often in this range, by agent, policy and reason. "
                "_other: a name that is in no policy and in no list.",
                "short", NO_OPERATION_DENIED,
                {"namespace": "Namespace", "workload": "Workload", "server": "Server", "operation": "Operation", "name": "Name", "reason": "Reason", "policy": "Policy", "Value": "Denied"},
                now(f"topk(20, {counted(operations(NOT_PASSED), ['namespace', 'workload', 'server', 'operation', 'name', 'reason', 'policy'])} > 0)"),
                sort="Denied", width=24,
            ).decimals(0)
        )
        .with_row(row("Approvals"))
        .with_panel(
            lines(
                "Requests that wait now", "Calls about which a person has not decided yet, by agent and server. `kubectl toolweir approvals` shows them.",
                "short", NOBODY_ASKS,
                query(f"sum by (namespace, workload, server) ({WAITING})", "{{namespace}}/{{workload}} {{server}}"), width=8,
            )
        )
        .with_panel(
            stacked(
                "Requests by outcome",
                "What became of requests for approval, per second; and calls for which none could be made (full, unavailable). docs/metrics.md explains the outcomes.",
                "reqps", NONE_ASKED,
                query(f"{counted(REQUESTS, ['outcome'], per_second=True)} > 0", "{{outcome}}"), width=8,
            )
        )
        .with_panel(
            lines(
                "Time to a decision", "From the request to the decision of a person. What nobody decided does not count.", "s", "Nobody decided in this range",
                *(query(quantile(q, "toolweir_approval_decision_seconds", SERVER), name, ref) for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"))),
                width=8,
            )
        )
        .with_row(row("Pins"))
        .with_panel(
            lines(
                "Tools that are not as pinned",
                "Tools that changed since a person looked at them, or are new, by agent and server: the most of its sidecars. `kubectl toolweir drift` shows what changed.",
                "short", NO_PINS,
                query(f"max by (namespace, workload, server) ({DRIFTED})", "{{namespace}}/{{workload}} {{server}}"), width=8, height=9,
            )
        )
        .with_panel(
            rows(
                "What changed",
                "The parts of tools that a list showed otherwise than pinned in this range, by agent and server: the 20 most frequent. tool: a tool that is not pinned.",
                "short", NOTHING_CHANGED,
                {"namespace": "Namespace", "workload": "Workload", "server": "Server", "part": "Part", "Value": "Changes"},
                now(f"topk(20, {counted(DRIFT, ['namespace', 'workload', 'server', 'part'])} > 0)"),
                sort="Changes", width=8,
            ).decimals(0)
        )
        .with_panel(
            stacked(
                "Calls that pins object to",
                "Calls per second of tools that changed (pin_drift), are new (not_pinned), or could not be compared (pin_unverified): denied, or only reported (would_deny).",
                "reqps", "No such call in this range",
                query(f"{counted(calls(OF_PINS), ['decision', 'reason'], per_second=True)} > 0", "{{decision}} {{reason}}"), width=8, height=9,
            )
        )
        .with_row(row("Connections"))
        .with_panel(
            coloured(
                stacked(
                    "Connections by decision",
                    "Captured connections per second to hosts that are no declared servers: allowed, denied, and allowed although a policy in audit mode would deny them.",
                    "reqps", NO_CONNECTIONS,
                    *(
                        query(counted(connections(f', decision="{decision}"'), [], per_second=True), decision, ref)
                        for decision, ref in zip(DECISIONS, "ABC")
                    ),
                ),
                DECISIONS,
            )
        )
        .with_panel(
            stacked(
                "Denied connections by reason", "Captured connections that were denied, per second, by reason. docs/metrics.md explains the reasons.",
                "reqps", NO_CONNECTION_DENIED,
                query(f"{counted(connections(NOT_PASSED), ['reason'], per_second=True)} > 0", "{{reason}}"),
            )
        )
        .with_panel(
            rows(
                "Top denied connections",
                "The 20 reasons for which most captured connections were denied in this range, by agent. Name: the domain name of a policy; _other: a name that "
                "no policy has; _address: no name; _server: the host of a declared server. `kubectl toolweir denials` shows the hosts.",
                "short", NO_CONNECTION_DENIED,
                {"namespace": "Namespace", "workload": "Workload", "reason": "Reason", "name": "Name", "Value": "Denied"},
                now(f"topk(20, {counted(connections(NOT_PASSED), ['namespace', 'workload', 'reason', 'name'])} > 0)"),
                sort="Denied",
            ).decimals(0)
        )
        .with_panel(
            lines(
                "Open connections", "Captured connections that pass now, by workload.", "short", "No connection is captured",
                query(f"sum by (namespace, workload) (toolweir_egress_open_connections{{{POD}}})", "{{namespace}}/{{workload}}"), height=9,
            )
        )
        .with_row(row("Limits"))
        .with_panel(
            rows(
                "Limits by how full they are",
                "The 20 fullest limits now, each in the pod where it is fullest. At 100 % the next call is denied. Limits with a key are not shown.",
                "percentunit", "No limits",
                {"namespace": "Namespace", "workload": "Workload", "server": "Server", "tool": "Tool", "limit": "Limit", "policy": "Policy", "Value": "Used"},
                now(f"topk(20, max by (namespace, workload, server, tool, limit, policy) ({LIMIT}))"),
                sort="Used",
            )
            .decimals(0)
            .thresholds(steps(GREY, (0.8, ORANGE), (1, RED)))
            .override_by_name("Used", [prop("custom.cellOptions", {"type": "color-text"}), prop("custom.width", 90)])
        )
        .with_panel(
            lines(
                "Fullest limits over time", "The ten fullest limits, each in the pod where it is fullest.", "percentunit", "No limits",
                query(f"topk(10, max by (server, tool, limit, policy) ({LIMIT}))", "{{server}} {{tool}} {{limit}}"), height=9,
            )
        )
        .with_row(row("Latency"))
        .with_panel(
            percentiles(
                "Upstream latency", "From sending a request to the head of the server's response, including the time to connect.",
                "No request was sent to a server in this range", "toolweir_upstream_duration_seconds",
            )
        )
        .with_panel(
            percentiles(
                "The sidecar's own overhead", "Time that a request spends in the sidecar itself, without waiting for client or server.",
                "No request in this range", "toolweir_overhead_seconds",
            )
        )
    )
    return made
