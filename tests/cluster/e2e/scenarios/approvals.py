"""Calls that wait for a person, from the agent's SDK to `kubectl toolweir approve` and back."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from approving import AGENTS, MARKER, OPERATOR_USER, Chat, Plain, Requests, Sdk, clients, once_known, people, written
from kube import Failure, agent, expect, expect_in, kubectl, total, until

from . import scenario
from .denials import toolweir

FLOOD, PENDING = 10_000, 5
# A pod for each SDK, since the operator makes no more than 20 objects at once for one.
PODS = [*AGENTS, "other", "flooder"]
REASON = "Not before Friday."
# Makes calls whose arguments all differ, by some connections; how often each answer came.
ASK = """
import collections, json, sys, threading
sys.path.insert(0, "/opt/agent")
from call import Agent
marker, calls, told, lock, numbers = sys.argv[1], int(sys.argv[2]), collections.Counter(), threading.Lock(), iter(range(int(sys.argv[2])))
def ask():
    agent = Agent("facebook")
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        said = agent.call("update_post", {"post_id": f"flood-{number}", "new_message": f"{marker} {number}"})
        with lock:
            told[(said["denial"] or {}).get("reason") or said["outcome"]] += 1
            told["words"] += "5 requests wait for one already" in said["text"]
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(told))
"""


def tools(message="A person looks at it first."):
    """`post_to_facebook` is held, `send_dm_to_user` is not, `delete_post` is in a hurry, and of `update_post` few may wait."""
    late = {"message": message, "hold": "0s", "pending": 50}
    return [
        {"name": "post_to_facebook", "approval": {"message": message, "show": ["args.message"], "hold": "45s", "pending": 50}},
        {"name": "send_dm_to_user", "approval": late | {"show": ["args.user_id"]}},
        {"name": "delete_post", "approval": late | {"show": ["args.post_id"], "expiry": "10s"}},
        {"name": "update_post", "approval": {"show": ["args.post_id"], "hold": "0s", "pending": PENDING}},
        {"name": "get_page_fan_count"},
    ]


@scenario(
    "approvals", "approvals: calls of real SDKs that wait for a person (Python 1.x and 2.x, TypeScript 1.x and 2.x)",
    "approved in time or later: delivered once; denied, expired, voided by a changed policy, other arguments, another pod: never delivered; nobody without the right "
    f"decides; without an operator nothing passes, and then the decision arrives; of {FLOOD} different calls at most {PENDING} become requests; nothing but `show` is written down",
)
def approvals(cluster, measured):
    namespace = cluster.namespace("approvals")
    policy = cluster.policy(namespace, tools=tools())
    with Chat(cluster, namespace) as chat, ExitStack() as stack:
        cluster.apply(policy, *people(namespace), *chat.objects(), *map(clients, AGENTS), agent("other"), agent("flooder"), namespace=namespace)
        cluster.ready(namespace, "chat", *PODS, seconds=90)
        cluster.programmed(policy, len(PODS))
        stage = Stage(cluster, namespace, policy, {name: stack.enter_context(Sdk(namespace, name)) for name in AGENTS})
        measured.note(without_operator(stage))
        measured.note(flooded(stage))
        with ThreadPoolExecutor(len(AGENTS)) as threads:
            list(threads.map(stage.row, stage.agents.values()))
        measured.note(f"{', '.join(AGENTS)}: held and approved, approved late, with its keys in another order: delivered once; denied, expired, with other arguments, from another pod: not")
        measured.note(who(stage))
        measured.note(voided(stage))
        measured.note(told(stage, chat))
        measured.note(nothing_else(stage))


class Stage:
    """The agents, and what the server got."""

    def __init__(self, cluster, namespace, policy, agents):
        self.cluster, self.namespace, self.policy, self.agents = cluster, namespace, policy, agents
        self.requests, self.other, self.before = Requests(cluster, namespace), Plain(cluster, namespace, "other"), len(cluster.delivered())

    def delivered(self, step):
        """How often the server got a call with this value."""
        return len([line for line in self.cluster.delivered()[self.before:] if step in (line["arguments"] or {}).values()])

    def waits(self, client, tool, arguments, step):
        """Makes a call that is not held; its answer, and the name of its request."""
        answer = client.call(tool, arguments)
        expect(f"{step}: the answer", "approval_pending", answer.reason)
        words = f"Waiting for a person: {self.namespace}/{answer.approval}. Make the same call again in "
        expect_in(f"{step}: the words", words, answer.text)
        expect(f"{step}: the request", answer.approval, self.requests.of(step))
        return answer

    def row(self, client):
        """Everything that one SDK does."""
        undecided = {"post_id": f"{client.name}-undecided"}
        ends = self.waits(client, "delete_post", undecided, undecided["post_id"]).approval
        for part in (self.held, self.late, self.denied, self.other_order, self.other_arguments, self.other_pod):
            part(client)
        self.expired(client, undecided, ends)

    def held(self, client):
        step = f"{client.name}-held"
        number = client.send("post_to_facebook", {"message": step})
        name = self.requests.of(step)
        expect(f"{step}: delivered before the decision", 0, self.delivered(step))
        expect(f"{step}: another call meanwhile", True, client.call("get_page_fan_count", {}).passed)
        self.requests.approve(name)
        answer = client.answer(number, 50)
        expect(f"{step}: the answer ({answer})", True, answer.passed)
        self.used(step, name)

    def used(self, step, name, by="anna"):
        """It was delivered once, and the object says so."""
        status = self.requests.state(name, "Used")
        expect(f"{step}: who decided", ("Approve", by), (status["decision"], status["decidedBy"]))
        expect(f"{step}: delivered", 1, self.delivered(step))

    def late(self, client):
        step = f"{client.name}-late"
        arguments = {"user_id": step, "message": MARKER}
        answer = self.waits(client, "send_dm_to_user", arguments, step)
        expect(f"{step}: a repetition joins", answer.approval, client.call("send_dm_to_user", arguments).approval)
        toolweir("approve", answer.approval, "-n", self.namespace, "--as", "anna", "--reason", "As agreed.")
        expect(f"{step}: delivered before it is repeated", 0, self.delivered(step))
        passed = once_known(client, "send_dm_to_user", arguments)
        expect(f"{step}: the answer ({passed})", True, passed.passed)
        self.used(step, answer.approval)
        anew = client.call("send_dm_to_user", arguments)
        expect(f"{step}: once more", ("approval_pending", True), (anew.reason, anew.approval not in ("", answer.approval)))
        expect(f"{step}: delivered in the end", 1, self.delivered(step))

    def denied(self, client):
        step = f"{client.name}-denied"
        arguments = {"user_id": step, "message": MARKER}
        name = self.waits(client, "send_dm_to_user", arguments, step).approval
        self.requests.deny(name, REASON)
        answers = [once_known(client, "send_dm_to_user", arguments), client.call("send_dm_to_user", arguments)]
        words = f"Denied by a person ({self.namespace}/{name}): {REASON}"
        expect(f"{step}: the answers", [("approval_denied", words)] * 2, [(answer.reason, answer.text) for answer in answers])
        self.requests.state(name, "Denied")
        expect(f"{step}: delivered", 0, self.delivered(step))

    def other_order(self, client):
        step = f"{client.name}-order"
        name = self.waits(client, "send_dm_to_user", {"user_id": step, "message": MARKER}, step).approval
        self.requests.approve(name, "dora")
        passed = once_known(client, "send_dm_to_user", {"message": MARKER, "user_id": step})
        expect(f"{step}: the answer ({passed})", True, passed.passed)
        self.used(step, name, "dora")

    def other_arguments(self, client):
        step = f"{client.name}-arguments"
        arguments = {"user_id": step, "message": MARKER}
        name = self.approved(client, arguments, step)
        answer = client.call("send_dm_to_user", arguments | {"message": f"{MARKER}."})
        expect(f"{step}: with another message", ("approval_pending", True), (answer.reason, answer.approval not in ("", name)))
        expect(f"{step}: delivered", 0, self.delivered(step))
        expect(f"{step}: as it was approved", True, once_known(client, "send_dm_to_user", arguments).passed)
        self.used(step, name)

    def other_pod(self, client):
        step = f"{client.name}-pod"
        arguments = {"user_id": step, "message": MARKER}
        name = self.approved(client, arguments, step)
        answer = self.other.call("send_dm_to_user", arguments)
        expect(f"{step}: from another pod", ("approval_pending", True), (answer.reason, answer.approval not in ("", name)))
        expect(f"{step}: delivered", 0, self.delivered(step))
        expect(f"{step}: from its own", True, once_known(client, "send_dm_to_user", arguments).passed)
        self.used(step, name)

    def approved(self, client, arguments, step):
        """Makes a call and has it approved, up to its sidecar; the name."""
        name = self.waits(client, "send_dm_to_user", arguments, step).approval
        self.requests.approve(name)
        self.requests.state(name, "Approved")
        return name

    def expired(self, client, arguments, name):
        step = arguments["post_id"]
        self.requests.state(name, "Expired")
        code, _, err = self.requests.write("anna", name, {"decision": "Approve", "decidedBy": "anna"}, check=False)
        expect(f"{step}: deciding too late", (1, True), (code, "it has ended (Expired)" in err))
        expect(f"{step}: the next call", "approval_expired", client.call("delete_post", arguments).reason)
        anew = client.call("delete_post", arguments)
        expect(f"{step}: the one after", ("approval_pending", True), (anew.reason, anew.approval not in ("", name)))
        expect(f"{step}: delivered", 0, self.delivered(step))


def without_operator(stage):
    """A call is held while the operators go; a person decides; operators come back. They find the webhook's Secret, too."""
    cluster, requests, client = stage.cluster, stage.requests, stage.agents["py1"]
    number = client.send("post_to_facebook", {"message": "gone-held"})
    name = requests.of("gone-held")
    began = time.monotonic()
    try:
        cluster.scale(0)
        until(60, "no operator is left", lambda: not cluster.operators(leaving=True))
        requests.approve(name)
        late = client.call("send_dm_to_user", {"user_id": "gone-late", "message": MARKER})
        expect("a call without an operator", "approval_pending", late.reason)
        time.sleep(3)
        expect("delivered without an operator", (0, 0), (stage.delivered("gone-held"), stage.delivered("gone-late")))
        expect("requests without an operator", [name], [one["metadata"]["name"] for one in requests.all()])
    finally:
        cluster.scale(2)
    expect("the request that waited", late.approval, requests.of("gone-late", seconds=90))
    answer = client.answer(number, 60)
    held = f"the held call was answered {time.monotonic() - began:.0f} s after they went"
    if not answer.passed:
        answer = once_known(client, "post_to_facebook", {"message": "gone-held"}, 30)
        held = "it was repeated"
    expect(f"the answer ({answer})", True, answer.passed)
    stage.used("gone-held", name)
    requests.approve(late.approval)
    expect("the one that came meanwhile", True, once_known(client, "send_dm_to_user", {"user_id": "gone-late", "message": MARKER}).passed)
    stage.used("gone-late", late.approval)
    cluster.rollout()
    cluster.settled()
    cluster.webhooks()
    return f"no operator: nothing passes; back: the decision arrives ({held})"


