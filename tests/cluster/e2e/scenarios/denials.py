"""How users see denied calls: events on the pod, and `kubectl toolweir`."""

import json
import re
import shutil
import time
import uuid
from datetime import datetime
from urllib.parse import urlencode

from kube import INJECT, SIDECAR, Background, Failure, agent, expect, expect_in, kubectl, total, until
from settings import OPERATOR, TARGET

from . import scenario
from .policies import MESSAGE, send

DENIED = "ToolCallDenied"
# The operator's, less what the API server may have taken for the first write, and what its whole seconds leave out.
PACE, SLACK = 60, 2


class EventWatch(Background):
    """Every write of an event of denied calls in a namespace, by the reason that its message names."""

    def __init__(self, namespace):
        query = urlencode({"watch": "true", "fieldSelector": f"reason={DENIED}"})
        super().__init__("kubectl", "get", "--raw", f"/api/v1/namespaces/{namespace}/events?{query}")

    def writes(self):
        found = {}
        for line in list(self.lines):
            change = json.loads(line) if line.startswith("{") else {}
            if change.get("type") not in ("ADDED", "MODIFIED"):
                raise Failure(f"the watch of events says: {line:.300}")
            reason = re.search(r"\((\w+)\)", change["object"]["message"])
            found.setdefault(reason and reason[1], []).append(change["object"])
        return found

    def counts(self):
        return {reason: writes[-1]["count"] for reason, writes in self.writes().items()}


def when(event):
    """When an event was written, as the API server says it in whole seconds."""
    return max(datetime.fromisoformat(field["time"].replace("Z", "+00:00")) for field in event["metadata"]["managedFields"])


@scenario(
    "events", "events of denied calls",
    f"one event for a pod and reason (`{DENIED}`, Warning) that names policy and reason and counts every call, written at most once a minute; no argument of a tool in any event",
)
def events(cluster, measured):
    namespace = cluster.namespace("events")
    policy = cluster.policy(namespace, tools=[send(2)])
    cluster.governed(namespace, policy)
    uid = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/agent")["metadata"]["uid"]
    # What nobody but the server may see, and a name of a tool that only the agent could have told.
    secret, invented = f"secret-{uuid.uuid4().hex}", f"tool_{uuid.uuid4().hex}"
    before = len(cluster.delivered())

    def outcomes(messages, others, tool="delete_post"):
        answers = cluster.call(namespace, "agent", "send_dm_to_user", messages, user_id="1", message=secret)
        answers += cluster.call(namespace, "agent", tool, others, post_id=secret)
        return [answer["outcome"] for answer in answers]

    with EventWatch(namespace) as watch:
        began = time.monotonic()
        expect("the first calls", ["ok"] * 2 + ["denied"] * 5, outcomes(5, 2))
        until(20, "the first denials are told", lambda: set(watch.counts()) == {"rate_limit", "not_listed"})
        told = time.monotonic() - began
        # In the same minute, with a pause that is longer than the one in which a sidecar tells.
        expect("calls afterwards", ["denied"] * 5, outcomes(4, 1))
        time.sleep(15)
        expect("calls afterwards", ["denied"] * 3, outcomes(2, 1, invented))
        want = {"rate_limit": 3 + 4 + 2, "not_listed": 2 + 1 + 1}

        def counted():
            if (counts := watch.counts()) != want:
                raise Failure(f"the events count {counts}, and there were {want}")
            return counts

        until(PACE + 15, "every denied call is counted", counted, 0.5)
        writes, lines = watch.writes(), "\n".join(watch.lines)

    least = PACE
    for reason, written in writes.items():
        expect(f"{reason}: events", 1, len({event["metadata"]["uid"] for event in written}))
        for event in written:
            what = f"{reason}: {event['message']}"
            expect(what, ("Warning", DENIED, OPERATOR), (event["type"], event["reason"], event["source"]["component"]))
            about = event["involvedObject"]
            expect(what, ("Pod", namespace, "agent", uid), tuple(about.get(field) for field in ("kind", "namespace", "name", "uid")))
            expect_in(f"{reason}: the policy", f"{namespace}/facebook", event["message"])
            expect(f"{reason}: the number in the message", str(event["count"]), event["message"].split()[0])
        counts = [event["count"] for event in written]
        if counts != sorted(set(counts)):
            raise Failure(f"{reason}: the count does not grow with every write: {counts}")
        expect(f"{reason}: when it began", 1, len({event["firstTimestamp"] for event in written}))
        if not written[-1]["lastTimestamp"] > written[0]["lastTimestamp"]:
            raise Failure(f"{reason}: the later denials are not later: {written[-1]['lastTimestamp']}")
        expect(f"{reason}: writes", 2, len(written))
        least = min(least, (when(written[1]) - when(written[0])).total_seconds())
    if least < PACE - SLACK:
        raise Failure(f"an event was written again after {least:.0f} s")
    expect_in("the tool over its limit", "send_dm_to_user", writes["rate_limit"][-1]["message"])

    # What the watch saw is all that there is, and agrees with what the sidecar counted.
    there = cluster.api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector=f"reason={DENIED}")["items"]
    versions = lambda found: sorted(event["metadata"]["resourceVersion"] for event in found)  # noqa: E731
    expect("the events", versions(written[-1] for written in writes.values()), versions(there))
    samples = cluster.sidecar_metrics(namespace, "agent")
    expect("in the metrics", want, {reason: total(samples, "toolweir_tool_calls_total", decision="denied", reason=reason) for reason in want})

    # As people read them.
    said = kubectl("-n", namespace, "get", "events", f"--field-selector=involvedObject.name=agent,reason={DENIED}")
    described = kubectl("-n", namespace, "describe", "pod", "agent")
    for reason, count in want.items():
        for what, text, pattern in (
            ("kubectl get events", said, rf"(?m)^\S+\s+Warning\s+{DENIED}\s+pod/agent\s+{count} .*\({reason}\).*{namespace}/facebook"),
            ("kubectl describe pod", described, rf"(?m)^\s*Warning\s+{DENIED}\s+\S+ \(x{count} over \S+\)\s+{OPERATOR}\s+.*\({reason}\)"),
        ):
            if not re.search(pattern, text):
                raise Failure(f"{what}: no line for {reason}, {count} times: {text[-1500:]}")

    # The server got the secret, and no event has it.
    got = [line["arguments"].get("message") for line in cluster.delivered()[before:]]
    expect("what the server got", [secret] * 2, got)
    everything = lines + described + kubectl("get", "events", "-A", "-o", "json")
    for what, word in (("an argument", secret), ("a tool's name that the agent made up", invented)):
        if word in everything:
            raise Failure(f"{what} is in an event: {everything[max(0, everything.index(word) - 300):][:600]}")
    expect_in("all events", DENIED, everything)
    measured.note(f"13 denied calls in 3 bursts: 2 events with {want['rate_limit']} (rate_limit) and {want['not_listed']} (not_listed), told {told:.1f} s after the first call and again {least:.0f} s later, 2 writes each; no argument and no invented name in any event")


