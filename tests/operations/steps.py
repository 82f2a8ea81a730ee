"""The steps that every client takes in one session. They are handed over as JSON; a client prints what came of each of them:
`{"protocol": VERSION, "steps": {NAME: {"result": ...} or {"error": ..., "message": ...}, with "events": what its server asked it, and told it}}`.
"""

# What the client answers its server.
SAMPLED = "A model says yes."
FORM = {"name": "Ann"}
ROOT = "file:///home/agent"


def step(name, op, *args, eras="legacy modern", events=0, denied_only=False, tasks=False):
    """`events`: how many notifications the client waits for before it goes on, for `patience` seconds; they may come after the answer."""
    fields = {"eras": eras.split(), "events": events, "patience": 10, "deniedOnly": denied_only, "tasks": tasks}
    return {"name": name, "op": op, "args": args} | fields


def call(name, tool, eras="legacy modern", events=0, **args):
    return step(name, "call", tool, args, eras=eras, events=events)


STEPS = [
    step("tools", "list_tools"),
    step("prompts", "list_prompts"),
    step("resources", "list_resources"),
    step("templates", "list_templates"),
    call("greet", "greet", text="Ann"),
    call("forbidden", "forbidden"),
    call("sample", "sample", text="May I?"),
    call("form", "ask_form"),
    call("url", "ask_url"),
    # An error of 2025-11-25 asks, too: the call is to be repeated after the user was at the URL.
    call("url first", "ask_url_first", eras="legacy"),
    call("roots", "roots"),
    call("all", "ask_all"),
    step("prompt", "get_prompt", "review", {"language": "rust"}),
    step("secret prompt", "get_prompt", "secret_review", {"language": "rust"}),
    step("asking prompt", "get_prompt", "interview", {}),
    step("complete", "complete", {"type": "ref/prompt", "name": "review"}, "language", "py"),
    step("complete secret", "complete", {"type": "ref/prompt", "name": "secret_review"}, "language", "py"),
    step("complete template", "complete", {"type": "ref/resource", "uri": "memo://notes/{name}"}, "name", "ap"),
    step("complete secret template", "complete", {"type": "ref/resource", "uri": "memo://secret/{name}"}, "name", "ap"),
    step("read", "read", "memo://open/a"),
    step("read from template", "read", "memo://notes/apples"),
    step("read secret", "read", "memo://secret/plan"),
    step("read secret from template", "read", "memo://secret/apples"),
    step("subscribe", "subscribe", "memo://open/a"),
    step("subscribe secret", "subscribe", "memo://secret/plan"),
    call("touch", "touch", uri="memo://open/a", events=1),
    call("touch secret", "touch", uri="memo://secret/plan", events=1),
    call("touch secret unasked", "touch", uri="memo://secret/apples", everyone=True, eras="legacy", events=1),
    step("unsubscribe", "unsubscribe", "memo://open/a"),
    step("unsubscribe secret", "unsubscribe", "memo://secret/plan"),
    call("touch after", "touch", uri="memo://open/a"),
    step("level", "set_level", "warning", eras="legacy"),
    call("log", "log", text="Something happened.", events=1),
    step("task", "task", "slow", {"text": "0.1"}, eras="legacy", tasks=True),
    step("asking task", "task", "slow_ask", {}, eras="legacy", tasks=True),
    step("forbidden task", "task", "forbidden", {}, eras="legacy", tasks=True),
    step("cancelled task", "cancel_task", "slow", {"text": "60"}, eras="legacy", tasks=True),
    step("tasks", "list_tasks", eras="legacy", tasks=True),
    step("unknown task", "get_task", "0123456789abcdef", eras="legacy", tasks=True, denied_only=True),
    call("greet again", "greet", text="Bob"),
    step("tools again", "list_tools"),
]


# Tasks of 2026-07-28.
TASKS = [
    step("tools", "list_tools"),
    call("greet", "greet", text="Ann"),
    step("task", "task", "slow", {"text": "0.1"}),
    step("asking task", "task", "slow_ask", {}),
    step("forbidden task", "task", "forbidden", {}),
    step("cancelled task", "cancel_task", "slow", {"text": "60"}),
    step("unknown task", "get_task", "0123456789abcdef", denied_only=True),
    call("greet again", "greet", text="Bob"),
    step("tools again", "list_tools"),
]


def steps_for(*, tasks, denied):
    """`tasks`: whether both sides know those of 2025-11-25; `denied`: with the steps that only a policy that denies answers well."""
    return [one for one in STEPS if (tasks or not one["tasks"]) and (denied or not one["deniedOnly"])]