def writes(cluster):
    return total(cluster.operator_metrics(), "toolweir_operator_approval_writes_total")


def flooded(stage):
    cluster, namespace, before = stage.cluster, stage.namespace, writes(stage.cluster)
    began = time.monotonic()
    out = kubectl("-n", namespace, "exec", "flooder", "-c", "agent", "--", "python3", "-c", ASK, MARKER, FLOOD, timeout=180)
    took = time.monotonic() - began
    full = FLOOD - PENDING
    expect("what the agent is told", {"approval_pending": PENDING, "approval_full": full, "words": full}, json.loads(out))
    until(20, "the requests are there", lambda: [one["status"]["state"] for one in stage.requests.all("flooder")] == ["Pending"] * PENDING, 0.5)
    # What would be too much may come a moment later.
    time.sleep(2)
    expect("requests", PENDING, len(stage.requests.all("flooder")))
    count = writes(cluster) - before
    if not PENDING <= count <= 4 * PENDING:
        raise Failure(f"the operators wrote {count:.0f} times")
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector="involvedObject.name=flooder,reason=ApprovalRequested")["items"]
    if not 1 <= len(found) <= PENDING:
        raise Failure(f"{len(found)} events of requests")
    expect("delivered", 0, len([line for line in cluster.delivered()[stage.before:] if line["tool"] == "update_post"]))
    return f"{FLOOD} different calls in {took:.0f} s: {PENDING} objects, {count:.0f} writes of objects, {len(found)} events, {full} denied with words"


