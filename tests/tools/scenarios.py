"""The way of docs/tools.md with real servers: `toolweir tools`, `toolweir suggest`, and a client of the official SDK behind the sidecar with
what was suggested. Files in golden/ hold what a person agreed with; what a server did, its own files say."""

import argparse
import asyncio
import difflib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import yaml

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "shared")]
from agent import call_all, call_often, listed  # noqa: E402
import pages  # noqa: E402
from evidence import faults  # noqa: E402
from processes import Broken, PrintedChecks, Stage, free_port, printed_summary, wait_until, with_second_try  # noqa: E402
from servers import SERVERS, listens  # noqa: E402

GOLDEN = HERE / "golden"
SEVERITY = {"Read": "Low", "Write": "Medium", "Execute": "High", "Destructive": "Critical", "Financial": "Critical", "Unknown": "Critical"}
A_MINUTE = {"Read": 60, "Write": 30, "Execute": 10}


class Scenario(PrintedChecks):
    """The record of one server: a line for each check."""

    def golden(self, file, text):
        """Holds a text against its file in golden/, or writes it there."""
        path = GOLDEN / file
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.write_text(text)
        held = path.read_text() if path.exists() else ""
        changes = difflib.unified_diff(held.splitlines(), text.splitlines(), f"golden/{file}", "now", lineterm="")
        if not self.require(held == text, f"{file} is as in golden/", "UPDATE_GOLDEN=1 writes it, if a person agrees"):
            print("\n".join(changes), flush=True)