def toolweir(*words, code=0):
    """`kubectl toolweir`, which must end with this exit code: what it said; where it could not find out, why."""
    got, out, err = kubectl("toolweir", *words, check=False)
    if got != code:
        raise Failure(f"kubectl toolweir {' '.join(words)}: exit code {got}, and not {code}: {out:.800}{err:.800}")
    return err if code == 2 else out


def room(answer):
    """How much is used and left of each limit, as `explain -o json` says it."""
    return {
        (said["policy"], entry["name"], limit["limit"]): (limit["used"], limit["left"], limit["fits"])
        for said in answer["policies"] for server in said["servers"] for entry in server["entries"] for limit in entry["limits"]
    }


def denied_lines(cluster, namespace, pod):
    """The denials in a sidecar's own log, with the pod as `denials -o json` gives it."""
    lines = [json.loads(line) for line in cluster.logs(namespace, pod, SIDECAR).splitlines() if '"decision"' in line]
    return [{**line, "namespace": namespace, "pod": pod} for line in lines if line["decision"] != "allowed"]


def expect_line(what, words, text):
    """Returns a pattern for a line with these words, with any spacing."""
    if words not in [line.split() for line in text.splitlines()]:
        raise Failure(f"{what}: no line {' '.join(words)!r} in:\n{text:.2000}")


