"""Toolweir / Fleet: whether policies are enforced everywhere, and whether operators and sidecars are healthy."""

from common import (
    BLUE, GREEN, ORANGE, RED, YELLOW, GREY,
    board, lines, number, prop, quantile, query, now, row, rows, source, stacked, steps, variable,
)

JOB = 'job=~"$job"'
POD = f'{JOB}, namespace=~"$namespace"'
# Policies of the chosen namespaces, and cluster policies, which have none.
POLICY = f'{JOB}, policy=~"(?:$namespace)/.+|[^/]+"'
PODS = f'{JOB}, pod_namespace=~"$namespace"'


def variables():
    return [
        source(),
        variable("job", "Job", "The scrape jobs of operator and sidecars.", "toolweir_build_info", everything=".+"),
        variable("namespace", "Namespace", "The namespace of agents and policies.", 'toolweir_policy_connected{job=~"$job"}'),
    ]


def policy_pods(state):
    return f'max by (policy) (toolweir_operator_policy_pods{{{POLICY}, state="{state}"}})'


def rate(metric, by, matchers=JOB):
    return f"sum by ({', '.join(by)}) (rate({metric}{{{matchers}}}[$__rate_interval]))"


STATUS = f"max by (policy, mode, accepted, programmed) (toolweir_operator_policy_status{{{POLICY}}})"
WITHOUT = f"max by (pod_namespace, reason) (toolweir_operator_pods_without_sidecar{{{PODS}}})"
NO_OPERATOR, NO_SIDECAR = "No operator is scraped", "No sidecar is scraped"
NO_CREDENTIAL = "No server has a credential"


