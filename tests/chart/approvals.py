"""Tries to write MCPApprovals as one who may not, in every way, and as one who may, in an API server.

    approvals.py URL TOKEN_FILE CHART

Says what does not hold, a line each, and exits with 1. Each user but the approvers has all rights to MCPApprovals that RBAC can give, so that
what is refused is refused by the policy or the schema.
"""
import itertools, pathlib, sys

import yaml

from api import Api, wait

GROUP, ADMISSION, RBAC = "/apis/toolweir.dev/v1alpha1", "/apis/admissionregistration.k8s.io/v1", "/apis/rbac.authorization.k8s.io/v1"
WHERE = f"{GROUP}/namespaces/agents/mcpapprovals"
OPERATOR, AGENT = "system:serviceaccount:toolweir-system:toolweir-operator", "system:serviceaccount:agents:payer"
GUARD = "ValidatingAdmissionPolicy 'toolweir-approvals'"
PLURALS = {
    "ValidatingAdmissionPolicy": f"{ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{ADMISSION}/validatingadmissionpolicybindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ClusterRole": f"{RBAC}/clusterroles", "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "Role": f"{RBAC}/namespaces/toolweir-system/roles", "RoleBinding": f"{RBAC}/namespaces/toolweir-system/rolebindings",
}
MERGE, JSON_PATCH, APPLY = "application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml"
problems, tried, numbers = [], 0, itertools.count(1)


def expect(holds, *words):
    global tried
    tried += 1
    if not holds:
        problems.append(" ".join(map(str, words)))
    return holds


def policies(*names):
    """What asks: `name` in the namespace of the agents, `/name` in the cluster."""
    return [{"namespace": "" if name[0] == "/" else "agents", "name": name.strip("/"), "uid": "u", "generation": 1} for name in names]


class Tries:
    def __init__(self, api):
        self.api = api

    def make(self, *asking, user=OPERATOR, state="Pending", name=None):
        """Creates a request as the operator does; its name."""
        name = name or f"pay-{next(numbers)}"
        status, answer = self.api.ask("POST", WHERE, request(name, *asking), user=user)
        if status == 201 and state:
            status, answer = self.status(OPERATOR, name, {"state": state, "expiresAt": "2026-11-30T10:10:00Z", "updatedAt": "2026-11-30T10:00:00Z"})
        if status not in (200, 201):
            sys.exit(f"approvals.py: {user} cannot make {name}: {status}: {answer.get('message')}")
        return name

    def status(self, user, name, fields, kind=MERGE):
        return self.api.ask("PATCH", f"{WHERE}/{name}/status?fieldManager=test&force=true" if kind == APPLY else f"{WHERE}/{name}/status",
                            fields if kind == JSON_PATCH else {"status": fields} | (HEAD(name) if kind == APPLY else {}), kind, user)

    def get(self, name):
        return self.api.ask("GET", f"{WHERE}/{name}")[1]

    def put(self, user, name, change, sub=""):
        """Replaces the object, or its status, by what `change` makes of it."""
        object = self.get(name)
        change(object)
        return self.api.ask("PUT", f"{WHERE}/{name}{sub}", object, user=user)

    def allowed(self, what, said):
        return expect(said[0] in (200, 201), f"{what}: refused:", said[1].get("message"))

    def refused(self, what, said, words, by=GUARD):
        status, message = said[0], said[1].get("message", "")
        return expect(status in (400, 403, 422) and words in message and (not by or by in message), f"{what}: let in, or not refused for that: {status}", message)


def HEAD(name):
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApproval", "metadata": {"name": name, "namespace": "agents"}}


def request(name, *asking):
    object = HEAD(name)
    object["metadata"]["labels"] = {"toolweir.dev/pod-uid": "6a1f"}
    object["spec"] = {
        "server": "books", "tool": "pay_invoice", "argumentsSha256": "0" * 64, "policies": policies(*(asking or ("books",))),
        "agent": {"pod": "payer-1", "podUid": "6a1f", "serviceAccount": "payer"}, "message": "Invoices over 500 need a person.",
        "shown": [{"expression": "args.amount", "value": "501"}], "usableSeconds": 600,
        "requestedAt": "2026-11-30T10:00:00Z", "expiresAt": "2026-11-30T10:10:00Z",
    }
    return object


