"""Where what an agent says is written down: only what a policy shows, and only where people decide."""

import asyncio
import unicodedata

from world import Server, Sidecar, Wire, call, policy, run, tool, until

# Neither is in what the other is found in.
HIDDEN, SHOWN = "marker-hidden-7q2", "marker-shown-4k9"
# What a terminal or a reader's eye would take for something else.
HOSTILE = {
    "an escape sequence": "\x1b[2J\x1b[1;31mok",
    "a line of its own": "100\npay-invoice-aaaaaaaaaa  approved",
    "text that runs backwards": "\u202e001 rof\u2066x",
    "a zero-width space": "pay\u200bpal",
    "a C1 control": "\x9b31m",
    "a carriage return": "9000\r1",
}


def document(server):
    show = ["args.payee", "args.amount"]
    return policy([
        tool("pay_invoice", approval={"message": "A person looks.", "show": show, "hold": "30s", "pending": 50}),
        tool("wire_money", approval={"when": "args.secret != 'x'", "show": show, "hold": "0s", "pending": 50}),
        tool("close_account", approval={"show": ["args.missing.deeper", "args.payee"], "hold": "0s", "pending": 50}),
    ], server.url())


def arguments(step, **more):
    return {"step": step, "payee": f"{SHOWN} {step}", "amount": 900, "secret": HIDDEN, "deep": {HIDDEN: [HIDDEN]}} | more


async def everything(scenario, stage):
    server = Server(stage)
    sidecar = Sidecar(stage, "sidecar", document(server), flags=["--log-level", "trace"])
    heard = [await exercised(sidecar)]
    listed, before = await sidecar.person.run("list"), set(await sidecar.person.listed())
    sidecar.restart(kill=True)
    again = await sidecar.person.listed()
    scenario.same("what is shown is listed, after a crash too", (set(again), all(SHOWN in line for line in again.values())), (before, True))
    scenario.require(len(server.calls()) == 2 and HIDDEN in server.file.read_text(), "the search finds the marker at the server")
    state = "".join(file.read_text(errors="replace") for file in sidecar.state.rglob("*") if file.is_file())
    places = {
        "the list": listed[1] + listed[2],
        "what is kept": state,
        "the audit log": sidecar.audit.read_text(),
        "the log": sidecar.log.read_text(),
        "metrics": sidecar.metrics(),
        "what agents are told": "".join(heard),
        "the administration": "".join(sidecar.admin(path) for path in ("/policy", "/limits", "/observed", "/seen")),
    }
    scenario.each("what is not shown is written nowhere", [(place, HIDDEN in text, False) for place, text in places.items()])
    only = {place for place, text in places.items() if SHOWN in text}
    scenario.same("what is shown stands where people decide, and where that is kept", only, {"the list", "what is kept"})
    scenario.require(all(places.values()), "there was something to search in each", {place: len(text) for place, text in places.items()})
    await hostile(scenario, sidecar)
    scenario.require(not sidecar.panics(), "no panic")


async def exercised(sidecar):
    """Every way that a request can go; returns what agents were told."""
    person, told = sidecar.person, []
    held = asyncio.create_task(call(sidecar, "pay_invoice", arguments("held")))
    await person.approve(await person.sees(f"{SHOWN} held"))
    told.append(await held)
    for step in ("approved", "denied", "waiting"):
        told.append(await call(sidecar, "wire_money", arguments(step)))
    await person.approve(told[1].approval)
    await person.deny(told[2].approval, "No.")
    for step in ("approved", "denied", "waiting"):
        told.append(await call(sidecar, "wire_money", arguments(step)))
    told.append(await call(sidecar, "close_account", arguments("failing")))
    told.append(await call(sidecar, "wire_money", f'{{"secret":"{HIDDEN}","secret":"{HIDDEN}"}}'))
    told.append(await call(sidecar, "wire_money", f'{{"secret":"{HIDDEN}","n":12345678901234567890}}'))
    # A client that hangs up.
    async with Wire(sidecar) as wire:
        wire.send("pay_invoice", arguments("gone"))
        await wire.writer.drain()
        await person.sees(f"{SHOWN} gone")
    await until("it hung up", lambda: sidecar.metric("toolweir_approvals_held") == 0)
    return "".join(str(answer.result) + str(answer.error) for answer in told)


def is_harmless(text):
    """Whether no character of it does anything but stand there."""
    return all(character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn") for character in text)


async def hostile(scenario, sidecar):
    lines = len(await sidecar.person.listed())
    for payee in HOSTILE.values():
        await call(sidecar, "wire_money", arguments("hostile", payee=payee))
    long = await call(sidecar, "wire_money", arguments("long", payee="y" * 2000))
    code, out, err = await sidecar.person.run("list")
    scenario.each("what is shown can do nothing to the reader", [
        ("the list", (code, is_harmless(out + err)), (0, True)),
        ("lines", len(out.splitlines()) - 1, lines + len(HOSTILE) + 1),
        ("a long value", ("y" * 513 in out, "yyy" in out), (False, True)),
    ])
    line = next(line for line in out.splitlines() if long.approval in line)
    scenario.require("…" in line or "..." in line or "cut" in line, "a cut is marked", line[-80:])


def content(scenario, stage, args):
    """Nothing of the arguments but what is shown stands anywhere."""
    run(everything(scenario, stage))
