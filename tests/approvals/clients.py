"""Agents with real SDKs, from the call to the decision and back."""

import asyncio
import getpass
import json
import os
import sys

from world import HERE, NAMESPACE, Agent, Server, Sidecar, Wire, call, policy, run, tool, until

SHOW = ["args.agent", "args.step"]
REASON = "Not before Friday."


def document(server, message="Invoices over 500 need a person."):
    """`pay_invoice` waits, `wire_money` does not, `close_account` is in a hurry."""
    tools = [
        tool("pay_invoice", approval={"when": "args.amount > 500", "message": message, "show": SHOW, "hold": "20s", "pending": 50}),
        tool("wire_money", approval={"message": message, "show": SHOW, "hold": "0s", "pending": 50}),
        tool("close_account", approval={"show": SHOW, "hold": "0s", "expiry": "10s", "pending": 50}),
        tool("send_note"),
    ]
    return policy(tools, server.url(), events=(server.url("sse"), tools))


class World:
    """The sidecar, the server, and one agent of it."""

    def __init__(self, scenario, sidecar, server, agent):
        self.scenario, self.sidecar, self.server, self.agent = scenario, sidecar, server, agent
        self.person, self.name = sidecar.person, agent.name

    def arguments(self, step, **more):
        return {"agent": self.name, "step": step, **more}

    def delivered(self, step):
        return len([1 for _, _, arguments in self.server.calls() if (arguments["agent"], arguments["step"]) == (self.name, step)])

    def each(self, what, faults):
        return self.scenario.each(f"{self.name}: {what}", faults)

    async def waits(self, name, step, **more):
        """Makes a call that is not held, and returns its answer and the ID of the request."""
        answer = await self.agent.call(name, self.arguments(step, **more))
        return answer, await self.person.sees(self.name, step)


def told_to_wait(name):
    return f"Waiting for a person: {NAMESPACE}/{name}. Make the same call again in 30 s; it goes through once it is approved."


def lines_of(sidecar, name):
    """The audit lines of calls that went by this approval."""
    return [line for line in sidecar.lines() if line.get("event") != "approval" and line.get("approval", "").endswith(name)]


async def held(world):
    arguments = world.arguments("held", amount=900)
    waiting = asyncio.create_task(world.agent.call("pay_invoice", arguments))
    name = await world.person.sees(world.name, "held")
    small = await world.agent.call("pay_invoice", world.arguments("small", amount=500))
    early = world.delivered("held"), waiting.done()
    await world.person.approve(name)
    answer = await waiting
    await world.sidecar.step("used", name)
    who = f"uid {os.getuid()} ({getpass.getuser()})"
    own = await until("the line of the call", lambda: lines_of(world.sidecar, name))
    world.each("a call is held, listed, approved and delivered once; one of up to 500 passes beside it", [
        ("the small one", (small.passed, world.delivered("small")), (True, 1)),
        ("before the decision", early, (0, False)),
        ("what the agent gets", answer.passed, True),
        ("in time", answer.took < 20, True),
        ("delivered", world.delivered("held"), 1),
        ("steps", world.sidecar.steps(name), [("requested", None), ("approved", who), ("used", None)]),
        ("its audit line", [(line["tool"], line["decision"]) for line in own], [("pay_invoice", "allowed")]),
    ])


async def denied_while_held(world):
    waiting = asyncio.create_task(world.agent.call("pay_invoice", world.arguments("refused", amount=900)))
    name = await world.person.sees(world.name, "refused")
    await world.person.deny(name, REASON)
    answer = await waiting
    world.each("a call that is held is denied, and told why", [
        ("the answer", (answer.reason, answer.words), ("approval_denied", f"Denied by a person ({NAMESPACE}/{name}): {REASON}")),
        ("in time", answer.took < 20, True),
        ("delivered", world.delivered("refused"), 0),
    ])