@scenario(
    "plugin", "`kubectl toolweir`",
    "`status` shows policies, pods and the version in force; `denials`, with `-f` too, what the audit log has, each once; `explain` the policy and entry that decide and what is left of each limit, as the calls then find it",
)
def plugin(cluster, measured):
    # As kubectl finds it: the one that was built, and no other that this machine may have.
    program = str(TARGET / "images/kubectl-toolweir")
    expect("kubectl-toolweir on the PATH", program, shutil.which("kubectl-toolweir"))
    expect_in("kubectl plugin list", program, kubectl("plugin", "list", check=False)[1])
    if not re.search(r"\d+\.\d+\.\d+", toolweir("--version")):
        raise Failure(f"kubectl toolweir --version: {toolweir('--version')}")

    namespace = cluster.namespace("plugin")
    facebook, strict = f"{namespace}/facebook", f"{namespace}/strict"
    short = {"expression": "size(args.message) <= 20", "message": "Posts are short."}
    policies = [
        cluster.policy(namespace, tools=[{"name": "send_*", "limits": [{"max": 50, "window": "hour"}]}, {"name": "post_to_facebook", "validations": [short]}]),
        cluster.policy(namespace, "strict", tools=[send(5)], defaultAction="Allow"),
    ]
    cluster.governed(namespace, *policies)

    status_in_order(cluster, namespace, [facebook, strict])
    explained(cluster, namespace, facebook, strict)
    once = denials_shown(cluster, namespace, facebook, strict)

    # What is not in order, and what may not be asked: the exit code says so, and the text what helps.
    cluster.apply(agent("bare", labels={INJECT: "disabled"}), namespace=namespace)
    without = json.loads(toolweir("status", "-n", namespace, "-o", "json", code=1))["withoutSidecar"]
    expect("pods without a sidecar", [(f"{namespace}/bare", [facebook, strict])], [(f"{p['namespace']}/{p['name']}", sorted(n for n in p["policies"] if "/" in n)) for p in without])
    refused = toolweir("explain", "-n", namespace, "agent", "send_dm_to_user", "--as", "e2e-nobody", code=2)
    expect_in("explain by someone without the right", "the verb `get` on `pods`", refused)
    measured.note(f"status: 2 policies, the pod and its version; explain: 8 answers as the calls found it, of 3 reasons, and nothing taken; denials: {once} of {once} lines of the audit log, each once, those of a new pod too")


def status_in_order(cluster, namespace, policies):
    status = until(30, "status finds everything in order", lambda: json.loads(toolweir("status", "-n", namespace, "-o", "json")), 1)
    rows = [
        (p["kind"], f"{p['namespace']}/{p['name']}", p["mode"], p["accepted"]["status"], p["programmed"]["status"], p["acknowledged"], p["selected"])
        for p in status["policies"] if "namespace" in p
    ]
    expect("status: the policies", [("MCPPolicy", policy, "Enforce", "True", "True", 1, 1) for policy in policies], sorted(rows))
    infos = [labels for name, labels, _ in cluster.sidecar_metrics(namespace, "agent") if name == "toolweir_policy_info"]
    version = infos[0]["version"]
    # Guardrails of the cluster that the tests run on govern the pod too.
    governing = sorted(labels["policy"] for labels in infos)
    pods = [(p["namespace"], p["name"], p["ready"], p["connected"], p["version"], p["ageSeconds"], sorted(p["policies"])) for p in status["pods"]]
    expect("status: the pods", [(namespace, "agent", True, True, version, 0, governing)], pods)
    expect("status: its policies", policies, [policy for policy in governing if "/" in policy])
    expect("status: pods without a sidecar, and notes", ([], []), (status["withoutSidecar"], status["notes"]))
    text = toolweir("status", "-n", namespace)
    for policy in policies:
        expect_line("status", ["MCPPolicy", policy, "Enforce", "True", "True", "1/1"], text)
    expect_line("status", [f"{namespace}/agent", "yes", "yes", version, "0s", str(len(governing))], text)


