"""The effect of a policy, from kubectl to the call."""

import json
import re
import time

from kube import Background, Failure, agent, expect, expect_in, kubectl, percentile, total, until
from settings import CHANGES, ROOT

from . import scenario

MESSAGE = {"user_id": "1", "message": "x"}


def send(most, window="day"):
    return {"name": "send_dm_to_user", "limits": [{"max": most, "window": window}]}


@scenario("apply-latency", "`kubectl apply` of a changed limit", f"in force in the running sidecar, pod not restarted: median under 200 ms, p99 under 1 s over {CHANGES} changes")
def apply_latency(cluster, measured):
    namespace = cluster.namespace("apply")
    # Each change lowers a limit that is used up, so that the next call is denied and names the new one. The window is long, so that
    # nothing else changes what is answered.
    most = 100 + CHANGES
    policy = cluster.policy(namespace, tools=[send(most)])
    path = cluster.path(policy)
    cluster.api.patch(path, policy)
    cluster.apply(agent("agent"), namespace=namespace)
    cluster.ready(namespace, "agent")
    uid = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")["metadata"]["uid"]
    latencies = []
    command = ["kubectl", "-n", namespace, "exec", "agent", "-c", "agent", "--", "python3", "/opt/agent/prober.py", "facebook", "send_dm_to_user"]
    with Background(*command) as prober:

        def decided_by(most):
            def matches(line):
                said = json.loads(line) if line.startswith("{") else {}
                return said if said.get("max") == most else None

            return matches

        seen, _ = prober.line(60, "the limit is used up", decided_by(most))
        for change in range(1, CHANGES + 1):
            policy["spec"]["servers"][0]["tools"] = [send(most - change)]
            cluster.api.patch(path, policy)
            answered = time.time()
            seen, said = prober.line(30, f"a call decided by limit {most - change}", decided_by(most - change), seen)
            # It may be in force before the API server's answer is here.
            latencies.append(max(0, said["time"] - answered) * 1000)
            time.sleep(0.15)
    pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")
    expect("the pod", uid, pod["metadata"]["uid"])
    expect("restarts", [0, 0], [c["restartCount"] for kind in ("initContainerStatuses", "containerStatuses") for c in pod["status"][kind]])
    measured.at_most("median", percentile(latencies, 50), 200, "ms")
    measured.at_most("p99", percentile(latencies, 99), 1000, "ms")
    measured.note(f"slowest {max(latencies):.0f} ms of {len(latencies)} changes")


@scenario("guardrail", "cluster guardrail against a looser namespace policy", "the guardrail wins, in either order of creation")
def guardrail(cluster, measured):
    for order in ("guardrail-first", "guardrail-last"):
        namespace = cluster.namespace(order)
        rail = {
            "apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPClusterPolicy", "metadata": {"name": f"e2e-{order}"},
            "spec": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "servers": [{"name": "*", "defaultAction": "Allow", "tools": [send(2), {"name": "delete_post", "action": "Deny", "reason": "Posts are evidence."}]}],
            },
        }
        loose = cluster.policy(namespace, tools=[send(1000)], defaultAction="Allow")
        try:
            # Creation times have whole seconds: the second policy is younger by the clock too.
            first, second = (rail, loose) if order == "guardrail-first" else (loose, rail)
            cluster.apply(first)
            time.sleep(1.1)
            cluster.apply(second)
            cluster.apply(agent("agent"), namespace=namespace)
            cluster.ready(namespace, "agent")
            for policy in (rail, loose):
                cluster.programmed(policy, 1)
            answers = cluster.call(namespace, "agent", "send_dm_to_user", 5, **MESSAGE)
            expect(f"{order}: five calls", ["ok"] * 2 + ["denied"] * 3, [a["outcome"] for a in answers])
            expect(f"{order}: who denied", {f"e2e-{order}"}, {a["denial"]["policy"] for a in answers[2:]})
            deleted = cluster.call(namespace, "agent", "delete_post", post_id="1")[0]
            expect(f"{order}: delete_post", ("denied", f"e2e-{order}"), (deleted["outcome"], (deleted["denial"] or {}).get("policy")))
            expect_in(f"{order}: the reason", "Posts are evidence.", deleted["text"])
            expect(f"{order}: what neither forbids", "ok", cluster.call(namespace, "agent", "get_page_info")[0]["outcome"])
        finally:
            kubectl("delete", "mcpclusterpolicy", f"e2e-{order}", "--ignore-not-found")
    measured.note("2 of 5 calls pass and delete_post is denied by the guardrail, whichever was first")