async def late(world):
    answer, name = await world.waits("wire_money", "late")
    again, same = await world.waits("wire_money", "late")
    await world.person.approve(name)
    await asyncio.sleep(0.2)
    before = world.delivered("late")
    passed = await world.agent.call("wire_money", world.arguments("late"))
    after = world.delivered("late")
    anew, other = await world.waits("wire_money", "late")
    await world.person.deny(other)
    world.each("approved late, the same call is delivered once; then it is asked anew", [
        ("its words", answer.words, told_to_wait(name)),
        ("its _meta", (answer.reason, answer.approval), ("approval_pending", name)),
        ("when to repeat", answer.told.get("retryAfterSeconds"), 30),
        ("the tool and the policy", (answer.told.get("tool"), answer.told.get("policy")), ("wire_money", f"{NAMESPACE}/payments")),
        ("a repetition joins", (again.approval, same), (name, name)),
        ("before it is repeated", before, 0),
        ("what the agent gets", passed.passed, True),
        ("delivered", after, 1),
        ("once more", (anew.reason, anew.approval, other != name), ("approval_pending", other, True)),
        ("delivered in the end", world.delivered("late"), 1),
    ])


async def denied(world):
    _, name = await world.waits("wire_money", "denied")
    await world.person.deny(name, REASON)
    answers = [await world.agent.call("wire_money", world.arguments("denied")) for _ in range(3)]
    asked = [line for line in (await world.person.listed()).values() if world.name in line and "denied" in line]
    words = f"Denied by a person ({NAMESPACE}/{name}): {REASON}"
    world.each("denied, the same call is told why and asks nobody", [
        ("the answers", {(answer.reason, answer.words, answer.approval) for answer in answers}, {("approval_denied", words, name)}),
        ("asked anew", asked, []),
        ("delivered", world.delivered("denied"), 0),
    ])


async def order_of_keys(world):
    _, name = await world.waits("wire_money", "order", payee={"name": "Ann", "parts": [1, 2.5]}, amount=700)
    await world.person.approve(name)
    # Not `arguments`: all keys are in another order.
    other = {"amount": 700, "payee": {"parts": [1, 2.5], "name": "Ann"}, "step": "order", "agent": world.name}
    answer = await world.agent.call("wire_money", other)
    world.each("with its keys in another order it is the same call", [
        ("what the agent gets", answer.passed, True),
        ("delivered", [list(found) for _, _, found in world.server.calls() if found == other], [list(other)]),
    ])


async def changed_arguments(world):
    _, name = await world.waits("wire_money", "changed", amount=600)
    await world.person.approve(name)
    others = [{"amount": 601}, {"amount": "600"}, {}, {"amount": 600, "note": None}]
    answers = [await world.agent.call("wire_money", world.arguments("changed", **more)) for more in others]
    before = world.delivered("changed")
    passed = await world.agent.call("wire_money", world.arguments("changed", amount=600))
    for answer in answers:
        await world.person.deny(answer.approval)
    names = {answer.approval for answer in answers}
    world.each("with other arguments it is another call", [
        ("told", {answer.reason for answer in answers}, {"approval_pending"}),
        ("asked for each", len(names - {name, ""}), len(others)),
        ("delivered", before, 0),
        ("the approved one", (passed.passed, world.delivered("changed")), (True, 1)),
    ])


async def expired(world):
    """Waits for the end of two requests, one of which was approved."""
    _, unused = await world.waits("close_account", "unused")
    await world.person.approve(unused)
    answer, undecided = await world.waits("close_account", "undecided")
    await until("both ended", lambda: {("expired", unused), ("expired", undecided)} <= set(world.sidecar.steps()), 15, 0.1)
    code, out, err = await world.person.run("approve", undecided)
    told = await world.agent.call("close_account", world.arguments("undecided"))
    anew, other = await world.waits("close_account", "undecided")
    late = await world.agent.call("close_account", world.arguments("unused"))
    world.each("a request that nobody decides ends, and so does an approval that is not used", [
        ("when to repeat", 0 < answer.told.get("retryAfterSeconds", 0) <= 10, True),
        ("deciding too late", (code != 0, undecided in out + err), (True, True)),
        ("the next call", told.reason, "approval_expired"),
        ("the one after", (anew.reason, anew.approval, other != undecided), ("approval_pending", other, True)),
        ("the approved one", late.passed, False),
        ("delivered", world.delivered("undecided") + world.delivered("unused"), 0),
    ])


