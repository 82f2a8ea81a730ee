"""Real SDKs on both sides: each client takes the same steps at each server directly, and through a sidecar whose policies allow or deny."""

import argparse
import asyncio
import inspect
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "shared")]
from expected import POLICIES, SILENT, faults_denied, faults_direct, faults_same, faults_some  # noqa: E402
from processes import Broken, NotInTime, PrintedChecks, Stage, free_port, printed_summary, tail, wait_until, with_second_try  # noqa: E402
from steps import TASKS, steps_for  # noqa: E402

OLD_CLIENTS, NEW_CLIENTS = ("py1", "py2-legacy", "ts1", "ts2-legacy"), ("py2-auto", "ts2-auto")
# The SDKs that know the tasks of 2025-11-25.
WITH_TASKS = ("py1", "ts1")
PATHS = {"http": "mcp", "sse": "sse"}


@dataclass
class Pair:
    server: str
    client: str
    transport: str
    port: int = 0

    def __str__(self):
        return f"{self.client} at {self.server} over {self.transport}"

    @property
    def name(self):
        return f"{self.client}-{self.server}-{self.transport}"

    def modern(self):
        return self.client == "tasks" or (self.client in NEW_CLIENTS and self.server in ("py2", "ts2"))

    def steps(self, denied):
        """Those of its era; `denied`: where it is to hear nothing, it does not wait for long."""
        if self.client == "tasks":
            return [step for step in TASKS if denied or not step["deniedOnly"]]
        era = "modern" if self.modern() else "legacy"
        tasks = self.client in WITH_TASKS and self.server in WITH_TASKS
        steps = [step for step in steps_for(tasks=tasks, denied=denied) if era in step["eras"]]
        # What comes later than that is found in the steps after.
        return [step | {"patience": 0.5} if denied and step["name"] in SILENT else step for step in steps]

    def ways(self):
        """The policies that it is tried with."""
        return ["allow", "deny", "some"] if self.modern() and self.client != "tasks" else ["allow", "deny"]


class Scenario(PrintedChecks):
    def faultless(self, what, faults):
        return self.require(not faults, what, "; ".join(faults[:6]))


def programs(args):
    """How each server and each client is started."""
    def python(env, file):
        return [str(env), str(HERE / file)]

    def node(file):
        return ["node", str(args.npm / file)]

    return {
        "server": {
            "py1": python(args.mcp1, "server1.py"), "py2": python(args.mcp2, "server2.py"), "ts1": node("server1.mjs"), "ts2": node("server2.mjs"),
            "tasks": python(args.tasks, "server_tasks.py"),
        },
        "client": {
            "py1": python(args.mcp1, "client1.py"), "py2": python(args.mcp2, "client2.py"), "ts1": node("client1.mjs"), "ts2": node("client2.mjs"),
            "tasks": python(args.tasks, "client_tasks.py"),
        },
    }