@scenario("audit", "`mode: Audit`", "nothing denied, would_deny counted")
def audit(cluster, measured):
    namespace = cluster.namespace("audit")
    policy = cluster.policy(namespace, tools=[send(2)], mode="Audit")
    cluster.governed(namespace, policy)
    before = len(cluster.delivered())
    answers = cluster.call(namespace, "agent", "send_dm_to_user", 5, **MESSAGE) + cluster.call(namespace, "agent", "get_page_info", 1)
    expect("six calls", ["ok"] * 6, [a["outcome"] for a in answers])
    expect("calls that the server got", 6, len(cluster.delivered()) - before)
    samples = cluster.sidecar_metrics(namespace, "agent")
    counted = {d: total(samples, "toolweir_tool_calls_total", decision=d) for d in ("allowed", "denied", "would_deny")}
    expect("in the metrics", {"allowed": 2, "denied": 0, "would_deny": 4}, counted)
    measured.note("6 of 6 calls delivered; 4 would_deny (3 rate_limit, 1 not_listed), 0 denied")
    reasons = {r: total(samples, "toolweir_tool_calls_total", decision="would_deny", reason=r) for r in ("rate_limit", "not_listed")}
    expect("reasons", {"rate_limit": 3, "not_listed": 1}, reasons)


@scenario("deleted", "policy deleted", "the pod's servers are closed, not opened")
def deleted(cluster, measured):
    namespace = cluster.namespace("deleted")
    policy = cluster.policy(namespace, defaultAction="Allow")
    cluster.governed(namespace, policy)
    expect("with the policy", "ok", cluster.call(namespace, "agent", "send_dm_to_user", **MESSAGE)[0]["outcome"])
    command = ["kubectl", "-n", namespace, "exec", "agent", "-c", "agent", "--", "python3", "/opt/agent/prober.py", "facebook", "send_dm_to_user"]
    with Background(*command) as prober:
        seen, _ = prober.line(30, "calls pass", lambda line: line.startswith("{") or None)
        cluster.api("DELETE", cluster.path(policy))
        answered = time.time()
        _, line = prober.line(30, "calls are denied", lambda line: line if line.startswith("{") and json.loads(line)["max"] != "ok" else None, seen, late=Failure)
        said = json.loads(line)
        before = len(cluster.delivered())
        time.sleep(2)
        expect("calls that the server got afterwards", 0, len(cluster.delivered()) - before)
    after = cluster.call(namespace, "agent", "get_page_info", 3)
    if any(a["outcome"] == "ok" for a in after):
        raise Failure(f"a call passed without a policy: {after}")
    measured.note(f"closed {(said['time'] - answered) * 1000:.1f} ms after the API server's answer; nothing was delivered from then on; the agent reads: {after[0]['text']:.120}")


# What is wrong, and what kubectl must say of it: the path, and the advice.
BAD = [
    ("a limit of 0", lambda s: s["tools"][0]["limits"][0].update(max=0), ["spec.servers[0].tools[0].limits[0].max", "1"]),
    ("a window that is none", lambda s: s["tools"][0]["limits"][0].update(window="fortnight"), ["spec.servers[0].tools[0].limits[0].window", "second", "minute", "hour", "day"]),
    ("a field that is not known", lambda s: s["tools"][0].update(limit=3), ['spec.servers[0].tools[0].limit']),
    ("an action that is none", lambda s: s["tools"][0].update(action="Block"), ["spec.servers[0].tools[0].action", '"Allow", "Deny"']),
    ("an expression that is no CEL", lambda s: s["tools"][0].update(validations=[{"expression": "args.amount <=", "message": "No."}]), ["spec.servers[0].tools[0].validations[0].expression", "CEL"]),
    ("a variable that is not known", lambda s: s["tools"][0].update(validations=[{"expression": "user == 'a'", "message": "No."}]), ["spec.servers[0].tools[0].validations[0].expression", "args"]),
    ("globs that contradict each other", lambda s: s["tools"].extend([{"name": "get_*"}, {"name": "*page", "action": "Deny"}]), ["spec.servers[0].tools[", "equally specific"]),
    ("a scope without a store", lambda s: s["tools"][0]["limits"][0].update(scope="Namespace"), ["spec.servers[0].tools[0].limits[0].scope", "store"]),
    ("a url that is none", lambda s: s.update(url="ftp://x/mcp"), ["spec.servers[0].url", "http"]),
]


@scenario("bad-policies", "bad policies with kubectl", "refused with path and advice; the old one stays in force")
def bad_policies(cluster, measured):
    namespace = cluster.namespace("bad")
    good = cluster.policy(namespace, tools=[send(2)])
    cluster.governed(namespace, good)
    expect("three calls", ["ok", "ok", "denied"], [a["outcome"] for a in cluster.call(namespace, "agent", "send_dm_to_user", 3, **MESSAGE)])
    version = cluster.api.get(cluster.path(good))["metadata"]["generation"]
    wrong = []
    for what, spoil, words in BAD:
        bad = json.loads(json.dumps(good))
        spoil(bad["spec"]["servers"][0])
        try:
            said = cluster.refused(bad)
        except Failure as failure:
            wrong.append(f"{what}: {failure}")
            continue
        wrong += [f"{what}: no {word!r} in: {said}" for word in words if word not in said]
    if wrong:
        raise Failure("\n".join(wrong))
    expect("the policy's generation", version, cluster.api.get(cluster.path(good))["metadata"]["generation"])
    answer = cluster.call(namespace, "agent", "send_dm_to_user", **MESSAGE)[0]
    expect("the limit that denies", ("denied", 2), (answer["outcome"], answer["denial"]["limit"]["max"]))
    measured.note(f"{len(BAD)} of {len(BAD)} refused with path and advice; the old limit denies as before")