async def voided(world, change):
    _, name = await world.waits("wire_money", "voided")
    await world.person.approve(name)
    await change(world.name)
    await world.sidecar.step("voided", name)
    answer, other = await world.waits("wire_money", "voided")
    world.each("an approval ends with the state of the policy that asked", [
        ("told", (answer.reason, answer.approval, other != name), ("approval_pending", other, True)),
        ("delivered", world.delivered("voided"), 0),
    ])


async def elsewhere(world, other):
    """`other` is the same agent at another sidecar with the same policy."""
    _, name = await world.waits("wire_money", "elsewhere")
    await world.person.approve(name)
    answer, theirs = await other.waits("wire_money", "elsewhere")
    before = world.delivered("elsewhere")
    code, _, err = await other.person.run("approve", name)
    passed = await world.agent.call("wire_money", world.arguments("elsewhere"))
    world.each("an approval is of no use to another pod", [
        ("told", (answer.reason, theirs != name), ("approval_pending", True)),
        ("delivered", before, 0),
        ("its name at the other", (code != 0, name in err), (True, True)),
        ("at its own", (passed.passed, world.delivered("elsewhere")), (True, 1)),
    ])


async def over_events(world):
    """HTTP+SSE: clients give up on a POST in seconds, so that nothing is held."""
    answer = await world.agent.call("pay_invoice", world.arguments("events", amount=900))
    name = await world.person.sees(world.name, "events")
    await world.person.approve(name)
    passed = await world.agent.call("pay_invoice", world.arguments("events", amount=900))
    world.each("over HTTP+SSE a call is not held, and repeated it is delivered once", [
        ("the answer", (answer.reason, answer.approval, answer.took < 3), ("approval_pending", name, True)),
        ("repeated", (passed.passed, world.delivered("events")), (True, 1)),
    ])


async def hung_up(scenario, sidecar, server):
    arguments = {"agent": "nobody", "step": "gone", "amount": 900}
    async with Wire(sidecar) as wire:
        wire.send("pay_invoice", arguments)
        await wire.writer.drain()
        name = await sidecar.person.sees("nobody", "gone")
    await until("the call is no longer held", lambda: sidecar.metric("toolweir_approvals_held") == 0)
    stands = name in await sidecar.person.listed()
    await sidecar.person.approve(name)
    await asyncio.sleep(0.5)
    before = len(server.calls(arguments=arguments))
    answer = await call(sidecar, "pay_invoice", arguments)
    scenario.each("an agent that hangs up leaves its request, and nothing is delivered for it until it calls again", [
        ("listed", stands, True),
        ("delivered before", before, 0),
        ("repeated", (answer.passed, len(server.calls(arguments=arguments))), (True, 1)),
    ])


# Calls of which two would have one hash, or no certain meaning; a part of what each is told.
NOT_EXACT = {
    "an integer over 2^53": '{"agent":"odd","n":9007199254740993}',
    "a number with more digits than fit": '{"agent":"odd","n":0.10000000000000000555}',
    "-0": '{"agent":"odd","n":-0}',
    "a key twice": '{"agent":"odd","n":1,"n":2}',
    "half of a surrogate pair": '{"agent":"odd","n":"\\ud83d"}',
}


