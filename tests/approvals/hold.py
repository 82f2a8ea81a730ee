"""What calls that wait for a person cost, beside their bodies, and what they cost other calls."""

import asyncio
import json
import socket

from world import Broken, Server, Sidecar, Wire, call, free_port, policy, run, tool, until, wait_until

CALLS, REQUESTS = 200, 50
MEMORY_KIB, RATIO = 8 * 1024, 1.1
BLOCKS, BLOCK = 120, 400
# What else the machine does would be the whole p99.
URGENT = ["nice", "-n", "-20"]


def bench_server(stage):
    port = free_port()
    stage.start("bench", [*URGENT, stage.bench, "upstream", "--listen", f"127.0.0.1:{port}"])
    wait_until("the server of the load listens", lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True)
    return f"http://127.0.0.1:{port}/mcp"


def document(server, bench):
    approval = {"when": "args.amount > 500", "show": ["args.number"], "hold": "50s", "pending": 50}
    tools = [tool("pay_invoice", approval=approval, maxConcurrent=4), tool("send_note")]
    return policy(tools, server.url(), bench=(bench, [tool("send_message", limits=[{"max": 100_000_000, "window": "hour"}])]))


class Crowd:
    """So many calls that wait, each on a new connection of its own, some for the same request."""

    def __init__(self, sidecar):
        self.sidecar, self.wires, self.calls = sidecar, [], []

    async def __aenter__(self):
        for _ in range(CALLS):
            self.wires.append(await Wire(self.sidecar).open())
        return self

    async def __aexit__(self, *_):
        for wire in self.wires:
            wire.close()
        for task in self.calls:
            task.cancel()

    @staticmethod
    def arguments(number):
        return {"number": number % REQUESTS, "amount": 501, "text": "x" * 900}

    async def wait(self):
        """Makes the calls, and returns the bytes of their bodies."""
        self.calls = [
            asyncio.create_task(wire.call("pay_invoice", self.arguments(number))) for number, wire in enumerate(self.wires)
        ]
        await until(f"{CALLS} calls wait", lambda: self.held() == CALLS)
        return CALLS * len(json.dumps(self.arguments(0)))

    def held(self):
        return self.sidecar.metric("toolweir_approvals_held")


async def waiting(scenario, stage):
    server, bench = Server(stage), bench_server(stage)
    document_ = document(server, bench)
    sidecar, idle = (Sidecar(stage, name, document_, prefix=URGENT) for name in ("sidecar", "idle"))
    # Warm both, so that what code and pools need is there.
    await alternate(stage, idle, sidecar, 10, BLOCK)
    before = sidecar.resident()
    async with Crowd(sidecar) as crowd:
        threads = sidecar.threads()
        bodies = await crowd.wait() / 1024
        grown, more = sidecar.resident() - bodies - before, sidecar.threads() - threads
        scenario.require(
            grown < MEMORY_KIB,
            f"{CALLS} calls that wait for {REQUESTS} requests: {grown / 1024:.1f} MiB more beside {bodies:.0f} KiB of bodies, connections included",
            f"under {MEMORY_KIB / 1024:.0f} MiB",
        )
        # Those that write the state file, which come and go.
        scenario.require(more <= 2, f"no thread each: {more} more", "at most 2, for the state file")
        scenario.same("requests", (len(await sidecar.person.listed()), sidecar.metric("toolweir_approvals_waiting")), (REQUESTS, REQUESTS))
        await places(scenario, server, sidecar)
        await beside(scenario, stage, crowd, idle)
        await released(scenario, server, crowd)
    await until("nothing is held", lambda: crowd.held() == 0)
    scenario.require(not sidecar.panics(), "no panic")


async def places(scenario, server, sidecar):
    """All places of maxConcurrent are free for calls that need nobody."""
    small = {"amount": 1, "seconds": 0.3}
    answers = await asyncio.gather(*(call(sidecar, "pay_invoice", small) for _ in range(5)))
    passed, reasons = sum(answer.passed for answer in answers), {answer.reason for answer in answers if not answer.passed}
    scenario.same("of 5 calls beside them, all places of maxConcurrent: 4 are free", (passed, reasons), (4, {"concurrency"}))


async def alternate(stage, base, other, blocks, calls):
    """Blocks of calls at two sidecars in turn, one after the other on one connection each; what `toolweir-bench alternate` says."""
    command = [*URGENT, stage.bench, "alternate", "--base", base.url("bench"), "--other", other.url("bench"), "--blocks", blocks, "--calls", calls]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 45)
    if process.returncode:
        raise Broken(f"toolweir-bench alternate ended with {process.returncode}: {err.decode()}")
    return json.loads(out)