def who(stage):
    """Each who may not decide, or not so: refused by the API server, and without any effect."""
    requests, agent_user = stage.requests, f"system:serviceaccount:{stage.namespace}:default"
    waiting = {"user_id": "who-waiting", "message": MARKER}
    name = stage.waits(stage.other, "send_dm_to_user", waiting, "who-waiting").approval
    refused = {"user_id": "who-denied", "message": MARKER}
    denied = stage.waits(stage.other, "send_dm_to_user", refused, "who-denied").approval
    requests.deny(denied, REASON)
    requests.state(denied, "Denied")
    before = {one["metadata"]["name"]: one for one in requests.all("other")}

    def approve(user, by=None):
        return {"decision": "Approve", "decidedBy": by or user}

    own = {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApproval", "metadata": {"name": "made-up"}, "spec": before[name]["spec"]}
    create = ["-n", stage.namespace, "create", "-f", "-"]
    attempts = {
        "the agent's service account": (lambda: requests.write(agent_user, name, approve(agent_user), check=False), "the service account of the agent that calls may not decide"),
        "a user without the verb": (lambda: requests.write("bob", name, approve("bob"), check=False), "--verb=approve"),
        "another name in decidedBy": (lambda: requests.write("anna", name, approve("anna", "carl"), check=False), "the user who decides: anna"),
        "a user without the verb, in an approver's name": (lambda: requests.write("bob", name, approve("bob", "anna"), check=False), "denied request"),
        "an edited spec": (lambda: requests.write("bob", name, {"spec": {"argumentsSha256": "0" * 64}}, sub="", check=False), "what is approved cannot be changed"),
        "a denial into an approval": (lambda: requests.write("anna", denied, approve("anna"), check=False), "it is decided already (Deny, by anna)"),
        "a state": (lambda: requests.write("bob", name, {"state": "Approved"}, check=False), "by Toolweir's operator alone"),
        "the operator": (lambda: requests.write(OPERATOR_USER, name, approve(OPERATOR_USER), check=False), "a person decides"),
        "a created object": (lambda: kubectl(*create, "--as", "bob", input=json.dumps(own), check=False), "only Toolweir's operator creates"),
        "an object that the agent created": (lambda: kubectl(*create, "--as", agent_user, input=json.dumps(own), check=False), "only Toolweir's operator creates"),
    }
    for what, (attempt, words) in attempts.items():
        code, out, err = attempt()
        expect(f"{what}: {out}{err}", (1, True), (code, words in err))
    expect("what is written after all of that", before, {one["metadata"]["name"]: one for one in requests.all("other")})
    answers = [stage.other.call("send_dm_to_user", arguments).reason for arguments in (waiting, refused)]
    expect("the calls after all of that", ["approval_pending", "approval_denied"], answers)
    expect("delivered", (0, 0), (stage.delivered("who-waiting"), stage.delivered("who-denied")))
    return f"refused, and without effect: {', '.join(attempts)}"


def voided(stage):
    """A changed policy ends what was asked and approved before."""
    cluster, requests = stage.cluster, stage.requests
    arguments = {name: {"user_id": f"{name}-voided", "message": MARKER} for name in AGENTS}
    names = {name: stage.approved(client, arguments[name], f"{name}-voided") for name, client in stage.agents.items()}
    stage.policy["spec"]["servers"][0]["tools"] = tools("Two people look at it first.")
    cluster.apply(stage.policy)
    cluster.programmed(stage.policy, len(PODS))
    for name, client in stage.agents.items():
        requests.state(names[name], "Voided")
        answer = client.call("send_dm_to_user", arguments[name])
        expect(f"{name}: after the change", ("approval_pending", True), (answer.reason, answer.approval not in ("", names[name])))
        expect(f"{name}: delivered", 0, stage.delivered(f"{name}-voided"))
    expect("requests that waited under the policy of before", set(), requests.waiting("flooder"))
    return "a changed policy voids what was approved and what waits"


def told(stage, chat):
    """What people see: the table, events, messages."""
    requests = stage.requests
    head = kubectl("-n", stage.namespace, "get", "mcpa").splitlines()[0].split()
    expect("kubectl get mcpa", ["NAME", "TOOL", "SERVER", "AGENT", "STATE", "AGE", "EXPIRES"], head)
    waiting = requests.waiting()
    listed = toolweir("approvals", "-n", stage.namespace)
    expect("what kubectl toolweir approvals leaves out", [], [name for name in waiting if name not in listed])
    events = stage.cluster.api.get(f"/api/v1/namespaces/{stage.namespace}/events")["items"]
    of_agent = [one for one in events if one["involvedObject"]["name"] == "py1"]
    for reason, words in (("ApprovalRequested", "kubectl toolweir approve"), ("ApprovalDecided", "anna")):
        found = [one["message"] for one in of_agent if one["reason"] == reason]
        expect_in(f"the events {reason}", words, " ".join(found))

    def all_told():
        missing = waiting - chat.told().keys()
        if missing:
            raise Failure(f"it was not told of {sorted(missing)}")
        return chat.told()

    messages = until(30, "the webhook is told of everything that waits", all_told, 0.5)
    for name, body in messages.items():
        spec = requests.get(name)["spec"]
        expect(f"the message of {name}", (spec["tool"], spec["agent"], spec["expiresAt"]), tuple(body["approval"][key] for key in ("tool", "agent", "expiresAt")))
        expect_in("its text", name, body["text"])
    return f"{len(messages)} signed messages to the webhook, events on the pod"


def nothing_else(stage):
    """What policies do not show is written nowhere."""
    places = written(stage.cluster, stage.namespace, PODS)
    expect("places with nothing to search", [], [place for place, text in places.items() if not text.strip()])
    expect_in("what a policy shows, in the objects", "py1-late", places["objects"])
    expect_in("the marker, at the server", MARKER, json.dumps(stage.cluster.delivered()[stage.before:]))
    expect("places with what no policy shows", [], [place for place, text in places.items() if MARKER in text])
    return f"the marker is in none of {len(places)} places ({sum(map(len, places.values())) >> 10} KiB)"