class Way:
    """One way to a server: how `toolweir` is told of it, and how a client gets there through the sidecar."""

    def __init__(self, args, stage, name, transport, target):
        self.args, self.stage, self.name, self.transport, self.target = args, stage, name, transport, target
        self.source = ["--", *target] if transport == "stdio" else [target]

    def toolweir(self, command, *flags):
        """What `toolweir COMMAND FLAGS SOURCE` prints. Notes to stderr are kept in toolweir.log."""
        with open(self.stage.dir / "toolweir.log", "ab") as log:
            words = [self.args.toolweir, command, *flags, *self.source]
            done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, timeout=120)
        if done.returncode:
            said = (self.stage.dir / "toolweir.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise Broken(f"{' '.join(map(str, words[1:]))} ended with {done.returncode}: {''.join(said)}")
        return done.stdout.decode()

    def log(self):
        """The file for what a program says that a client starts."""
        return open(self.stage.dir / "started.log", "a")

    def governed(self, policy):
        """Where a client finds the server behind a sidecar with this policy: a command, or a URL."""
        if self.transport == "stdio":
            audit = self.stage.dir / "audit.jsonl"
            flags = ["--policy", policy, "--server", self.name, "--audit-log", audit, "--log-level", "warn"]
            return [str(word) for word in [self.args.sidecar, "stdio", *flags, "--", *self.target]]
        listen, metrics, admin = free_port(), free_port(), free_port()
        flags = ["--listen", f"127.0.0.1:{listen}", "--metrics-listen", f"127.0.0.1:{metrics}", "--admin-listen", f"127.0.0.1:{admin}"]
        self.stage.start(f"sidecar-{self.transport}", [self.args.sidecar, "run", "--policy", policy, *flags])
        wait_until("the sidecar listens", lambda: listens(listen))
        self.observed = f"http://127.0.0.1:{admin}/observed"
        return f"http://127.0.0.1:{listen}/{self.name}"


def goes_the_way(scenario, stage, args):
    """Everything about one server."""
    name = scenario.name
    server = SERVERS[name](stage)
    targets = {"stdio": server.command} if server.command else {}
    ways = [Way(args, stage, name, transport, target) for transport, target in (targets | server.urls).items()]
    first = ways[0]
    definitions = asyncio.run(listed(first.target, first.log()))

    table = first.toolweir("tools")
    scenario.golden(f"{name}.tools.txt", table)
    for way in ways[1:]:
        scenario.require(way.toolweir("tools") == table, f"the same table over {way.transport}")
    tools = json.loads(first.toolweir("tools", "-o", "json"))
    says_why(scenario, tools, definitions, table)

    policy = suggests(scenario, stage, first, tools, f"{name}.policy.yaml")
    judged = json.loads(first.toolweir("tools", "--policy", policy, "--server", name, "-o", "json"))
    scenario.golden(f"{name}.judged.txt", first.toolweir("tools", "--policy", policy, "--server", name))
    without = [{key: value for key, value in tool.items() if key != "policy"} for tool in judged]
    scenario.require(without == tools, "-o json with --policy adds what the policy does, and nothing else")

    through(scenario, first, server, policy, definitions, tools)
    if first.transport == "stdio" and "http" in server.urls:
        by_url = next(way for way in ways if way.transport == "http")
        other = suggests(scenario, stage, by_url, tools, f"{name}.{by_url.transport}.policy.yaml")
        through(scenario, by_url, server, other, definitions, tools)
    if name == "facebook":
        thirty_of_thirty_five(scenario, first, server, policy)
        fits(scenario, stage, first, policy)


def says_why(scenario, tools, definitions, table):
    """`-o json` says the same as the table, and its evidence is what stands in the definitions."""
    names = [tool["name"] for tool in tools]
    scenario.require(names == [one["name"] for one in definitions], f"{len(names)} tools, in the order in which the SDK lists them")
    wrong = [tool["name"] for tool in tools if SEVERITY[tool["class"]] != tool["severity"]]
    scenario.require(not wrong, "each severity is that of the class", wrong)
    rows = [line.split()[:3] for line in table.splitlines()[1:]]
    scenario.require(rows == [[tool["name"], tool["class"], tool["severity"]] for tool in tools], "the table has the same classes", rows)
    found = [fault for tool, definition in zip(tools, definitions) for fault in faults(tool, definition)]
    spans = sum(len(tool["evidence"]) for tool in tools)
    scenario.require(not found, f"{spans} pieces of evidence stand where they are said to stand", found)


def suggests(scenario, stage, way, tools, file):
    """The file of the suggested policy, which compiles, is stable, and treats each class as docs/tools.md says."""
    text = way.toolweir("suggest", "--server", way.name)
    scenario.require(way.toolweir("suggest", "--server", way.name) == text, f"{way.transport}: suggest prints the same again")
    # Port and folder of a run are not those of the next. The files in golden/ have those of the docs.
    plain = re.sub(r"http://127\.0\.0\.1:\d+/", "http://127.0.0.1:8000/", text)
    scenario.golden(file, plain.replace(str(stage.dir), "/data"))
    path = stage.dir / f"policy-{way.transport}.yaml"
    path.write_text(text)
    check = subprocess.run([way.args.sidecar, "check", path], capture_output=True, text=True)
    scenario.require(check.returncode == 0, "check passes", check.stderr)
    policy = yaml.safe_load(text)
    server = policy["spec"]["servers"][0]
    scenario.require(server.get("url") == (None if way.transport == "stdio" else way.target), "the url is that of the server", server.get("url"))
    scenario.require(server.get("defaultAction", "Deny") == "Deny", "what is not listed is denied")
    wrong = []
    for tool, entry in zip(tools, server["tools"], strict=True):
        limits = [{"max": A_MINUTE[tool["class"]], "window": "minute"}] if tool["class"] in A_MINUTE else None
        action = "Allow" if limits else "Deny"
        right = entry["name"] == tool["name"] and entry.get("limits") == limits and entry.get("action", "Allow") == action
        if not right or (action == "Deny") != ("reason" in entry):
            wrong.append(entry)
    scenario.require(not wrong, "each class gets its action and limit", wrong)
    return path


def through(scenario, way, server, policy, definitions, tools):
    """A client of the SDK behind the sidecar: what it sees, what works, and what is denied in words."""
    allowed = [tool["name"] for tool in tools if tool["class"] in A_MINUTE]
    denied = server.forbidden() | {"no_such_tool": {}}
    denied = {tool["name"]: {} for tool in tools if tool["name"] not in [*allowed, *denied]} | denied
    names, answers, denials = asyncio.run(call_all(way.governed(policy), way.log(), server.calls(), denied))
    scenario.require(names == allowed, f"{way.transport}: the client sees {len(names)} of {len(definitions)} tools", f"{len(allowed)}, not {names}")
    for (tool, _, text), (failed, said, _) in zip(server.calls(), answers, strict=True):
        scenario.require(not failed and text in said, f"{way.transport}: {tool} answers {text!r}", f"not {said[:300]}")
    for what, holds in server.effects():
        scenario.require(holds, f"{way.transport}: {what}")
    for tool, (failed, said, denial) in denials.items():
        reason = "not_listed" if tool == "no_such_tool" else "denied"
        right = failed and denial.get("reason") == reason and said.startswith(f"Denied by policy default/{way.name}: ")
        scenario.require(right, f"{way.transport}: {tool}: {said}", f"{reason}, not {denial}")
    for what, holds in server.harm():
        scenario.require(not holds, f"{way.transport}: it did not happen that {what}")


def thirty_of_thirty_five(scenario, way, server, policy):
    """The number of the original page: 35 direct messages, of which 30 arrive."""
    message = {"user_id": "2001", "message": "Sourdough at seven."}
    failed, reasons = asyncio.run(call_often(way.governed(policy), way.log(), "send_dm_to_user", message, server.CALLS))
    over = server.CALLS - server.DELIVERED
    scenario.require(failed == [False] * server.DELIVERED + [True] * over, f"{server.DELIVERED} of {server.CALLS} direct messages pass", failed)
    scenario.require(reasons == {"rate_limit"}, "the others are over the limit", reasons)
    delivered = server.delivered("send_dm_to_user")
    scenario.require(delivered == server.DELIVERED, f"{delivered} were delivered, says the server's log", server.DELIVERED)


def fits(scenario, stage, way, policy):
    """A policy that is fitted to an agent lets it go on as before, and not twice as fast."""
    tool, peak = "send_dm_to_user", 7
    message = {"user_id": "2001", "message": "Rye at eight."}
    failed, _ = asyncio.run(call_often(way.governed(policy), way.log(), tool, message, peak))
    observed = stage.dir / "observed.json"
    with urlopen(way.observed) as answer:
        observed.write_bytes(answer.read())
    fitted = stage.dir / "fitted.yaml"
    fitted.write_text(way.toolweir("suggest", "--server", way.name, "--observed", observed))
    entries = yaml.safe_load(fitted.read_text())["spec"]["servers"][0]["tools"]
    right = [{"name": tool, "limits": [{"max": 2 * peak - 1, "window": "minute"}]}]
    what = f"after {peak} calls, suggest --observed allows this tool alone, less than twice as fast"
    scenario.require(not any(failed) and entries == right, what, entries)
    failed, _ = asyncio.run(call_often(way.governed(fitted), way.log(), tool, message, peak))
    scenario.require(not any(failed), "the agent goes on as before, and is not denied", failed)
    failed, _ = asyncio.run(call_often(way.governed(fitted), way.log(), tool, message, 2 * peak))
    scenario.require(failed == [False] * (2 * peak - 1) + [True], "twice as fast, it is", failed)


def run(name, number, args):
    """One try of a server, with a folder of its own."""
    scenario = Scenario(name)
    print(f"\n== {name}: {inspect.getdoc(SERVERS[name])}", flush=True)

    def body():
        with Stage(args.sidecar, None, args.dir / (name if number == 1 else f"{name}-{number}")) as stage:
            goes_the_way(scenario, stage, args)

    return scenario.run(body, (Broken, OSError))


def held_pages():
    """The record of the pages."""
    scenario = Scenario("pages")
    print(f"\n== pages: {inspect.getdoc(pages)}", flush=True)
    found, looked = pages.faults()
    scenario.require(looked > 0 and not found, f"{looked} rows and entries in {', '.join(pages.PAGES)} are those of golden/", found)
    return scenario


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", required=True)
    parser.add_argument("--toolweir", required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("servers", nargs="*", help=f"{', '.join(SERVERS)}; the default is all")
    args = parser.parse_args()
    if unknown := [name for name in args.servers if name not in SERVERS]:
        parser.error(f"there is no server {unknown[0]}; there are {', '.join(SERVERS)}")
    # What was started ends with this process, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    records = [with_second_try(lambda number, name=name: run(name, number, args)) for name in args.servers or SERVERS]
    if not args.servers:
        records.append(held_pages())
    return printed_summary(records, args.dir)


if __name__ == "__main__":
    sys.exit(main())
