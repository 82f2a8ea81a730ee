"""What goes wrong beside: the state cannot be kept, nobody can be asked, the server is away. Nothing passes that was not approved, nor twice."""

import asyncio
import contextlib
import json
import os
import subprocess
from pathlib import Path

from stdio import Pipe, Stdio, told
from world import Broken, Server, Sidecar, call, policy, run, tool, until

# The state folder is a file system of its own, which nobody else sees.
MOUNTED = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"']


def document(server):
    approval = {"show": ["args.step"], "hold": "0s", "pending": 50}
    return policy([tool("wire_money", approval=approval), tool("send_note")], server.url())


class Folder:
    """The state folder of a sidecar as that sees it."""

    def __init__(self, sidecar):
        self.sidecar = sidecar
        self.seen = Path(f"/proc/{sidecar.process.pid}/root") / sidecar.state.relative_to("/")

    def inside(self, *command):
        command = ["nsenter", "-t", self.sidecar.process.pid, "--mount", *command, self.sidecar.state]
        subprocess.run([str(word) for word in command], check=True, timeout=10)

    @contextlib.contextmanager
    def read_only(self):
        # Over it, since one in which a file is open cannot be made read-only.
        self.inside("mount", "-t", "tmpfs", "-o", "ro", "none")
        yield
        self.inside("umount")

    @contextlib.contextmanager
    def full(self):
        fill = self.seen / "fill"
        with open(fill, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        if os.statvfs(self.seen).f_bavail:
            raise Broken("the file system is not full")
        yield
        fill.unlink()


async def unwritable(scenario, stage, fault):
    server = Server(stage, f"{fault}-bank")
    sidecar = Sidecar(stage, fault, document(server), prefix=[*MOUNTED, "size=256k", stage.dir / f"{fault}.state"])
    folder, person, what = Folder(sidecar), sidecar.person, fault.replace("-", " ")
    before = {step: (await call(sidecar, "wire_money", {"step": step})).approval for step in ("approved", "waiting", "denied")}
    await person.approve(before["approved"])
    with getattr(folder, fault.replace("-", "_"))():
        fresh = await call(sidecar, "wire_money", {"step": "fresh"})
        listed = await person.listed()
        approved = await call(sidecar, "wire_money", {"step": "approved"})
        decisions = [await person.run("approve", before["waiting"]), await person.run("deny", before["denied"])]
        waiting = await call(sidecar, "wire_money", {"step": "waiting"})
        other = await call(sidecar, "send_note", {})
    scenario.each(f"the state folder is {what}: nothing passes that needs a person", [
        ("a new call", (fresh.reason, "state" in fresh.words), ("approval_unavailable", True)),
        ("its request", [line for line in listed.values() if "fresh" in line], []),
        ("an approved one", approved.reason, "approval_unavailable"),
        ("decisions", [code != 0 and bool(out + err) for code, out, err in decisions], [True, True]),
        ("what was to be approved", waiting.passed, False),
        ("delivered", len(server.calls("wire_money")), 0),
        ("calls that need nobody", other.passed, True),
        ("metrics", sidecar.outcomes().get("unavailable", 0) >= 1, True),
        ("the log", sidecar.said("approvals.json"), True),
    ])
    approved = await call(sidecar, "wire_money", {"step": "approved"})
    once_more = await call(sidecar, "wire_money", {"step": "approved"})
    # Who was told that it cannot be kept may have denied it next: it never counts.
    again = await person.run("approve", before["waiting"])
    waiting = await call(sidecar, "wire_money", {"step": "waiting"})
    scenario.each(f"no longer {what}: what was approved is delivered once, and what could not be approved is not", [
        ("approved before", (approved.passed, once_more.reason), (True, "approval_pending")),
        ("what could not be approved", (again[0], waiting.passed, waiting.approval != before["waiting"]), (3, False, True)),
        ("delivered", [arguments["step"] for _, _, arguments in server.calls("wire_money")], ["approved"]),
    ])
    scenario.require(not sidecar.panics(), "no panic")


async def never_writable(scenario, stage):
    """The state folder is read-only from the start."""
    server = Server(stage, "never-bank")
    sidecar = Sidecar(stage, "never", document(server), prefix=[*MOUNTED, "ro", stage.dir / "never.state"])
    answers = [await call(sidecar, "wire_money", {"step": "never"}) for _ in range(2)]
    other = await call(sidecar, "send_note", {})
    scenario.each("with a state folder that is read-only from the start, nothing passes that needs a person", [
        ("told", [answer.reason for answer in answers], ["approval_unavailable"] * 2),
        ("listed", await sidecar.person.listed(), {}),
        ("delivered", len(server.calls("wire_money")), 0),
        ("calls that need nobody", other.passed, True),
        ("the log", sidecar.said("approvals.json"), True),
    ])


async def nobody_to_ask(scenario, stage):
    """Without a socket."""
    server = Server(stage, "alone-bank")
    sidecar = Sidecar(stage, "alone", document(server), socket=False)
    over_stdio = Stdio(stage, "alone-stdio", server, socket=False)
    answers = [(answer := await call(sidecar, "wire_money", {"step": "alone"})) and (answer.reason, answer.words)]
    async with Pipe(over_stdio) as pipe:
        pipe.send(1, "tools/call", {"name": "wire_money", "arguments": {"step": "alone"}})
        message = await pipe.answer(1)
        answers.append((told(message).get("reason"), message["result"]["content"][0]["text"]))
    scenario.each("without --approvals-socket a call that needs a person is denied, and the message says so", [
        ("reasons", [reason for reason, _ in answers], ["approval_unavailable"] * 2),
        ("the remedy", ["--approvals-socket" in words for _, words in answers], [True, True]),
        ("delivered", len(server.calls()), 0),
    ])


async def restarts(scenario, stage):
    """Without a state folder a restart forgets; with one it does not, however the sidecar ends."""
    for name, state, kill in (("forgets", False, True), ("ended", True, False), ("killed", True, True)):
        server = Server(stage, f"{name}-bank")
        sidecar = Sidecar(stage, name, document(server), state=state)
        names = {step: (await call(sidecar, "wire_money", {"step": step})).approval for step in ("approved", "waiting", "denied", "used")}
        for step in ("approved", "used"):
            await sidecar.person.approve(names[step])
        await sidecar.person.deny(names["denied"], "No.")
        used = await call(sidecar, "wire_money", {"step": "used"})
        sidecar.restart(kill)
        after = {step: await call(sidecar, "wire_money", {"step": step}) for step in names}
        right = {"approved": None, "waiting": "approval_pending", "denied": "approval_denied", "used": "approval_pending"}
        if not state:
            right = dict.fromkeys(names, "approval_pending")
        scenario.each(f"after a restart ({name}), all is as it was{'' if state else ' not: nothing is used, and all is asked anew'}", [
            ("used before", used.passed, True),
            ("told", {step: answer.reason for step, answer in after.items()}, right),
            ("the same request", after["waiting"].approval == names["waiting"], state),
            ("delivered", sorted(found["step"] for _, _, found in server.calls()), ["approved", "used"] if state else ["used"]),
        ])


def cut(text):
    return text[: len(text) // 2]


def altered(text):
    return text.replace("Pending", "Approved")


def other_form(text):
    head, body = text.split("\n", 1)
    return json.dumps(json.loads(head) | {"format": 999}) + "\n" + body


async def damaged(scenario, stage):
    """A state file that is not what the sidecar wrote."""
    for harm in (cut, altered, other_form):
        name = harm.__name__.replace("_", "-")
        server = Server(stage, f"{name}-bank")
        sidecar = Sidecar(stage, name, document(server))
        asked = await call(sidecar, "wire_money", {"step": "waiting"})
        sidecar.stop()
        file = sidecar.state / "approvals.json"
        text = file.read_text()
        file.write_text(harm(text))
        changed = file.read_text() != text
        sidecar.launch()
        await until(f"{name} is ready", sidecar.ready)
        answer = await call(sidecar, "wire_money", {"step": "waiting"})
        scenario.each(f"a state file that is damaged ({name}) approves nothing, and the log says so", [
            ("it is another", changed, True),
            ("told", (answer.passed, answer.reason in ("approval_pending", "approval_unavailable")), (False, True)),
            ("asked anew", answer.approval != asked.approval, True),
            ("delivered", len(server.calls()), 0),
            ("the log", sidecar.said("approvals.json"), True),
        ])


async def server_away(scenario, stage):
    """Where nothing was sent, the approval is there for the next call; where something may have been, it is used."""
    server = Server(stage, "away-bank")
    sidecar = Sidecar(stage, "away", document(server))
    asked = await call(sidecar, "wire_money", {"step": "away"})
    await sidecar.person.approve(asked.approval)
    server.process.kill()
    server.process.wait(10)
    failed = await call(sidecar, "wire_money", {"step": "away"})
    server.start()
    passed = await call(sidecar, "wire_money", {"step": "away"})
    await until("all steps are written", lambda: len(sidecar.steps(asked.approval)) >= 5)
    scenario.each("a call that could not be sent gives its approval back", [
        ("failed", failed.passed, False),
        ("steps", [step for step, _ in sidecar.steps(asked.approval)], ["requested", "approved", "used", "returned", "used"]),
        ("then", (passed.passed, len(server.calls())), (True, 1)),
    ])
    arguments = {"step": "lost", "hang_up": True}
    asked = await call(sidecar, "wire_money", arguments)
    await sidecar.person.approve(asked.approval)
    failed = await call(sidecar, "wire_money", arguments)
    anew = await call(sidecar, "wire_money", arguments)
    scenario.each("a call to which the server hung up is used: it may have been carried out", [
        ("failed", failed.passed, False),
        ("then", (anew.reason, anew.approval != asked.approval), ("approval_pending", True)),
        ("delivered", len(server.calls(arguments=arguments)), 1),
    ])


async def everything(scenario, stage):
    for fault in ("read-only", "full"):
        await unwritable(scenario, stage, fault)
    for part in (never_writable, nobody_to_ask, restarts, damaged, server_away):
        await part(scenario, stage)


def faults(scenario, stage, args):
    """The state folder is read-only or full, nobody can be asked, a restart, a damaged file, a server that is away. Needs root."""
    run(everything(scenario, stage))