@scenario("samples", "crds/samples with the real API server", "every valid one is accepted, every invalid one refused with the words of its comment")
def samples(cluster, measured):
    folder = ROOT / "crds/samples"
    texts = {kind: {path.name: path.read_text() for path in sorted((folder / kind).iterdir())} for kind in ("valid", "invalid")}
    # The namespaces that the samples name, as far as they are missing.
    named = {name for text in [*texts["valid"].values(), *texts["invalid"].values()] for name in re.findall(r"""\bnamespace"?: "?([a-z0-9-]+)\b""", text)}
    made = []
    for name in sorted(named):
        if cluster.api.raw("GET", f"/api/v1/namespaces/{name}")[0] == 404:
            kubectl("create", "namespace", name)
            made.append(name)
    wrong, lost = [], 0
    try:
        for name, text in texts["valid"].items():
            # One that needs a store of counts is refused here, and accepted once there is one: see scenario `helm`.
            if name == "shared-scopes.yaml":
                code, out, err = kubectl("apply", "-f", "-", input=text, check=False)
                if not code or "store" not in err:
                    wrong.append(f"valid/{name}: without a store: {out}{err}")
                continue
            # What kubectl printed of a policy that is no more: a new one cannot have its uid, and nobody would lift its finalizer.
            text = re.sub(r"(?m)^  (uid|resourceVersion): .*\n|^  finalizers:\n(  - .*\n)+", "", text)
            code, out, err = kubectl("create", "-f", "-", input=text, check=False)
            if code:
                wrong.append(f"valid/{name}: {err.strip()}")
        accepted = accepted_by_status(cluster, wrong)
        for name, text in texts["invalid"].items():
            lines = text.splitlines()
            promised = next((line.removeprefix(mark) for mark in ("# kubectl: ", "# error: ") for line in lines[:2] if line.startswith(mark)), None)
            code, out, err = kubectl("apply", "--dry-run=server", "-f", "-", input=text, check=False)
            if promised and promised.startswith("accepts it; "):
                # kubectl or the API server drops what is wrong before anybody else sees it. The comment says how.
                lost += 1
                if code:
                    wrong.append(f"invalid/{name}: promises that kubectl accepts it, and it says: {err.strip():.700}")
            elif not code:
                wrong.append(f"invalid/{name}: accepted: {out.strip()}")
            elif promised is None or promised not in err:
                wrong.append(f"invalid/{name}: promises {promised!r} and kubectl says: {err.strip():.700}")
        twice = "/apis/toolweir.dev/v1alpha1/namespaces/agents/mcppolicies?dryRun=All&fieldValidation=Strict"
        status, said = cluster.api.raw("POST", twice, texts["invalid"]["mode-twice.yaml"], content="application/yaml")
        if status != 400 or 'key \\"mode\\" already set' not in said:
            wrong.append(f"invalid/mode-twice.yaml as YAML: {status}: {said:.300}")
    finally:
        for name, text in texts["valid"].items():
            kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=text, check=False)
        if made:
            kubectl("delete", "namespace", *made, "--wait=false")
    if wrong:
        raise Failure(f"{len(wrong)} samples:\n" + "\n".join(wrong))
    measured.note(f"{len(texts['valid']) - 1} valid samples accepted ({accepted} policies `Accepted: True`), one that needs a store refused without it, {len(texts['invalid']) - lost} invalid ones refused with their words, {lost} whose mistake kubectl drops")


def accepted_by_status(cluster, wrong):
    """Waits until every policy has a status; those that are not accepted go to `wrong`. How many are."""

    def probe():
        policies = [p for kind in ("mcppolicies", "mcpclusterpolicies") for p in cluster.api.get(f"/apis/toolweir.dev/v1alpha1/{kind}")["items"]]
        verdicts = {}
        for policy in policies:
            conditions = {c["type"]: c for c in policy.get("status", {}).get("conditions", [])}
            if "Accepted" not in conditions or policy["status"].get("observedGeneration") != policy["metadata"]["generation"]:
                return None
            verdicts[policy["metadata"]["name"]] = conditions["Accepted"]
        return verdicts

    verdicts = until(20, "every policy has a status", probe)
    wrong += [f"status of {name}: {c['reason']}: {c['message']}" for name, c in verdicts.items() if c["status"] != "True"]
    return sum(c["status"] == "True" for c in verdicts.values())
