"""What is to come of the steps behind each policy, in terms of what came of them without a sidecar."""

import json

POLICY = "tests/operations"
TOOL, PROMPT, MEMO = "This tool is for nobody.", "This prompt is internal.", "This memo is secret."
SAMPLING, ELICITATION, ROOTS = "Models are for people.", "Nobody is at the screen.", "Folders stay here."
ALLOWED = {"defaultAction": "Allow", "defaultActions": {"prompts": "Allow", "resources": "Allow", "requests": "Allow", "other": "Allow"}}


def denied(name, reason):
    return {"name": name, "action": "Deny", "reason": reason}


# What the policies of a server say; the server's name ends with the key.
POLICIES = {
    "allow": ALLOWED,
    "deny": ALLOWED | {
        "defaultActions": {"prompts": "Allow", "resources": "Allow", "requests": "Allow", "other": "Deny"},
        "tools": [denied("forbidden", TOOL)],
        "prompts": [denied("secret_*", PROMPT)],
        "resources": [{"uri": "memo://secret/*", "action": "Deny", "reason": MEMO}],
        "requests": [denied("sampling", SAMPLING), denied("elicitation", ELICITATION), denied("roots", ROOTS)],
    },
    "some": ALLOWED | {"requests": [denied("sampling", SAMPLING)]},
}

# The steps that are denied, each with words that the caller must be told.
DENIED = {
    "forbidden": TOOL, "forbidden task": TOOL,
    "sample": SAMPLING, "form": ELICITATION, "url": ELICITATION, "url first": ELICITATION, "roots": ROOTS,
    "asking prompt": ELICITATION, "asking task": ELICITATION,
    "secret prompt": PROMPT, "complete secret": PROMPT,
    "read secret": MEMO, "read secret from template": MEMO, "complete secret template": MEMO, "subscribe secret": MEMO, "unsubscribe secret": MEMO,
    "level": "logging/setLevel",
}
# What lists lose: where it is, and what tells an item that is hidden.
HIDDEN = {
    "tools": ("tools", "name", "forbidden"), "tools again": ("tools", "name", "forbidden"), "prompts": ("prompts", "name", "secret_review"),
    "resources": ("resources", "uri", "memo://secret/plan"), "templates": ("resourceTemplates", "uriTemplate", "memo://secret/{name}"),
}
# What the server tells about, and the client must not hear of.
SILENT = ("touch secret", "touch secret unasked")
# Differs from run to run, by itself.
CHANGING = ("taskId", "createdAt", "lastUpdatedAt", "elicitationId")


def steady(value):
    """Without what differs from run to run."""
    if isinstance(value, dict):
        return {key: "*" if key in CHANGING else steady(item) for key, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


def own_tasks(step):
    """The tasks in a list that the client was told of. TypeScript's server makes one, which never ends by itself, for a plain call too."""
    return [task for task in step.get("result", {}).get("tasks", ()) if task.get("ttl") is not None]


def compared(step):
    """What came of a step. What a server asks at once comes in any order."""
    result = step.get("result")
    if isinstance(result, dict) and isinstance(result.get("tasks"), list):
        step = step | {"result": step["result"] | {"tasks": own_tasks(step)}}
    return steady(step) | {"events": sorted(map(json.dumps, steady(step["events"])))}


def faults_direct(steps, record):
    """Without a sidecar every step is to have a result, all the notifications that it waits for, and what it is to be asked."""
    faults = missing(steps, record)
    for step in steps:
        came = record["steps"].get(step["name"], {"events": []})
        told = sum("told" in event for event in came["events"])
        if "result" not in came and step["name"] != "url first":
            faults.append(f"{step['name']}: {brief(came)}")
        if told != step["events"]:
            faults.append(f"{step['name']}: {told} notifications")
    return faults


def missing(steps, record):
    faults = [f"it ended: {record['ended']}"] if record["ended"] else []
    return faults + [f"{step['name']}: it was not taken" for step in steps if step["name"] not in record["steps"]]


def faults_same(steps, record, direct, names=None):
    """All steps, or these, are to end as without a sidecar."""
    faults = missing(steps, record)
    for name in names or record["steps"]:
        here, there = compared(record["steps"][name]), compared(direct["steps"][name])
        if here != there:
            faults.append(f"{name}: {brief(here)}, not {brief(there)}")
    return faults


def faults_denied(steps, record, direct):
    faults = missing(steps, record)
    for name, came in record["steps"].items():
        faults += [f"{name}: {fault}" for fault in faults_denied_step(name, came, direct["steps"].get(name), record["protocol"])]
    return faults


def faults_denied_step(name, came, direct, protocol):
    if any("asked" in event for event in came["events"]):
        yield f"the client was asked: {brief(came)}"
    if name in HIDDEN:
        where, key, hidden = HIDDEN[name]
        left = [item for item in direct["result"][where] if item[key] != hidden]
        found = came.get("result", {}).get(where)
        if found != left or len(left) == len(direct["result"][where]):
            yield f"{brief(came)}, without {hidden}"
    elif name in SILENT:
        if compared(came) != compared(direct | {"events": []}):
            yield f"{brief(came)}, in silence"
    elif name == "all":
        # Some servers ask one by one, and end with the first error.
        told = json.dumps(came)
        if f"Denied by policy {POLICY}" not in told or not any(reason in told for reason in (SAMPLING, ELICITATION, ROOTS)):
            yield brief(came)
    elif name == "tasks":
        if len(own_tasks(came)) != len(own_tasks(direct)) - 1:
            yield f"{brief(came)}, without the task that was denied"
    elif name == "unsubscribe secret" and protocol >= "2026":
        # There is no such request: what was never open is closed.
        pass
    elif name == "unknown task":
        # No policy denies it: nobody made it.
        if "Denied: the task 0123456789abcdef" not in json.dumps(came):
            yield f"{brief(came)}, that says that nobody knows it"
    elif name == "forbidden task" and "did not run as a task" in json.dumps(came):
        # FastMCP's client has words of its own for a tool result where it wants a task.
        pass
    elif name in DENIED:
        told = json.dumps(came)
        if f"Denied by policy {POLICY}" not in told or DENIED[name] not in told or "pay.example" in told:
            yield f"{brief(came)}, that says {DENIED[name]!r}"
    elif compared(came) != compared(direct):
        yield f"{brief(came)}, not {brief(direct)}"


def faults_some(steps, record, direct):
    """Only models may not be asked. In the modern era a question is cut out of several, and the rest is answered."""
    faults = missing(steps, record)
    sampled = [event for came in record["steps"].values() for event in came["events"] if event.get("asked") == "sampling/createMessage"]
    faults += ["the client was asked for a sample"] * bool(sampled)
    for name in ("sample", "all"):
        told = json.dumps(record["steps"].get(name))
        if f"Denied by policy {POLICY}" not in told or SAMPLING not in told:
            faults.append(f"{name}: {told[:300]}, that says {SAMPLING!r}")
    # Not again in the round that is denied.
    asked = sorted(event.get("asked", "") for event in record["steps"].get("all", {"events": []})["events"])
    faults += [f"all: the client was asked for {asked}"] * (asked != ["elicitation/create", "roots/list"])
    others = [name for name in record["steps"] if name not in ("sample", "all")]
    return faults + faults_same([], record, direct, others)


def brief(came):
    text = json.dumps(came)
    return text if len(text) < 400 else f"{text[:400]}..."
