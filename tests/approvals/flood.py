"""An agent that asks for ten thousand different calls."""

import asyncio
import collections
import time

from world import Server, Sidecar, Wire, policy, run, tool

CALLS, CONNECTIONS, PENDING = 10_000, 32, 5
MEMORY_KIB = 8 * 1024


async def flooded(sidecar, name, told):
    """Makes all the calls; those that are held stay so. Returns their connections and the seconds that the others took."""
    numbers, held, began = iter(range(CALLS)), [], time.monotonic()

    async def caller():
        wire = await Wire(sidecar).open()
        for number in numbers:
            call = asyncio.create_task(wire.call(name, {"number": number, "text": "x" * 400}))
            done, _ = await asyncio.wait({call}, timeout=3)
            if not done:
                held.append((wire, call))
                wire = await Wire(sidecar).open()
                continue
            answer = call.result()
            told["passed" if answer.passed else answer.reason or str(answer.error)] += 1
            if answer.reason == "approval_full":
                told["with words"] += "5" in answer.words and "wait" in answer.words.lower()
        wire.close()

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return held, time.monotonic() - began


async def floods(scenario, stage):
    server = Server(stage)
    approval = {"show": ["args.number"], "expiry": "10m"}
    sidecar = Sidecar(stage, "sidecar", policy([
        tool("pay_invoice", approval=approval | {"hold": "40s", "pending": PENDING}),
        tool("wire_money", approval=approval | {"hold": "0s", "pending": 50}),
    ], server.url()))
    async with Wire(sidecar) as wire:
        await wire.call("send_note", {})
    before, told = sidecar.resident(), collections.Counter()
    held, took = await flooded(sidecar, "pay_invoice", told)
    listed = await sidecar.person.listed()
    scenario.each(f"of {CALLS} different calls {PENDING} wait, and the rest is denied with words ({took:.1f} s)", [
        ("held", len(held), PENDING),
        ("listed", len(listed), PENDING),
        ("told", dict(told), {"approval_full": CALLS - PENDING, "with words": CALLS - PENDING}),
        ("counted", sidecar.outcomes(), {"requested": PENDING, "full": CALLS - PENDING}),
        ("waiting", sidecar.metric("toolweir_approvals_waiting"), PENDING),
    ])
    grown, kept = sidecar.resident() - before, (sidecar.state / "approvals.json").stat().st_size
    scenario.require(grown < MEMORY_KIB, f"{grown / 1024:.1f} MiB more memory", f"under {MEMORY_KIB // 1024} MiB")
    scenario.require(kept < 64 << 10, f"{kept} bytes are kept", "under 64 KiB")
    for wire, call in held:
        call.cancel()
        wire.close()
    for name in listed:
        await sidecar.person.deny(name)
    await denied_again(scenario, sidecar)
    scenario.same("nothing was delivered", len(server.calls()), 0)
    scenario.require(not sidecar.panics(), "no panic")


async def denied_again(scenario, sidecar):
    """A person who denies each request at once cannot be made to fill memory: what is denied counts until it may be asked anew."""
    before, denied, asked = sidecar.resident(), 0, 0
    async with Wire(sidecar) as wire:
        for round_ in range(6):
            for number in range(40):
                answer = await wire.call("wire_money", {"round": round_, "number": number, "text": "x" * 400})
                asked += answer.reason == "approval_pending"
            for name in await sidecar.person.listed():
                await sidecar.person.deny(name)
                denied += 1
    kept = (sidecar.state / "approvals.json").stat().st_size
    grown = sidecar.resident() - before
    scenario.require(
        grown < MEMORY_KIB and kept < 1 << 20,
        f"{asked} asked and {denied} denied one after the other: {grown / 1024:.1f} MiB more memory, {kept >> 10} KiB kept",
        "under 8 MiB, and 1 MiB",
    )


def flood(scenario, stage, args):
    """10 000 different calls: at most `pending` wait, the rest is denied with words, memory is bounded."""
    run(floods(scenario, stage))
