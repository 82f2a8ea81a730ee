"""Every request and notification of MCP, of 2024-11-05 to 2026-07-28: its sender, its versions, what decides it, and samples.

`packages.py` compares the rows with what the SDKs know. A method that is new there needs a row here.
"""

from dataclasses import dataclass, field

LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN = ("2026-07-28",)
ALL = LEGACY + MODERN
TASKS = ("2025-11-25",)
ELICITATION = ("2025-06-18", "2025-11-25")

# What decides a row. The denied half of a row follows from it.
BASE = "base"  # the protocol itself: passes whatever policies say
LIST = "list"  # passes, and its answer is filtered
TOOL, PROMPT, RESOURCE, COMPLETION, LISTEN, TASK = "tool", "prompt", "resource", "completion", "listen", "task"
OTHER = "other"  # `defaultActions.other`
SAMPLING, ELICIT, ROOTS = "sampling", "elicitation", "roots"  # entries of `requests`
CLIENT_TASK = "client task"  # passes where the server may use sampling or elicitation at all
UPDATED = "updated"  # a notification about a resource, which is dropped where that may not be read
TOLD = "told"  # any other notification of a server: passes

# The names that the policies of this stage know.
CARRY, PAY, REVIEW = "carry", "pay", "review"
URI, TEMPLATE = "file:///data/notes.txt", "file:///data/{name}"
TASK_OF_CARRY, UNKNOWN_TASK = "task-of-carry", "task-of-nobody"

CLIENT, SERVER = "client", "server"
REQUEST, NOTIFICATION, INPUT = "request", "notification", "input request"


@dataclass(frozen=True)
class Row:
    sender: str
    kind: str
    method: str
    versions: tuple
    decided: str
    # Parameters by the name of the sample, or a function of the version that gives them.
    params: dict = field(default_factory=lambda: {"": None})
    # What answers it: a result, or a function of the version that gives it.
    result: object = None
    # Versions in which an extension has it: the types of the SDKs do not say what is valid there.
    extension: tuple = ()
    # True for what no package has: the sidecar meets methods of tomorrow, too.
    invented: bool = False

    def samples(self, version):
        """`(name, params)` of each sample of a version; params are `None` or an object, without `_meta`."""
        for name, params in self.params.items():
            params = params(version) if callable(params) else params
            if params is not ABSENT:
                yield name, params

    def answer(self, version):
        """The result of a request in a version."""
        result = self.result(version) if callable(self.result) else self.result or {}
        if version in MODERN and self.sender == CLIENT:
            result = {"resultType": "complete"} | result
        return result


# In place of params: this version has no such sample.
ABSENT = object()


def only(versions, params):
    return lambda version: params if version in versions else ABSENT


def cached(**fields):
    """A result that says in 2026-07-28 for how long it may be kept: not at all, which no proxy has to shorten."""
    return lambda version: fields | ({"ttlMs": 0, "cacheScope": "private"} if version in MODERN else {})