def approve(user, **more):
    return {"decision": "Approve", "decidedBy": user, **more}


def deny(user, **more):
    return {"decision": "Deny", "decidedBy": user, **more}


# ---- rows


def creates(t):
    """The operator alone creates objects, and its own rights are enough."""
    for user in ("bob", AGENT, "admin", None):
        t.refused(f"{user or 'a cluster administrator'} creates", t.api.ask("POST", WHERE, request("made-up"), user=user), "only Toolweir's operator creates")
    t.refused("an approver creates", t.api.ask("POST", WHERE, request("made-up"), user="anna"), "anna", by=None)
    decided = request("born-decided") | {"status": approve(OPERATOR)}
    t.allowed("the operator creates", t.api.ask("POST", WHERE, decided, user=OPERATOR))
    expect("status" not in t.get("born-decided"), "an object begins with a decision:", t.get("born-decided"))
    nine = t.api.ask("POST", WHERE, request("nine", *(f"p{n}" for n in range(9))), user=OPERATOR)
    t.refused("nine policies", nine, "spec.policies", by=None)
    t.allowed("the operator deletes", t.api.ask("DELETE", f"{WHERE}/born-decided", user=OPERATOR))


def operator_writes(t):
    """The operator writes the state, and never a decision, whatever rights it has."""
    name = t.make()
    t.allowed("the operator writes the state", t.status(OPERATOR, name, {"state": "Expired", "message": "nobody decided"}))
    name = t.make()
    for fields in (approve(OPERATOR), approve("anna"), {"decision": "Deny"}, {"reason": "no"}, {"decidedBy": "anna"}):
        t.refused(f"the operator writes {fields}", t.status(OPERATOR, name, fields), "a person decides")
    t.allowed("anna approves", t.status("anna", name, approve("anna", reason="as agreed")))
    for fields in ({"decision": None}, {"decision": "Deny"}, {"decidedBy": "bob"}, {"reason": None}):
        t.refused(f"the operator changes a decision: {fields}", t.status(OPERATOR, name, fields), "a person decides")
    t.refused("the operator replaces the status", t.put(OPERATOR, name, lambda o: o.update(status={"state": "Used"}), "/status"), "a person decides")
    t.allowed("the operator writes the state after a decision", t.status(OPERATOR, name, {"state": "Used", "updatedAt": "2026-11-30T10:05:00Z"}))
    got = t.get(name)["status"]
    expect((got["decision"], got["decidedBy"], got["reason"], got["state"]) == ("Approve", "anna", "as agreed", "Used"), "after that, the status is", got)


def decisions(t):
    """Whoever may, decides in any form that an API client has; once."""
    forms = {
        "a merge patch": lambda name, said: t.status("anna", name, said),
        "a JSON patch": lambda name, said: t.status("anna", name, [{"op": "add", "path": f"/status/{key}", "value": value} for key, value in said.items()], JSON_PATCH),
        "a PUT": lambda name, said: t.put("anna", name, lambda o: o["status"].update(said), "/status"),
        "an apply": lambda name, said: t.status("anna", name, said, APPLY),
    }
    for (form, decide), said in itertools.product(forms.items(), (approve("anna"), deny("anna", reason="not this month"))):
        name = t.make()
        if t.allowed(f"anna decides {said['decision']} with {form}", decide(name, said)):
            expect(said.items() <= t.get(name)["status"].items(), f"{form} of {said} made", t.get(name)["status"])
        other = approve("anna") if said["decision"] == "Deny" else deny("anna")
        t.refused(f"anna turns a {said['decision']} around with {form}", decide(name, other), f"it is decided already ({said['decision']}, by anna)")
    name = t.make(state=None)
    t.allowed("anna decides before there is a state", t.status("anna", name, deny("anna")))
    for fields in ({"reason": "another"}, {"reason": None, "decision": None, "decidedBy": None}, {"decidedBy": "bob"}, approve("anna")):
        t.refused(f"after a denial, anna writes {fields}", t.status("anna", name, fields), "it is decided already (Deny, by anna)")
    t.refused("anna removes the status", t.put("anna", name, lambda o: o.pop("status"), "/status"), "it is decided already")
    t.refused("anna sets the status to null", t.put("anna", name, lambda o: o.update(status=None), "/status"), "")
    t.refused("another approver turns a denial around", t.status("admin", name, approve("admin")), "it is decided already (Deny, by anna)")
    for state in ("Approved", "Denied", "Used", "Expired", "Voided"):
        t.refused(f"anna decides what is {state}", t.status("anna", t.make(state=state), approve("anna")), f"it has ended ({state})")


