"""Who may decide at the socket."""

import asyncio
import grp
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from world import OTHER_USER, Person, Server, Sidecar, as_user, call, policy, run, tool, until

STRANGER = OTHER_USER + 1


async def everybody(scenario, stage, folder):
    server = Server(stage)
    group = next(group for group in grp.getgrall() if group.gr_gid not in (0, OTHER_USER, STRANGER))
    binary = shutil.copy(stage.sidecar_binary, folder / "toolweir-sidecar")
    stage.sidecar_binary = binary
    (folder / "sidecar.state").mkdir()
    for path in (folder, folder / "sidecar.state"):
        os.chown(path, OTHER_USER, OTHER_USER)
    # A client's name for itself, which may stand for anybody.
    document = policy([tool("wire_money", approval={"show": ["args.step"], "hold": "0s", "pending": 50})], server.url())
    sidecar = Sidecar(
        stage, "sidecar", document, same_user=False, folder=folder, flags=["--approvals-group", group.gr_name],
        prefix=as_user(OTHER_USER, group.gr_gid),
    )
    found = sidecar.socket.stat()
    scenario.same(
        "the socket is the group's",
        (stat.S_IMODE(found.st_mode), stat.S_ISSOCK(found.st_mode), found.st_uid, found.st_gid),
        (0o660, True, OTHER_USER, group.gr_gid),
    )
    people = {
        "root": ([], True, "uid 0 (root)"),
        "a member of the group": (as_user(STRANGER, group.gr_gid), True, f"uid {STRANGER}"),
        "a stranger": (as_user(STRANGER), False, None),
        "the sidecar's own user": (as_user(OTHER_USER, group.gr_gid), False, None),
    }
    for who, (prefix, may, by) in people.items():
        await decides(scenario, sidecar, server, who, Person(binary, sidecar.socket, prefix), (may, by))
    await crowded(scenario, sidecar)
    scenario.require(not sidecar.panics(), "no panic")


async def decides(scenario, sidecar, server, who, person, right):
    may, by = right
    arguments = {"step": who}
    name = (await call(sidecar, "wire_money", arguments)).approval
    code, out, err = await person.run("list")
    decided, words, trouble = await person.run("approve", name)
    answer = await call(sidecar, "wire_money", arguments)
    if may:
        await sidecar.step("used", name)
    steps = sidecar.steps(name)
    deciders = [found for step, found in steps if step == "approved"]
    scenario.each(f"{who} {'may' if may else 'may not'} decide", [
        ("list", (code == 0, name in out), (may, may)),
        ("approve", decided == 0, may),
        ("words", bool(words + trouble), True),
        ("the call", (answer.passed, len(server.calls(arguments=arguments))), (may, int(may))),
        ("by whom", [(found or "").startswith(by) for found in deciders] if may else deciders, [True] if may else []),
    ])


async def crowded(scenario, sidecar):
    """Peers that say nothing, or no sense, keep nobody from deciding for long; those who may not decide, not at all."""
    refused = [subprocess.Popen(
        [*as_user(OTHER_USER, sidecar.socket.stat().st_gid), sys.executable, "-c", STALL, str(sidecar.socket)], stdout=subprocess.PIPE
    )]
    refused[0].stdout.readline()
    name = (await call(sidecar, "wire_money", {"step": "beside the sidecar's user"})).approval
    code, out, err = await sidecar.person.run("approve", name)
    scenario.same("beside a hundred connections of the sidecar's own user, a person decides at once", (code, err), (0, ""))
    refused[0].terminate()
    refused[0].wait(10)
    name = (await call(sidecar, "wire_money", {"step": "crowd"})).approval
    writers = []
    for number in range(100):
        _, writer = await asyncio.open_unix_connection(sidecar.socket)
        if number % 2:
            writer.write(b"\x00\xff" * 50_000 if number % 3 else b"{" * 100_000 + b"\n")
        writers.append(writer)

    async def decided():
        return (await sidecar.person.run("approve", name))[0] == 0

    await until("beside peers that stall or talk nonsense, a person decides", decided, 10, 0.2)
    scenario.require(True, "beside a hundred peers that stall or talk nonsense, a person decides within 10 s")
    for writer in writers:
        writer.close()


STALL = """
import socket, sys, time
held = []
for _ in range(100):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print("there", flush=True)
time.sleep(60)
"""


def peers(scenario, stage, args):
    """Who may decide at the socket: not the sidecar's own user, nor who is not in its group. Needs root."""
    folder = Path(tempfile.mkdtemp(prefix="toolweir-approvals."))
    folder.chmod(0o755)
    try:
        run(everybody(scenario, stage, folder))
    finally:
        for process in stage.started:
            process.kill()
        shutil.rmtree(folder)