TASK_STATE = {
    "taskId": TASK_OF_CARRY, "status": "working", "createdAt": "2026-07-28T09:30:00Z", "lastUpdatedAt": "2026-07-28T09:30:01Z",
}
LEGACY_TASK = TASK_STATE | {"ttl": 60000}
MODERN_TASK = TASK_STATE | {"ttlMs": 60000}
IMPLEMENTATION = {"name": "methods", "version": "1.0"}
TEXT = {"type": "text", "text": "fünf \u2028 5"}
SAMPLE = {"messages": [{"role": "user", "content": TEXT}], "maxTokens": 100, "temperature": 0.5}
SAMPLED = {"role": "assistant", "content": TEXT, "model": "some-model"}
FORM = {
    "message": "Who?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ELICITED = {"action": "accept", "content": {"name": "Ada"}}
ROOTS_RESULT = {"roots": [{"uri": "file:///home", "name": "home"}]}
LEVEL = {"level": "info", "logger": "books", "data": {"text": "ledger is open"}}
SKILL = "skill://review/SKILL.md"
ACT = {"name": "anything", "uri": URI, "depth": 3}


def url(version):
    if version not in TASKS + MODERN:
        return ABSENT
    page = {"mode": "url", "message": "Sign in.", "url": "https://example.com/sign-in"}
    return page | ({"elicitationId": "e-1"} if version in TASKS else {})


def form(version):
    return FORM if version in ELICITATION[:1] else FORM | {"mode": "form"}


def the_task(task):
    return {"taskId": task}


def known_or_not(more=None):
    """A task that a call made that was let through, and one of which nobody knows."""
    return {"": the_task(TASK_OF_CARRY) | (more or {}), UNKNOWN_TASK: the_task(UNKNOWN_TASK) | (more or {})}


def client(method, versions, decided, params=None, result=None, **more):
    return Row(CLIENT, REQUEST, method, versions, decided, params or {"": None}, result, **more)


def client_tells(method, versions, decided, params=None, **more):
    return Row(CLIENT, NOTIFICATION, method, versions, decided, params or {"": None}, **more)


def server(method, versions, decided, params=None, result=None, **more):
    return Row(SERVER, REQUEST, method, versions, decided, params or {"": None}, result, **more)


def server_tells(method, versions, decided, params=None, **more):
    return Row(SERVER, NOTIFICATION, method, versions, decided, params or {"": None}, **more)


def needs_input(method, decided, params, result):
    """What a result of 2026-07-28 may ask of the client in place of a request."""
    return Row(SERVER, INPUT, method, MODERN, decided, params, result)


ROWS = [
    # Requests of the client.
    client(
        "initialize", LEGACY, BASE,
        {"": lambda version: {"protocolVersion": version, "capabilities": {"sampling": {}}, "clientInfo": IMPLEMENTATION}},
        lambda version: {"protocolVersion": version, "capabilities": {"logging": {}}, "serverInfo": IMPLEMENTATION},
    ),
    client("ping", LEGACY, BASE),
    client("server/discover", MODERN, BASE, {"": {}}, cached(supportedVersions=list(MODERN), capabilities={})),
    client("tools/list", ALL, LIST, {"": {"cursor": "0"}}, cached(tools=[{"name": PAY, "inputSchema": {"type": "object"}}])),
    client(
        "tools/call", ALL, TOOL,
        {"": {"name": PAY, "arguments": {"amount": 7.50, "to": "Zoë"}},
         "as a task": only(TASKS, {"name": PAY, "arguments": {}, "task": {"ttl": 60000}})},
        {"content": [TEXT], "isError": False},
    ),
    client("prompts/list", ALL, LIST, {"": {}}, cached(prompts=[{"name": REVIEW, "arguments": [{"name": "code"}]}])),
    client(
        "prompts/get", ALL, PROMPT, {"": {"name": REVIEW, "arguments": {"code": "x = 1"}}},
        {"messages": [{"role": "user", "content": TEXT}]},
    ),
    client("resources/list", ALL, LIST, {"": {}}, cached(resources=[{"uri": URI, "name": "notes"}])),
    client(
        "resources/templates/list", ALL, LIST, {"": {}}, cached(resourceTemplates=[{"uriTemplate": TEMPLATE, "name": "data"}]),
    ),
    client("resources/read", ALL, RESOURCE, {"": {"uri": URI}}, cached(contents=[{"uri": URI, "text": "bought milk"}])),
    client("resources/subscribe", LEGACY, RESOURCE, {"": {"uri": URI}}),
    client("resources/unsubscribe", LEGACY, RESOURCE, {"": {"uri": URI}}),
    client(
        "completion/complete", ALL, COMPLETION,
        {"of a prompt": {"ref": {"type": "ref/prompt", "name": REVIEW}, "argument": {"name": "code", "value": "x"}},
         "of a template": {"ref": {"type": "ref/resource", "uri": TEMPLATE}, "argument": {"name": "name", "value": "n"}}},
        {"completion": {"values": ["x = 1"], "total": 1, "hasMore": False}},
    ),
    client("logging/setLevel", LEGACY, OTHER, {"": {"level": "debug"}}),
    client(
        "subscriptions/listen", MODERN, LISTEN,
        {"": {"notifications": {"toolsListChanged": True, "resourceSubscriptions": [URI]}}},
        {"_meta": {"io.modelcontextprotocol/subscriptionId": "s-1"}},
    ),
    client(
        "tasks/get", TASKS + MODERN, TASK, known_or_not(),
        lambda version: LEGACY_TASK if version in TASKS else MODERN_TASK, extension=MODERN,
    ),
    client("tasks/result", TASKS, TASK, known_or_not(), {"content": [TEXT]}),
    client("tasks/list", TASKS, LIST, {"": {}}, {"tasks": [LEGACY_TASK]}),
    client("tasks/update", MODERN, TASK, known_or_not({"inputResponses": {"a": ELICITED}}), extension=MODERN),
    client(
        "tasks/cancel", TASKS + MODERN, TASK, known_or_not(),
        lambda version: LEGACY_TASK if version in TASKS else {}, extension=MODERN,
    ),
    client("skills/list", MODERN, OTHER, {"": {}}, cached(skills=[]), extension=MODERN),
    client(
        "skills/get", MODERN, OTHER, {"": {"uri": SKILL}},
        cached(skill={"uri": SKILL, "frontmatter": {"name": "review", "description": "d"}, "resources": "dynamic"}),
        extension=MODERN,
    ),
    client("resources/directory/read", MODERN, OTHER, {"": {"uri": "file:///data"}}, cached(resources=[]), extension=MODERN),
    client("acme/act", ALL, OTHER, {"": ACT}, {"done": True}, invented=True),
    # Notifications of the client.
    client_tells("notifications/initialized", LEGACY, BASE),
    client_tells("notifications/cancelled", ALL, BASE, {"": {"requestId": "of-nobody", "reason": "no longer needed"}}),
    client_tells("notifications/progress", LEGACY, BASE, {"": {"progressToken": "p-1", "progress": 0.5, "total": 1}}),
    client_tells("notifications/roots/list_changed", LEGACY, BASE),
    client_tells("notifications/tasks/status", TASKS, BASE, {"": LEGACY_TASK | {"taskId": "task-of-the-client"}}),
    client_tells("notifications/acme", ALL, OTHER, {"": ACT}, invented=True),
    # Requests of the server.
    server("ping", LEGACY, BASE),
    server("sampling/createMessage", LEGACY, SAMPLING, {"": SAMPLE}, SAMPLED),
    server("elicitation/create", ELICITATION, ELICIT, {"form": form, "url": url}, ELICITED),
    server("roots/list", LEGACY, ROOTS, result=ROOTS_RESULT),
    server("tasks/get", TASKS, CLIENT_TASK, {"": the_task("task-of-the-client")}, LEGACY_TASK),
    server("tasks/result", TASKS, CLIENT_TASK, {"": the_task("task-of-the-client")}, SAMPLED),
    server("tasks/list", TASKS, CLIENT_TASK, {"": {}}, {"tasks": [LEGACY_TASK]}),
    server("tasks/cancel", TASKS, CLIENT_TASK, {"": the_task("task-of-the-client")}, LEGACY_TASK),
    server("acme/act", LEGACY, OTHER, {"": ACT}, {"done": True}, invented=True),
    # Notifications of the server.
    server_tells("notifications/cancelled", ALL, TOLD, {"": {"requestId": "of-nobody", "reason": "no longer needed"}}),
    server_tells("notifications/progress", ALL, TOLD, {"": {"progressToken": "p-1", "progress": 0.5, "message": "half"}}),
    server_tells("notifications/message", ALL, TOLD, {"": LEVEL}),
    server_tells("notifications/prompts/list_changed", ALL, TOLD),
    server_tells("notifications/resources/list_changed", ALL, TOLD),
    server_tells("notifications/tools/list_changed", ALL, TOLD),
    server_tells("notifications/resources/updated", ALL, UPDATED, {"": {"uri": URI}}),
    server_tells("notifications/elicitation/complete", TASKS, TOLD, {"": {"elicitationId": "e-1"}}),
    server_tells("notifications/tasks/status", TASKS, TOLD, {"": LEGACY_TASK}),
    server_tells("notifications/subscriptions/acknowledged", MODERN, TOLD, {"": {"notifications": {"toolsListChanged": True}}}),
    server_tells("notifications/acme", ALL, OTHER, {"": ACT}, invented=True),
    # What results of the server ask for.
    needs_input("sampling/createMessage", SAMPLING, {"": SAMPLE}, SAMPLED),
    needs_input("elicitation/create", ELICIT, {"form": form, "url": url}, ELICITED),
    needs_input("roots/list", ROOTS, {"": {}}, ROOTS_RESULT),
]