def empty_statuses(t):
    """Whoever may write the status before the operator does, and may not decide, keeps nobody else from it."""
    for empty in (None, {}):
        name = t.make(state=None)
        t.put("bob", name, lambda o, empty=empty: o.update(status=empty), "/status")
        t.refused(f"bob approves after {empty}", t.status("bob", name, approve("bob")), "bob may not approve")
        t.allowed(f"the operator writes the state after {empty}", t.status(OPERATOR, name, {"state": "Pending"}))
        t.allowed(f"anna approves after {empty}", t.status("anna", name, approve("anna")))


def who(t):
    """Who has no right to, or says to be another, or is the agent."""
    name = t.make()
    may_not = "bob may not approve for MCPPolicy agents/books; give the right with: kubectl create role NAME -n agents --verb=approve --resource=mcppolicies.toolweir.dev --resource-name=books"
    t.refused("bob approves", t.status("bob", name, approve("bob")), may_not)
    t.refused("bob denies", t.status("bob", name, deny("bob")), may_not)
    t.refused("the agent approves", t.status(AGENT, name, approve(AGENT)), "the service account of the agent that calls may not decide")
    t.refused("the agent denies", t.status(AGENT, name, deny(AGENT)), "the service account of the agent that calls may not decide")
    for said in (approve("bob"), {"decision": "Approve"}, approve(""), {"decidedBy": "anna"}, {"reason": "yes"}, approve("Anna"), approve("anna ")):
        t.refused(f"anna writes {said}", t.status("anna", name, said), "status.decidedBy the user who decides: anna")
    t.refused("an unknown decision", t.status("anna", name, {"decision": "Maybe", "decidedBy": "anna"}), "status.decision", by=None)
    for field, value in (("state", "Approved"), ("expiresAt", "2036-11-30T10:00:00Z"), ("updatedAt", "2036-11-30T10:00:00Z"), ("message", "fine")):
        for user in ("anna", "bob", AGENT, "admin"):
            t.refused(f"{user} writes {field}", t.status(user, name, {field: value}), "by Toolweir's operator alone")
        t.refused(f"anna approves and writes {field}", t.status("anna", name, approve("anna", **{field: value})), "by Toolweir's operator alone")
    t.refused("bob removes the state", t.status("bob", name, {"state": None}), "by Toolweir's operator alone")
    got = t.get(name)["status"]
    expect(got == {"state": "Pending", "expiresAt": "2026-11-30T10:10:00Z", "updatedAt": "2026-11-30T10:00:00Z"}, "after all of that, the status is", got)
    t.allowed("an administrator approves", t.status("admin", name, approve("admin")))