def build():
    made = board(
        "toolweir-fleet", "Toolweir / Fleet",
        "Whether policies are enforced everywhere, how old the policies of sidecars are, injection, admission, certificates.",
        variables(), "Toolweir",
    )
    return (
        made.with_row(row("At a glance"))
        .with_panel(number("Policies", "MCPPolicies and MCPClusterPolicies.", "short", "None", f"count({STATUS})", steps(BLUE)))
        .with_panel(
            number(
                "Not programmed", "Policies that are not enforced in all pods that they govern.", "short", NO_OPERATOR,
                f'sum(max by (policy, mode, accepted, programmed) (toolweir_operator_policy_status{{{POLICY}, programmed!~"Programmed|NoPods"}})) or (0 * count({STATUS}))',
                steps(GREEN, (1, RED)),
            )
        )
        .with_panel(
            number(
                "Connected sidecars", "Open policy streams, of all operators.", "short", NO_OPERATOR,
                f"sum(toolweir_operator_streams{{{JOB}}})", steps(BLUE),
            )
        )
        .with_panel(
            number(
                "Acknowledged", "The share of connected sidecars that enforce the policies that were sent to them last.", "percentunit", "No sidecar is connected",
                f"sum(toolweir_operator_streams_acknowledged{{{JOB}}}) / (sum(toolweir_operator_streams{{{JOB}}}) > 0)",
                steps(RED, (0.9, YELLOW), (1, GREEN)),
            )
        )
        .with_panel(
            number(
                "Pods without a sidecar", "Running pods that opted in but have no sidecar. No policy restricts their calls.", "short", NO_OPERATOR,
                f"sum({WITHOUT})", steps(GREEN, (1, RED)),
            )
        )
        .with_panel(
            number(
                "Certificate days left", "Days until the first of the operator's certificates expires. Serving certificates live for a day and are renewed after half of it.",
                "d", NO_OPERATOR, f"min(toolweir_operator_certificate_expiry_timestamp_seconds{{{JOB}}} - time()) / 86400", steps(RED, (0.25, GREEN)), decimals=1,
            )
        )
        .with_row(row("Policies and sidecars"))
        .with_panel(
            rows(
                "Policies and their conditions", "Each policy with its mode, the reasons of its conditions, and how many of its pods have a sidecar and enforce it.",
                "short", "No policies",
                {
                    "policy": "Policy", "mode": "Mode", "accepted": "Accepted", "programmed": "Programmed",
                    "Value #B": "Selected", "Value #C": "Injected", "Value #D": "Enforcing",
                },
                now(STATUS), now(policy_pods("selected"), "B"), now(policy_pods("injected"), "C"), now(policy_pods("acknowledged"), "D"),
                sort="Policy", descending=False, joined="policy", drop=["Value #A"], width=14,
            )
            .override_by_name(
                "Programmed",
                [
                    prop("custom.cellOptions", {"type": "color-text"}),
                    prop(
                        "mappings",
                        [
                            {
                                "type": "value",
                                "options": {
                                    "Programmed": {"color": GREEN, "index": 0}, "NoPods": {"color": GREY, "index": 1}, "Pending": {"color": ORANGE, "index": 2},
                                    "NoSidecar": {"color": RED, "index": 3}, "Refused": {"color": RED, "index": 4}, "Invalid": {"color": RED, "index": 5},
                                },
                            }
                        ],
                    ),
                ],
            )
        )
        .with_panel(
            lines(
                "Pods selected but not injected", "Pods that a policy governs but that have no sidecar to enforce it.", "short", NO_OPERATOR,
                query(f"{policy_pods('selected')} - {policy_pods('injected')}", "{{policy}}"), width=10, height=9,
            )
        )
        .with_panel(
            lines(
                "Sidecars by policy version", "Number of sidecars for each version of their policies, the ten most frequent. Pods that the same policies govern have the same version.",
                "short", NO_SIDECAR, query(f"topk(10, count by (version) (max by (job, instance, version) (toolweir_policy_info{{{POD}}})))", "{{version}}"),
            )
        )
        .with_panel(
            lines(
                "Age of policies", "How long the sidecars of a namespace have not known whether their policies are current; the maximum of each namespace. 0 while they know.",
                "s", NO_SIDECAR, query(f"max by (namespace) (toolweir_policy_age_seconds{{{POD}}})", "{{namespace}}"),
            )
        )
        .with_panel(
            rows(
                "Sidecars by policy age", "The 50 sidecars whose policies are the oldest, with the version that they enforce.", "s", NO_SIDECAR,
                {"namespace": "Namespace", "workload": "Workload", "pod": "Pod", "version": "Version", "Value": "Age"},
                now(
                    f"topk(50, max by (namespace, workload, pod, version) (toolweir_policy_info{{{POD}}})"
                    f" * on (namespace, pod) group_left () max by (namespace, pod) (toolweir_policy_age_seconds{{{POD}}}))"
                ),
                sort="Age", width=14,
            )
            .decimals(0)
            .thresholds(steps(GREEN, (60, ORANGE), (300, RED)))
            .override_by_name("Age", [prop("custom.cellOptions", {"type": "color-text"}), prop("custom.width", 90)])
        )
        .with_panel(
            rows(
                "Pods without a sidecar, by reason", "Running pods that opted in but have no sidecar, by reason. docs/injection.md explains the reasons.", "short", NO_OPERATOR,
                {"pod_namespace": "Namespace", "reason": "Reason", "Value": "Pods"}, now(WITHOUT), sort="Pods", width=10,
            ).decimals(0)
        )
        .with_row(row("Injection and admission"))
        .with_panel(
            stacked(
                "Injections and skips", "Reviews of pods per second, by result and reason.", "ops", "No pod was reviewed in this range",
                query(rate("toolweir_operator_admissions_total", ["result", "reason"], f'{JOB}, webhook="inject"'), "{{result}} {{reason}}"),
            )
        )
        .with_panel(
            lines(
                "Admission latency", "Time that the review of a pod takes in the operator, without the network.", "s", "No pod was reviewed in this range",
                *(query(quantile(q, "toolweir_operator_admission_duration_seconds", JOB), name, ref) for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"), (0.99, "p99", "C"))),
            )
        )
        .with_panel(
            stacked(
                "Reviews of policies", "Reviews of policies per second. refused: the policy does not compile, and the person who applied it got the error.", "ops", "No policy was reviewed in this range",
                query(rate("toolweir_operator_admissions_total", ["result", "reason"], f'{JOB}, webhook="validate"'), "{{result}} {{reason}}"),
            )
        )
        .with_panel(
            lines(
                "Reconcile errors", "Failures per second: statuses that could not be written, watches that were restarted, certificates.", "ops", NO_OPERATOR,
                query(rate("toolweir_operator_status_writes_total", ["job"], f'{JOB}, result="failed"'), "status"),
                query(rate("toolweir_operator_watch_failures_total", ["job"]), "watch", "B"),
                query(rate("toolweir_operator_certificate_failures_total", ["job"]), "certificate", "C"),
            )
        )
        .with_row(row("Streams and certificates"))
        .with_panel(
            lines(
                "Stream connections", "Open policy streams of each operator.", "short", NO_OPERATOR,
                query(f"sum by (pod) (toolweir_operator_streams{{{JOB}}})", "{{pod}}"), width=8,
            )
        )
        .with_panel(
            stacked(
                "Attempts to connect", "Attempts of sidecars to open their policy stream, per second, by result. A stream ends when its token expires, about once an hour.",
                "ops", NO_SIDECAR, query(rate("toolweir_control_plane_connects_total", ["result"], POD), "{{result}}"), width=8,
            )
        )
        .with_panel(
            lines(
                "Life left of certificates",
                "The share of its life that each certificate has left, the minimum of all operators. A serving certificate (leaf) is renewed at half of it, an authority (ca) stops signing at a third.",
                "percentunit", NO_OPERATOR,
                query(
                    f"min by (certificate) ((toolweir_operator_certificate_expiry_timestamp_seconds{{{JOB}}} - time()) / toolweir_operator_certificate_lifetime_seconds{{{JOB}}})",
                    "{{certificate}}",
                ),
                width=8,
            ).max(1.0)
        )
        .with_row(row("Credentials of servers"))
        .with_panel(
            lines(
                "Credentials that can be used", "The share of sidecars that can use the credential of a server. Below 100 %, all calls to it fail in some.",
                "percentunit", NO_CREDENTIAL,
                query(f"avg by (namespace, server, kind) (toolweir_credential_ready{{{POD}}})", "{{namespace}} {{server}} {{kind}}"), width=8,
            ).max(1.0)
        )
        .with_panel(
            stacked(
                "Requests to token endpoints", "Requests of sidecars for tokens per second, by outcome. docs/metrics.md explains the outcomes.", "reqps",
                "No server has a credential from a token endpoint",
                query(rate("toolweir_credential_fetches_total", ["outcome"], POD), "{{outcome}}"), width=8,
            )
        )
        .with_panel(
            lines(
                "Time left of credentials", "Time until credentials expire, the minimum of all sidecars: certificates and tokens whose expiry is known. Below 0: expired.",
                "s", NO_CREDENTIAL,
                query(f"min by (namespace, server, kind) (toolweir_credential_expiry_seconds{{{POD}}})", "{{namespace}} {{server}} {{kind}}"), width=8, floor=None,
            )
        )
    )
