"""From a server's tools to a policy, on the node: `kubectl toolweir tools`, `suggest` and `replay`."""

import json
import re
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from kube import SIDECAR, Failure, agent, expect, expect_in, kubectl, until

from . import scenario
from .denials import toolweir
from .policies import MESSAGE

# What the agent does in one burst, and the calls of it that are let through.
BURST = {"send_dm_to_user": 12, "get_page_posts": 3}
ARGUMENTS = {"send_dm_to_user": MESSAGE, "get_page_posts": {}}


@scenario(
    "tools", "`kubectl toolweir tools`, `suggest --from` and `replay`",
    "tools are read through the pod's sidecar, with their classes; limits fit what the agent did: as before nothing is denied, twice as fast it is; a replay makes the same decisions, and with half as much allowed denies what a naive count does",
)
def tools(cluster, measured):
    namespace = cluster.namespace("tools-read")
    cluster.apply(cluster.policy(namespace, defaultAction="Allow"))
    for name in ("watched", "steady", "hasty"):
        cluster.apply(agent(name), namespace=namespace)
    cluster.ready(namespace, "watched", "steady", "hasty")

    read_through_the_sidecar(namespace)
    expect("the burst that is watched", outcomes(BURST), burst(cluster, namespace, "watched"))
    suggested = toolweir("suggest", "-n", namespace, "--from", "watched", "--name", "facebook")
    limits = dict(re.findall(r"- name: (\w+)\n +limits: \[\{max: (\d+), window: minute\}", suggested))
    expect("the limits a minute", {tool: str(2 * calls - 1) for tool, calls in BURST.items()}, limits)

    expect_in("kubectl apply", "configured", kubectl("-n", namespace, "apply", "-f", "-", input=suggested))
    url = cluster.server_url()
    expect_in("the url of the suggestion", url, suggested)
    until(30, "only what was called is listed", lambda: sorted(cluster.tools(namespace, "hasty")) == sorted(BURST))
    expect("a burst as before", outcomes(BURST), burst(cluster, namespace, "steady"))
    twice = {tool: 2 * calls for tool, calls in BURST.items()}
    expect("a burst twice as fast", {tool: {"ok": 2 * calls - 1, "denied": 1} for tool, calls in BURST.items()}, burst(cluster, namespace, "hasty", twice))
    expect("a tool that was not called", {"delete_post": {"denied": 1}}, burst(cluster, namespace, "hasty", {"delete_post": 1}, {"post_id": "1"}))

    calls, halved = replayed(cluster, namespace, suggested)
    seen = ", ".join(f"{tool} {most} a minute" for tool, most in limits.items())
    measured.note(f"15 calls watched; limits {seen}; as before 0 denied, twice as fast 1 of each tool; the replay of {calls} calls agrees on all, and denies {halved} more where half of a burst is allowed, as a naive count does")


def outcomes(calls):
    return {tool: {"ok": number} for tool, number in calls.items()}


def burst(cluster, namespace, pod, calls=None, arguments=None):
    """What came of calls that come as fast as they can: for each tool, how often."""
    found = {}
    for tool, times in (calls or BURST).items():
        said = [answer["outcome"] for answer in cluster.call(namespace, pod, tool, times, **(arguments or ARGUMENTS.get(tool, {})))]
        found[tool] = {outcome: said.count(outcome) for outcome in sorted(set(said), reverse=True)}
    return found


def read_through_the_sidecar(namespace):
    table = toolweir("tools", "-n", namespace, "watched", "facebook")
    expect("the header", ["TOOL", "CLASS", "SEVERITY", "WHY"], table.splitlines()[0].split())
    expect_in("send_dm_to_user", "send_dm_to_user Write Medium", " ".join(table.split()))
    read = {tool["name"]: tool for tool in json.loads(toolweir("tools", "-n", namespace, "watched", "facebook", "-o", "json"))}
    expect("classes", ["Write", "Read", "Destructive"], [read[tool]["class"] for tool in ("send_dm_to_user", "get_page_posts", "delete_post")])
    for tool in read.values():
        if not tool["evidence"] and tool["class"] != "Unknown":
            raise Failure(f"{tool['name']} is {tool['class']} without evidence")
    refused = toolweir("tools", "-n", namespace, "watched", "nowhere", code=2)
    expect_in("a server that no policy names", "nowhere", refused)


def replayed(cluster, namespace, suggested):
    """Replays the logs by the policy in force, and by one that allows half of what is called in a burst. Returns the number of calls, and how
    many more are denied then."""
    logs = [cluster.logs(namespace, pod, SIDECAR) for pod in ("watched", "steady", "hasty")]
    calls = [[json.loads(line) for line in log.splitlines() if '"decision"' in line] for log in logs]
    half, tool = BURST["send_dm_to_user"] // 2, "send_dm_to_user"
    with TemporaryDirectory() as folder:
        file = Path(folder, "policy.yaml")

        def replay(text):
            file.write_text(text)
            return json.loads(toolweir("replay", "-n", namespace, "--since", "1h", "--policy", file, "-o", "json"))

        same = replay(suggested)
        stricter = replay(suggested.replace(f"max: {2 * BURST[tool] - 1}", f"max: {half}", 1))
    number = sum(map(len, calls))
    expect("calls, and those on which the policy in force decides as it did", (number, number, {}), (same["calls"], same["unchanged"], same["changed"]))
    denied = sum(naive(log, tool, half) for log in calls)
    expect("calls that half as much would deny", {"newly_denied": denied}, stricter["changed"])
    expect("of which tool, and why", [(tool, "rate_limit", denied)], [(change["tool"], change["reason"], change["calls"]) for change in stricter["changes"]])
    return number, denied


def naive(lines, tool, most):
    """How many calls of a log that were let through a limit of so many a minute would deny."""
    times, denied = [], 0
    for line in sorted(lines, key=lambda line: line["time"]):
        if line["tool"] != tool:
            continue
        now = datetime.fromisoformat(line["time"]).timestamp()
        if len([time for time in times if now - time < 60]) < most:
            times.append(now)
        elif line["decision"] == "allowed":
            denied += 1
    return denied