def spec_stays(t):
    """Nobody changes what is approved; not the operator either."""
    name = t.make("books", "/guard")
    before = t.get(name)["spec"]
    for user in (OPERATOR, "bob", "admin", AGENT):
        for what, patch in {"fewer policies": {"policies": policies("books")}, "other arguments": {"argumentsSha256": "1" * 64},
                            "another agent": {"agent": {"serviceAccount": "other"}}, "another tool": {"tool": "list"}, "more time": {"usableSeconds": 86400}}.items():
            said = t.api.ask("PATCH", f"{WHERE}/{name}", {"spec": patch}, MERGE, user)
            t.refused(f"{user} makes it {what}", said, "what is approved cannot be changed", by=None)
    # On the other path, what does not belong there is left out, and what is checked is what is there.
    said = t.api.ask("PATCH", f"{WHERE}/{name}/status", {"spec": {"policies": policies("books")}, "status": approve("limited")}, MERGE, "limited")
    t.refused("one with a right to one policy takes the other one away, and approves", said, "limited may not approve for MCPClusterPolicy guard")
    said = t.api.ask("PATCH", f"{WHERE}/{name}/status", {"spec": {"agent": {"serviceAccount": "other"}}, "status": approve(AGENT)}, MERGE, AGENT)
    t.refused("the agent says that it is another, and approves", said, "the service account of the agent")
    t.api.ask("PATCH", f"{WHERE}/{name}", {"status": approve("bob")}, MERGE, "bob")
    t.put("bob", name, lambda o: o["status"].update(approve("bob")))
    got = t.get(name)
    expect(got["spec"] == before and "decision" not in got["status"], "after that, the object is", got)
    for labels in ({"toolweir.dev/pod-uid": "other"}, {"toolweir.dev/pod-uid": None}, None):
        t.refused(f"bob labels it {labels}", t.api.ask("PATCH", f"{WHERE}/{name}", {"metadata": {"labels": labels}}, MERGE, "bob"), "the label toolweir.dev/pod-uid")
    t.allowed("bob gives it a label of their own", t.api.ask("PATCH", f"{WHERE}/{name}", {"metadata": {"labels": {"seen": "yes"}}}, MERGE, "bob"))


def each_policy(t):
    """A right to all but one of eight policies is not enough, whichever it is; the API server has the budget for eight."""
    asking = ["/guard", "books", *(f"p{n}" for n in range(1, 7))]
    for missing in range(8):
        order = [policy for policy in asking if policy != "books"]
        order.insert(missing, "foreign")
        name = t.make(*order)
        t.refused(f"anna lacks a right to policy {missing + 1} of 8", t.status("cora", name, approve("cora")), "cora may not approve for MCPPolicy agents/foreign")
    name = t.make(*asking)
    t.allowed("cora approves for eight policies", t.status("cora", name, approve("cora")))
    guard = t.make("books", "/guard")
    # A right in the namespace is none in the cluster, also for a policy of the same name.
    t.refused("anna, with rights in the namespace, approves for the cluster", t.status("anna", guard, approve("anna")),
              "anna may not approve for MCPClusterPolicy guard; give the right with: kubectl create clusterrole NAME --verb=approve --resource=mcpclusterpolicies.toolweir.dev --resource-name=guard")
    t.refused("one with a right to mcppolicies of the cluster approves for a cluster policy", t.status("wide", guard, approve("wide")), "wide may not approve for MCPClusterPolicy guard")
    t.allowed("an approver of the cluster approves", t.status("dora", guard, approve("dora")))
    t.refused("limited approves for another policy", t.status("limited", t.make("p1"), approve("limited")), "limited may not approve for MCPPolicy agents/p1")
    t.allowed("limited approves for theirs", t.status("limited", t.make("books"), approve("limited")))