async def not_exact(scenario, sidecar, server):
    before = len(server.calls())
    answers = {what: await call(sidecar, "wire_money", text) for what, text in NOT_EXACT.items()}
    faults = [(what, answer.reason, "malformed") for what, answer in answers.items()]
    faults += [("listed", [line for line in (await sidecar.person.listed()).values() if "odd" in line], [])]
    scenario.each("calls that cannot be told apart by their hash are denied, and nobody is asked", [*faults, ("delivered", len(server.calls()), before)])
    # Notations of one value are one call.
    first = await call(sidecar, "wire_money", '{"agent":"odd","step":"notation","n":1}')
    await sidecar.person.approve(first.approval)
    same = await call(sidecar, "wire_money", ' {"n" : 1.0e0,\n"agent":"\\u006fdd", "step":"notation" } ')
    found = len([1 for _, _, found in server.calls() if found["agent"] == "odd"])
    scenario.each("another notation of the same arguments is the same call", [("passed", (same.passed, found), (True, 1))])


def agents(args, url, transport, stage):
    """Each SDK as an agent at this URL, or with this command."""
    target = [url if isinstance(url, str) else json.dumps([str(word) for word in url]), transport]
    programs = {
        "py1": ([args.mcp1, HERE / "agent1.py"], {}),
        "py2": ([args.mcp2, HERE / "agent2.py"], {}),
        "ts1": (["node", args.npm / "agent.mjs"], {"SDK": "1"}),
        "ts2": (["node", args.npm / "agent.mjs"], {"SDK": "2"}),
    }
    return {
        name: Agent(f"agent-{name}", [*command, *target], stage.dir / f"{name}-{transport}.log", env)
        for name, (command, env) in programs.items()
    }


class Gate:
    """Opens once so many have come to it; the last one to come does what is to be done first."""

    def __init__(self, count, act):
        self.left, self.act, self.opened = count, act, asyncio.Event()

    async def __call__(self, _):
        self.left -= 1
        if not self.left:
            self.act()
            self.opened.set()
        await self.opened.wait()


async def one(world, change, other):
    """All that an agent does. While its requests expire, it does the rest."""
    ends = asyncio.create_task(expired(world))
    try:
        for part in (held, denied_while_held, late, denied, order_of_keys, changed_arguments):
            await part(world)
        if other:
            await elsewhere(world, other)
    finally:
        await ends
    await voided(world, change)


async def all_agents(scenario, stage, args):
    server = Server(stage)
    sidecar = Sidecar(stage, "sidecar", document(server))
    neighbour = Sidecar(stage, "neighbour", document(server))
    found = agents(args, sidecar.url(), "http", stage)
    there = agents(args, neighbour.url(), "http", stage)
    change = Gate(len(found), lambda: sidecar.becomes(document(server, "Invoices over 500 need two people.")))
    async with asyncio.TaskGroup() as tasks:
        for name in found:
            tasks.create_task(begin(scenario, (sidecar, neighbour), server, (found[name], there[name]), change))
        tasks.create_task(others(scenario, stage, args, sidecar, server))
    requested = {outcome: len([1 for step, _ in sidecar.steps() if step == outcome]) for outcome in ("requested", "approved", "denied", "used")}
    counted = {outcome: sidecar.outcomes().get(outcome, 0) for outcome in requested}
    scenario.same("the metrics count what the audit log says", counted, requested)
    scenario.require(not sidecar.panics() and not neighbour.panics(), "no panic")


async def begin(scenario, sidecars, server, pair, change):
    here, there = pair
    async with here, there:
        worlds = [World(scenario, sidecar, server, agent) for sidecar, agent in zip(sidecars, pair)]
        await one(worlds[0], change, worlds[1])


async def others(scenario, stage, args, sidecar, server):
    """What needs no other agent than one."""
    async with agents(args, sidecar.url("events"), "sse", stage)["py1"] as agent:
        agent.name = "agent-events"
        await over_events(World(scenario, sidecar, server, agent))
    await hung_up(scenario, sidecar, server)
    await not_exact(scenario, sidecar, server)


def clients(scenario, stage, args):
    """Agents with the SDKs of Python 1.x and 2.x and of TypeScript: approved within hold, late, denied, expired, voided, changed."""
    run(all_agents(scenario, stage, args))
