"""Toolweir / Fleet: whether policies are enforced everywhere, and whether operator and sidecars are well."""

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


def build():
    made = board(
        "toolweir-fleet", "Toolweir / Fleet",
        "Policies and whether they are enforced everywhere, sidecars and how old their policies are, injection, admission, certificates.",
        variables(), "Toolweir",
    )
    return (
        made.with_row(row("At a glance"))
        .with_panel(number("Policies", "MCPPolicies and MCPClusterPolicies.", "short", "None", f"count({STATUS})", steps(BLUE)))
        .with_panel(
            number(
                "Not programmed", "Policies that some pod, which they govern, does not enforce.", "short", NO_OPERATOR,
                f'sum(max by (policy, mode, accepted, programmed) (toolweir_operator_policy_status{{{POLICY}, programmed!~"Programmed|NoPods"}})) or (0 * count({STATUS}))',
                steps(GREEN, (1, RED)),
            )
        )
        .with_panel(
            number(
                "Connected sidecars", "Policy streams that are open, at all operators.", "short", NO_OPERATOR,
                f"sum(toolweir_operator_streams{{{JOB}}})", steps(BLUE),
            )
        )
        .with_panel(
            number(
                "Acknowledged", "The part of the connected sidecars that enforce what was sent to them last.", "percentunit", "No sidecar is connected",
                f"sum(toolweir_operator_streams_acknowledged{{{JOB}}}) / (sum(toolweir_operator_streams{{{JOB}}}) > 0)",
                steps(RED, (0.9, YELLOW), (1, GREEN)),
            )
        )
        .with_panel(
            number(
                "Pods without a sidecar", "Pods that opted in, run, and have no sidecar. No policy holds for their calls.", "short", NO_OPERATOR,
                f"sum({WITHOUT})", steps(GREEN, (1, RED)),
            )
        )
        .with_panel(
            number(
                "Certificate days left", "Days until the first of the operator's certificates runs out. Serving certificates live for a day and are made anew at half of it.",
                "d", NO_OPERATOR, f"min(toolweir_operator_certificate_expiry_timestamp_seconds{{{JOB}}} - time()) / 86400", steps(RED, (0.25, GREEN)), decimals=1,
            )
        )
        .with_row(row("Policies and sidecars"))
        .with_panel(
            rows(
                "Policies and their conditions", "Each policy with its mode and the reasons of its conditions, and how many of its pods have a sidecar and enforce it.",
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
                "Pods selected but not injected", "Pods that a policy governs and that have no sidecar, so that nothing enforces it there.", "short", NO_OPERATOR,
                query(f"{policy_pods('selected')} - {policy_pods('injected')}", "{{policy}}"), width=10, height=9,
            )
        )
        .with_panel(
            lines(
                "Sidecars by policy version", "How many sidecars enforce which version of their policies, the ten most frequent. Pods that the same policies govern have the same version.",
                "short", NO_SIDECAR, query(f"topk(10, count by (version) (max by (job, instance, version) (toolweir_policy_info{{{POD}}})))", "{{version}}"),
            )
        )
        .with_panel(
            lines(
                "Age of policies", "How long the sidecars of a namespace have not known whether what they enforce is what the operator says, the longest of each. 0 while they know.",
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
                "Pods without a sidecar, by reason", "Pods that opted in, run, and have no sidecar, by why. docs/injection.md says what each reason means.", "short", NO_OPERATOR,
                {"pod_namespace": "Namespace", "reason": "Reason", "Value": "Pods"}, now(WITHOUT), sort="Pods", width=10,
            ).decimals(0)
        )
        .with_row(row("Injection and admission"))
        .with_panel(
            stacked(
                "Injections and skips", "Reviews of pods a second, by what became of them and why.", "ops", "No pod was reviewed in this range",
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
                "Reviews of policies", "Reviews of policies a second. refused: it does not compile, and whoever applied it was told why.", "ops", "No policy was reviewed in this range",
                query(rate("toolweir_operator_admissions_total", ["result", "reason"], f'{JOB}, webhook="validate"'), "{{result}} {{reason}}"),
            )
        )
        .with_panel(
            lines(
                "Reconcile errors", "Failures a second: statuses that could not be written, watches that were begun anew, certificates.", "ops", NO_OPERATOR,
                query(rate("toolweir_operator_status_writes_total", ["job"], f'{JOB}, result="failed"'), "status"),
                query(rate("toolweir_operator_watch_failures_total", ["job"]), "watch", "B"),
                query(rate("toolweir_operator_certificate_failures_total", ["job"]), "certificate", "C"),
            )
        )
        .with_row(row("Streams and certificates"))
        .with_panel(
            lines(
                "Stream connections", "Policy streams that are open at each operator.", "short", NO_OPERATOR,
                query(f"sum by (pod) (toolweir_operator_streams{{{JOB}}})", "{{pod}}"), width=8,
            )
        )
        .with_panel(
            stacked(
                "Attempts to connect", "Attempts of sidecars to open their policy stream, a second, by their end. A stream ends with its token, about once an hour.",
                "ops", NO_SIDECAR, query(rate("toolweir_control_plane_connects_total", ["result"], POD), "{{result}}"), width=8,
            )
        )
        .with_panel(
            lines(
                "Life left of certificates",
                "The part of its life that each certificate has left, the least of all operators. A serving certificate (leaf) is made anew at half of it, an authority (ca) stops signing at a third.",
                "percentunit", NO_OPERATOR,
                query(
                    f"min by (certificate) ((toolweir_operator_certificate_expiry_timestamp_seconds{{{JOB}}} - time()) / toolweir_operator_certificate_lifetime_seconds{{{JOB}}})",
                    "{{certificate}}",
                ),
                width=8,
            ).max(1.0)
        )
    )