def rights_of_operator(t):
    """The chart's roles are enough for what the operator does with them."""
    name = t.make()
    for path in (f"{GROUP}/mcpapprovals", *(f"{PLURALS[kind]}/toolweir-approvals" for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"))):
        t.allowed(f"the operator reads {path}", t.api.ask("GET", path, user=OPERATOR))
    for path in (f"{PLURALS['ValidatingAdmissionPolicy']}/other", f"{PLURALS['ValidatingAdmissionPolicyBinding']}/other", PLURALS["ValidatingAdmissionPolicy"]):
        said = t.api.ask("GET", path, user=OPERATOR)
        expect(said[0] == 403, f"the operator may read {path}:", said[0])
    said = t.api.ask("PATCH", f"{WHERE}/{name}", {"metadata": {"labels": {"a": "b"}}}, MERGE, OPERATOR)
    expect(said[0] == 403, "the operator may change objects:", said[0])
    t.allowed("the operator deletes", t.api.ask("DELETE", f"{WHERE}/{name}", user=OPERATOR))


# ---- the stage

def bind(api, name, role, *users, namespace=None):
    subjects = [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"} for user in users]
    kind = "RoleBinding" if namespace else "ClusterRoleBinding"
    body = {"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}, "subjects": subjects}
    create(api, {"kind": kind} | body, f"{RBAC}/namespaces/{namespace}/rolebindings" if namespace else None)


def create(api, object, path=None):
    status, answer = api.ask("POST", path or PLURALS[object["kind"]], object)
    if status != 201:
        sys.exit(f"approvals.py: the API server refuses the {object['kind']} {object['metadata']['name']}: {answer.get('message')}")


def role(api, name, *rules):
    create(api, {"kind": "ClusterRole", "metadata": {"name": name}, "rules": [{"apiGroups": ["toolweir.dev"]} | rule for rule in rules]})


def set_up(api, chart):
    wait("the API server answers", lambda: api.ask("GET", "/readyz")[0] == 200)
    for name in ("agents", "toolweir-system"):
        wait(f"the namespace {name} is there", lambda: api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})[0] in (201, 409))
    for document in yaml.safe_load_all(pathlib.Path(chart).read_text()):
        if document and document["kind"] in PLURALS and "restricted" not in document["metadata"]["name"]:
            create(api, document)
    everything = {"resources": ["mcpapprovals", "mcpapprovals/status"], "verbs": ["*"]}
    role(api, "test-all", everything)
    role(api, "test-limited", everything, {"resources": ["mcppolicies"], "verbs": ["approve"], "resourceNames": ["books"]})
    role(api, "test-wide", everything, {"resources": ["mcppolicies"], "verbs": ["approve"]})
    role(api, "test-some", everything, {"resources": ["mcppolicies"], "verbs": ["approve"], "resourceNames": ["books", *(f"p{n}" for n in range(1, 7))]},
         {"resources": ["mcpclusterpolicies"], "verbs": ["approve"], "resourceNames": ["guard"]})
    role(api, "test-anything", {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]})
    # The agent may approve, were it not the agent.
    bind(api, "approvers", "toolweir-approver", "anna", AGENT, namespace="agents")
    bind(api, "approvers-of-all", "toolweir-approver", "dora")
    bind(api, "all", "test-all", "bob", AGENT)
    bind(api, "limited", "test-limited", "limited")
    bind(api, "some", "test-some", "cora")
    bind(api, "wide", "test-wide", "wide")
    bind(api, "anything", "test-anything", "admin")
    for kind in ("mcpapprovals", "mcppolicies"):
        wait(f"{kind} are served", lambda: api.ask("GET", f"{GROUP}/{kind}")[0] == 200)
    wait("the policy is in force", lambda: GUARD in api.ask("POST", f"{WHERE}?dryRun=All", request("early"), user="bob")[1].get("message", ""))


def main():
    url, token, chart = sys.argv[1:]
    api = Api(url, pathlib.Path(token).read_text().strip())
    set_up(api, chart)
    t = Tries(api)
    rights_of_operator(t)
    # From here on the operator has every right, so that it is the policy that stops it.
    bind(api, "operator-all", "test-anything", OPERATOR)
    wait("the operator has every right", lambda: api.ask("GET", PLURALS["ValidatingAdmissionPolicy"], user=OPERATOR)[0] == 200)
    for row in (creates, operator_writes, decisions, empty_statuses, who, spec_stays, each_policy):
        row(t)
    print(f"{tried} attempts")
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