def policy(pairs):
    """A server of its own for each pair and way; without a url for stdio. JSON is YAML."""
    servers = [
        {"name": f"{pair.name}-{way}"} | ({"url": f"http://127.0.0.1:{pair.port}/{PATHS[pair.transport]}"} if pair.port else {}) | POLICIES[way]
        for pair in pairs
        for way in pair.ways()
    ]
    metadata = {"name": "operations", "namespace": "tests"}
    document = {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": metadata, "spec": {"podSelector": {}, "servers": servers}}
    return json.dumps(document, indent=1)


class World:
    """The sidecar of all pairs, and the programs."""

    def __init__(self, stage, args, pairs):
        self.stage, self.programs, self.sidecar = stage, programs(args), None
        self.binary = args.sidecar
        self.policy, self.stdio_policy = stage.dir / "policy.yaml", stage.dir / "policy-stdio.yaml"
        # Clients wait for most of the time, so more of them run at once than there are processors.
        self.places = asyncio.Semaphore((os.cpu_count() or 1) + 2)
        for pair in pairs:
            pair.port = 0 if pair.transport == "stdio" else free_port()
        self.policy.write_text(policy(pair for pair in pairs if pair.port))
        self.stdio_policy.write_text(policy(pair for pair in pairs if not pair.port))
        if self.binary and any(pair.port for pair in pairs):
            self.run_sidecar()

    def run_sidecar(self):
        self.port, metrics = free_port(), free_port()
        command = [self.binary, "run", "--policy", self.policy, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--metrics-listen", f"127.0.0.1:{metrics}", "--admin-listen", f"127.0.0.1:{free_port()}"]
        with open(self.stage.dir / "sidecar.audit", "ab") as lines:
            self.sidecar = self.stage.start("sidecar", command, stdout=lines)

        def ready():
            if self.sidecar.poll() is not None:
                raise Broken(f"the sidecar ended: {tail(self.stage.dir / 'sidecar.log')}")
            return socket.create_connection(("127.0.0.1", self.port), 1).close() or True

        wait_until("the sidecar listens", ready)

    def target(self, pair, way):
        """What the client is given."""
        server = self.programs["server"][pair.server]
        if pair.transport != "stdio":
            return f"http://127.0.0.1:{pair.port}/{PATHS[pair.transport]}" if way == "direct" else f"http://127.0.0.1:{self.port}/{pair.name}-{way}"
        sidecar = [str(self.binary), "stdio", "--policy", str(self.stdio_policy), "--server", f"{pair.name}-{way}", "--"]
        return json.dumps([*([] if way == "direct" else sidecar), *server, "stdio"])

    async def record(self, pair, way, steps):
        """What a client says of all steps."""
        client, _, mode = pair.client.partition("-")
        command = [*self.programs["client"][client], self.target(pair, way), pair.transport, json.dumps(steps)]
        with open(self.stage.dir / f"{pair.name}-{way}.log", "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, env=os.environ | {"MCP_MODE": mode}
            )
            try:
                said, _ = await asyncio.wait_for(process.communicate(), 90)
            except TimeoutError:
                raise NotInTime(f"{pair} ({way}) did not end") from None
            finally:
                if process.returncode is None:
                    process.kill()
        if not said:
            raise Broken(f"{pair} ({way}) said nothing: {tail(log.name)}")
        (self.stage.dir / f"{pair.name}-{way}.json").write_bytes(said)
        return json.loads(said)

    async def start(self, pair):
        process = self.stage.start(f"{pair.name}-server", [*self.programs["server"][pair.server], "http", pair.port])
        end = time.monotonic() + 30
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", pair.port))[1].close()
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise Broken(f"{pair}: the server does not listen: {tail(self.stage.dir / f'{pair.name}-server.log')}") from None
                await asyncio.sleep(0.05)


async def one(scenario, world, pair):
    """Directly, then through the sidecar: one after the other, since a server of Python 1.x has room for the tasks of one session."""
    async with world.places:
        server = await world.start(pair) if pair.port else None
        try:
            await compare(scenario, world, pair)
        finally:
            if server:
                # Some would wait for the end of their streams.
                server.kill()


async def compare(scenario, world, pair):
    direct = await world.record(pair, "direct", pair.steps(denied=False))
    era = "2026-07-28" if pair.modern() else "2025-11-25"
    faults = [] if direct["protocol"] == era else [f"it speaks {direct['protocol']}"]
    scenario.faultless(f"{pair}, directly", faults + faults_direct(pair.steps(denied=False), direct))
    for way in pair.ways() if world.binary else ():
        steps = pair.steps(denied=way == "deny")
        record = await world.record(pair, way, steps)
        what, faults = {
            "allow": ("all is allowed: as directly", lambda: faults_same(steps, record, direct)),
            "deny": ("what is denied is told, and the rest is as directly", lambda: faults_denied(steps, record, direct)),
            "some": ("only sampling is denied: it is cut out of what is asked", lambda: faults_some(steps, record, direct)),
        }[way]
        scenario.faultless(f"{pair}, {what}", faults())


async def all_pairs(scenario, stage, args, pairs):
    world = World(stage, args, pairs)
    await asyncio.gather(*(one(scenario, world, pair) for pair in pairs))
    if world.sidecar:
        scenario.require("panicked at" not in (stage.dir / "sidecar.log").read_text(), "no panic")


def http():
    """Streamable HTTP: the SDKs of both versions and languages as clients and servers, in both eras."""
    old = [Pair(server, client, "http") for server in ("py1", "ts1") for client in OLD_CLIENTS]
    return old + [Pair(server, client, "http") for server in ("py2", "ts2") for client in ("py1", "ts1", *NEW_CLIENTS)]


def sse():
    """HTTP+SSE: a server of Python 1.x, and clients that know it."""
    return [Pair("py1", client, "sse") for client in ("py1", "py2-legacy", "ts1")]


def stdio():
    """The sidecar between a client and the server that it starts."""
    pairs = [("py1", "ts1"), ("ts1", "py1"), ("py2", "ts2-legacy"), ("ts2", "py2-legacy"), ("py2", "ts2-auto"), ("ts2", "py2-auto")]
    return [Pair(server, client, "stdio") for server, client in pairs]


def tasks():
    """The tasks of 2026-07-28, which FastMCP has on both sides."""
    return [Pair("tasks", "tasks", transport) for transport in ("http", "stdio")]


SCENARIOS = {scenario.__name__: scenario for scenario in (http, sse, stdio, tasks)}


def attempt(name, number, args):
    """One try of a scenario, with a folder of its own."""
    scenario = Scenario(name)
    print(f"\n== {name}: {inspect.getdoc(SCENARIOS[name])}", flush=True)

    def body():
        with Stage(args.sidecar, None, args.dir / (name if number == 1 else f"{name}-{number}")) as stage:
            asyncio.run(all_pairs(scenario, stage, args, SCENARIOS[name]()))

    return scenario.run(body, (Broken, OSError))


def main():
    parser = argparse.ArgumentParser()
    for program in ("--mcp1", "--mcp2", "--tasks", "--npm", "--dir"):
        parser.add_argument(program, type=Path, required=True)
    parser.add_argument("--sidecar", type=Path, help="without it, only what is the same directly")
    parser.add_argument("scenarios", nargs="*", help=f"{', '.join(SCENARIOS)}; the default is all")
    args = parser.parse_args()
    if unknown := [name for name in args.scenarios if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    # What was started ends with this process, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    records = [with_second_try(lambda number, name=name: attempt(name, number, args)) for name in args.scenarios or SCENARIOS]
    return printed_summary(records, args.dir)


if __name__ == "__main__":
    sys.exit(main())