def explained(cluster, namespace, facebook, strict):
    """The result of `explain` before each call equals that of the call, and its numbers equal the calls so far."""

    def explain(tool, code, pod="agent", **arguments):
        return json.loads(toolweir("explain", "-n", namespace, pod, tool, json.dumps(arguments), "-o", "json", code=code))

    def outcomes(times):
        return [answer["outcome"] for answer in cluster.call(namespace, "agent", "send_dm_to_user", times, **MESSAGE)]

    def left(used, fits=True):
        return {(strict, "send_dm_to_user", "5/day"): (used, 5 - used, fits), (facebook, "send_*", "50/hour"): (used, 50 - used, True)}

    def verdict(answer):
        return (answer["decision"], *(answer["verdict"].get(field) for field in ("reason", "policy", "entry")))

    answer = explain("send_dm_to_user", 0, **MESSAGE)
    expect("explain before any call", ("allowed", left(0)), (answer["decision"], room(answer)))
    expect("three calls", ["ok"] * 3, outcomes(3))
    # Twice: it takes nothing.
    for _ in range(2):
        answer = explain("send_dm_to_user", 0, **MESSAGE)
        expect("explain after three calls", ("allowed", left(3)), (answer["decision"], room(answer)))
    expect("four more", ["ok"] * 2 + ["denied"] * 2, outcomes(4))
    answer = explain("send_dm_to_user", 1, **MESSAGE)
    expect("explain when the limit is used up", ("denied", "rate_limit", strict, "send_dm_to_user"), verdict(answer))
    expect("what is left then", left(5, fits=False), room(answer))
    if not 0 < answer["verdict"]["retryAfterSeconds"] <= 86_400 * 65 / 64 + 1:
        raise Failure(f"explain says to try again in {answer['verdict']['retryAfterSeconds']} s")

    text = toolweir("explain", "-n", namespace, "pod/agent", "send_dm_to_user", json.dumps(MESSAGE), code=1)
    expect("the first line", f"pod {namespace}/agent, server facebook, tool send_dm_to_user: denied (rate_limit)", text.splitlines()[0])
    expect_in("what the model reads", f"Denied by policy {strict}: send_dm_to_user is limited to 5 calls a day. Try again in ", text)
    expect_line("explain", [facebook, "Enforce", "Allow", "send_*", "send_*", "allows"], text)
    expect_line("explain", [facebook, "send_*", "50/hour", "all", "5", "45", "1", "yes"], text)
    for pattern in (rf"{strict} +Enforce +Allow +send_dm_to_user +send_dm_to_user +denies \(rate_limit\), again in \d+ s", rf"{strict} +send_dm_to_user +5/day +all +5 +0 +1 +no, in \d+[smhd]"):
        if not re.search(rf"(?m)^ *{pattern}$", text):
            raise Failure(f"explain: no line {pattern!r} in:\n{text}")

    # Denials of other kinds say the same as the calls do, to the letter.
    for tool, arguments, reason, entry in (("delete_post", {"post_id": "1"}, "not_listed", None), ("post_to_facebook", {"message": "x" * 21}, "validation", "post_to_facebook")):
        answer = explain(tool, 1, **arguments)
        expect(f"explain {tool}", ("denied", reason, facebook, entry), verdict(answer))
        got = cluster.call(namespace, "agent", tool, **arguments)[0]
        expect(f"a call of {tool}", ("denied", answer["verdict"]["message"]), (got["outcome"], got["text"]))
    answer = explain("post_to_facebook", 0, message="x" * 20)
    conditions = [v["holds"] for said in answer["policies"] for s in said["servers"] for entry in s["entries"] for v in entry["validations"]]
    expect("explain of a post that is short", ("allowed", [True]), (answer["decision"], conditions))


def denials_shown(cluster, namespace, facebook, strict):
    """`denials` against the sidecars' own logs, after what `explained` has called. How many there were in the end."""
    want = [
        *[("send_dm_to_user", "denied", "rate_limit", strict, "send_dm_to_user")] * 2,
        ("delete_post", "denied", "not_listed", facebook, None),
        ("post_to_facebook", "denied", "validation", facebook, "post_to_facebook"),
    ]

    def shown():
        lines = [json.loads(line) for line in toolweir("denials", "-n", namespace, "-o", "json").splitlines()]
        got = [tuple(line.get(field) for field in ("tool", "decision", "reason", "policy", "entry")) for line in lines]
        # The log may be some milliseconds late.
        expect("denials", want, got)
        return lines

    lines = until(10, "denials shows what was denied", shown, 0.5)
    expect("denials against the audit log", denied_lines(cluster, namespace, "agent"), lines)
    text = toolweir("denials", "-n", namespace, "--pod", "agent", "--since", "1h")
    expect_line("denials", ["TIME", "POD", "SERVER", "TOOL", "DECISION", "REASON", "POLICY", "ENTRY"], text)
    for line in lines:
        expect_line("denials", [line["time"], f"{namespace}/agent", "facebook", line["tool"], "denied", line["reason"], line["policy"], line["entry"] or "-"], text)

    with Background("kubectl", "toolweir", "denials", "-n", namespace, "-f", "-o", "json") as follow:

        def denial(pod, reason):
            def matches(line):
                said = json.loads(line) if line.startswith("{") else {}
                return said if (said.get("pod"), said.get("reason")) == (pod, reason) else None

            return matches

        seen, _ = follow.line(20, "denials -f shows those so far", denial("agent", "validation"))
        expect("a call while it follows", "denied", cluster.call(namespace, "agent", "send_dm_to_user", **MESSAGE)[0]["outcome"])
        follow.line(20, "denials -f shows one that comes", denial("agent", "rate_limit"), seen + 1)
        cluster.apply(agent("late"), namespace=namespace)
        cluster.ready(namespace, "late")
        expect("a call of a pod that came", "denied", cluster.call(namespace, "late", "delete_post", post_id="1")[0]["outcome"])
        follow.line(20, "denials -f shows one of a pod that came", denial("late", "not_listed"), seen + 1)
        # Time enough for one that would be shown twice.
        time.sleep(2)
        followed = [json.loads(line) for line in list(follow.lines) if line.startswith("{")]
    everything = [line for pod in ("agent", "late") for line in denied_lines(cluster, namespace, pod)]
    expect("denials in all", 6, len(everything))
    in_order = lambda lines: sorted(lines, key=lambda line: (line["pod"], line["time"]))  # noqa: E731
    expect("denials -f against the audit logs", in_order(everything), in_order(followed))
    return len(everything)