async def beside(scenario, stage, crowd, idle):
    """Short blocks in turn at the sidecar with calls that wait and at one without."""
    found = await alternate(stage, idle, crowd.sidecar, BLOCKS, BLOCK)
    scenario.same(f"all {CALLS} waited meanwhile", crowd.held(), CALLS)
    ratio = found["other_p99"] / found["base_p99"]
    scenario.in_time(
        ratio <= RATIO,
        f"{BLOCKS} blocks of {BLOCK} other calls: p99 in the median {found['other_p99']:.0f} µs with {CALLS} that wait, {found['base_p99']:.0f} µs "
        f"without: ratio {ratio:.3f}; median {found['other']:.0f} and {found['base']:.0f} µs",
        f"a ratio of at most {RATIO}",
    )


async def released(scenario, server, crowd):
    """Approved, one of the calls for a request goes."""
    person, before = crowd.sidecar.person, len(server.calls("pay_invoice"))
    names = list(await person.listed())[:5]
    for name in names:
        await person.approve(name)
    await until("the approved ones are delivered", lambda: len(server.calls("pay_invoice")) - before >= len(names))
    await asyncio.sleep(0.5)
    done = sum(task.done() for task in crowd.calls)
    found = len(server.calls("pay_invoice")) - before
    scenario.same("of 4 calls for each of 5 approved requests, one goes and the others wait on", (found, done), (len(names), len(names)))


HELD_MOST, BODY = 8 << 20, 512 << 10


async def bodies(scenario, stage):
    """Bodies that wait use at most half of --max-held; beyond it the answer comes at once, and other calls have the rest."""
    server = Server(stage, "large")
    flags = ["--max-held", HELD_MOST, "--max-body", 1 << 20]
    sidecar = Sidecar(stage, "small", policy(
        [tool("pay_invoice", approval={"hold": "50s", "pending": 50}), tool("send_note")], server.url()), flags=flags)
    wires = [await Wire(sidecar).open() for _ in range(16)]
    calls = [
        asyncio.create_task(wire.call("pay_invoice", {"number": number, "text": "x" * BODY})) for number, wire in enumerate(wires)
    ]
    # What is answered at once, is answered by then.
    await until("calls wait or are answered", lambda: sidecar.metric("toolweir_approvals_held") + sum(task.done() for task in calls) == len(calls))
    answered = [task.result() for task in calls if task.done()]
    held = len(calls) - len(answered)
    requests = len(await sidecar.person.listed())
    scenario.require(
        0 < held * BODY <= HELD_MOST // 2,
        f"of {len(calls)} calls of {BODY >> 10} KiB with --max-held {HELD_MOST >> 20} MiB, {held} wait",
        f"1 to {HELD_MOST // 2 // BODY}",
    )
    scenario.require(held >= HELD_MOST // 2 // BODY - 1, f"they use the half of it: {held * BODY >> 10} KiB")
    reasons, slowest = {answer.reason for answer in answered}, max((answer.took for answer in answered), default=0)
    scenario.same("the others are told to come again, and are asked for too", (reasons, requests), ({"approval_pending"}, len(calls)))
    scenario.in_time(slowest < 3, f"at once: after {slowest:.2f} s", "under 3 s")
    others = await asyncio.gather(*(call(sidecar, "send_note", {"text": "x" * BODY}) for _ in range(4)))
    scenario.same("4 other calls of that size pass beside them", sum(answer.passed for answer in others), 4)
    for wire in wires:
        wire.close()
    for task in calls:
        task.cancel()
    # Their clients are gone: the room is free again.
    await until("nothing is held", lambda: sidecar.metric("toolweir_approvals_held") == 0)
    async with Wire(sidecar) as wire:
        task = asyncio.create_task(wire.call("pay_invoice", {"number": 0, "text": "x" * BODY}))
        await until("a call waits again", lambda: sidecar.metric("toolweir_approvals_held") == 1)
        task.cancel()
    scenario.require(True, "once their clients hang up, there is room again")


def hold(scenario, stage, args):
    """200 calls that wait: memory, threads, places, the p99 of other calls; bodies beyond half of --max-held."""
    run(waiting(scenario, stage))
    run(bodies(scenario, stage))
