"""Approvals of a server that speaks on stdin and stdout."""

import asyncio
import json

from clients import agents
from world import NotInTime, Seen, Server, policy, run, tool, until

SHOW = ["args.agent", "args.step"]


def document():
    return policy([
        tool("pay_invoice", approval={"show": SHOW, "hold": "20s", "pending": 50}),
        tool("wire_money", approval={"show": SHOW, "hold": "0s", "pending": 50}),
        tool("send_note"),
    ])


class Stdio(Seen):
    """`toolweir-sidecar stdio`, which its agent starts."""

    def __init__(self, stage, name, server, **options):
        super().__init__(stage, name, document(), **options)
        self.server = server

    def command(self):
        words = [*self.prefix, self.stage.sidecar_binary, "stdio", *self.flags, "--audit-log", self.audit, "--server", "bank", "--"]
        return [str(word) for word in [*words, *self.server.stdio()]]


async def through(scenario, stage, args, name):
    """One SDK: a call that waits, others beside it, the decision; then late."""
    server = Server(stage, f"{name}-bank")
    sidecar = Stdio(stage, name, server)
    async with agents(args, sidecar.command(), "stdio", stage)[name] as agent:
        person = sidecar.person
        waiting = asyncio.create_task(agent.call("pay_invoice", {"agent": agent.name, "step": "held"}))
        request = await person.sees(agent.name, "held")
        others = [await agent.call("send_note", {"n": n}) for n in range(20)]
        sent = "pay_invoice" in server.file.read_text()
        slowest = max(answer.took for answer in others)
        await person.approve(request)
        answer = await waiting
        again = await agent.call("wire_money", {"agent": agent.name, "step": "late"})
        await person.approve(again.approval)
        late = await agent.call("wire_money", {"agent": agent.name, "step": "late"})
        once_more = await agent.call("wire_money", {"agent": agent.name, "step": "late"})
        await person.deny(once_more.approval, "Enough.")
        told = await agent.call("wire_money", {"agent": agent.name, "step": "late"})
        scenario.each(f"{name}: a call waits, others pass beside it, and what is approved is delivered once", [
            ("others", all(other.passed for other in others), True),
            ("the server's stdin before", sent, False),
            ("approved while held", (answer.passed, len(server.calls("pay_invoice"))), (True, 1)),
            ("asked", again.reason, "approval_pending"),
            ("approved late", (late.passed, len(server.calls("wire_money"))), (True, 1)),
            ("asked anew", (once_more.reason, once_more.approval != again.approval), ("approval_pending", True)),
            ("denied", (told.reason, told.words.endswith("Enough.")), ("approval_denied", True)),
        ])
        scenario.in_time(slowest < 2, f"{name}: others took {slowest:.3f} s at most", "under 2 s")
        scenario.require(not sidecar.panics(), f"{name}: no panic")


async def cancelled(scenario, stage, args):
    """A call that the agent cancels leaves its request; it is never delivered by itself."""
    server = Server(stage, "cancelled-bank")
    sidecar = Stdio(stage, "cancelled", server)
    async with Pipe(sidecar) as pipe:
        arguments = {"agent": "a pipe", "step": "cancelled"}
        pipe.send(7, "tools/call", {"name": "pay_invoice", "arguments": arguments})
        name = await sidecar.person.sees("a pipe", "cancelled")
        pipe.send(None, "notifications/cancelled", {"requestId": 7})
        await until("it is no longer held", lambda: sidecar.metric("toolweir_approvals_held") == 0)
        await sidecar.person.approve(name)
        await asyncio.sleep(0.5)
        before = len(server.calls())
        pipe.send(8, "tools/call", {"name": "pay_invoice", "arguments": arguments})
        answer = await pipe.answer(8)
        scenario.each("a call that is cancelled while it waits is not delivered, and its request stands", [
            ("before", before, 0),
            ("repeated", ("result" in answer, len(server.calls())), (True, 1)),
        ])


class Pipe:
    """A client that writes its own lines."""

    def __init__(self, sidecar):
        self.sidecar = sidecar

    async def __aenter__(self):
        pipe = asyncio.subprocess.PIPE
        with open(self.sidecar.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self.sidecar.command(), stdin=pipe, stdout=pipe, stderr=log)
        if "--approvals-socket" in self.sidecar.flags:
            await until("the socket is there", self.sidecar.socket.exists)
        return self

    async def __aexit__(self, *_):
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def send(self, number, method, params):
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def answer(self, number, seconds=30):
        while line := await asyncio.wait_for(self.process.stdout.readline(), seconds):
            message = json.loads(line)
            if message.get("id") == number:
                return message
        raise NotInTime(f"the sidecar gave no answer to {number}")


async def shared_state(scenario, stage, args):
    """Two sidecars with one state folder: an approval of one is of no use to the other, at any time."""
    server = Server(stage, "shared-bank")
    first, second = Stdio(stage, "first", server), Stdio(stage, "second", server)
    second.flags[second.flags.index(second.state)] = first.state
    call = {"name": "wire_money", "arguments": {"agent": "a pipe", "step": "shared"}}
    reasons = []
    async with Pipe(first) as one:
        one.send(1, "tools/call", call)
        name = told(await one.answer(1)).get("approval", "").rsplit("/", 1)[-1]
        await first.person.approve(name)
        # It begins with what the first one kept, if it may.
        async with Pipe(second) as two:
            for number in (2, 3):
                two.send(number, "tools/call", call)
                reasons.append(told(await two.answer(number)).get("reason"))
            one.send(4, "tools/call", call)
            reasons.append(told(await one.answer(4)).get("reason"))
    delivered = len(server.calls())
    scenario.require(delivered <= 1, f"two sidecars that share a state folder deliver an approved call {delivered} times at most", reasons)


def told(message):
    return (message.get("result", {}).get("_meta") or {}).get("toolweir.dev/denial", {})


async def same_user(scenario, stage, args):
    """Without --approvals-allow-same-user, whoever runs as the sidecar's user, such as the agent that starts it, cannot decide."""
    server = Server(stage, "same-user-bank")
    sidecar = Stdio(stage, "same-user", server, same_user=False)
    async with Pipe(sidecar) as pipe:
        pipe.send(1, "tools/call", {"name": "wire_money", "arguments": {"agent": "a pipe", "step": "own"}})
        name = told(await pipe.answer(1)).get("approval", "").rsplit("/", 1)[-1]
        listed = await sidecar.person.run("list")
        code, out, err = await sidecar.person.run("approve", name)
        pipe.send(2, "tools/call", {"name": "wire_money", "arguments": {"agent": "a pipe", "step": "own"}})
        answer = told(await pipe.answer(2))
        scenario.each("the sidecar's own user is refused unless a flag says otherwise", [
            ("asked", bool(name), True),
            ("list", (listed[0] != 0, name in listed[1]), (True, False)),
            ("approve", (code != 0, "--approvals-allow-same-user" in out + err), (True, True)),
            ("the call", (answer.get("reason"), len(server.calls())), ("approval_pending", 0)),
        ])


async def everything(scenario, stage, args):
    await asyncio.gather(*(through(scenario, stage, args, name) for name in ("py1", "py2", "ts1", "ts2")))
    for part in (cancelled, shared_state, same_user):
        await part(scenario, stage, args)


def stdio(scenario, stage, args):
    """The same over stdio: a call that waits blocks no other, the server's stdin sees it once it is approved."""
    run(everything(scenario, stage, args))
