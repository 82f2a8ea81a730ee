"""Approvals through a real sidecar. What the server was asked, its own log says."""

import argparse
import inspect
import signal
import sys
from pathlib import Path

from clients import clients
from content import content
from faults import faults
from flood import flood
from hold import hold
from once import once
from peers import peers
from stdio import stdio
from world import Broken, Scenario, Stage

from second_try import printed_summary, with_second_try

SCENARIOS = {scenario.__name__: scenario for scenario in (clients, once, hold, flood, content, stdio, faults, peers)}


def attempt(name, number, args):
    """One try of a scenario, with a folder of its own."""
    scenario = Scenario(name)
    print(f"\n== {name}: {inspect.getdoc(SCENARIOS[name])}", flush=True)

    def body():
        with Stage(args.sidecar, args.bench, args.dir / (name if number == 1 else f"{name}-{number}")) as stage:
            SCENARIOS[name](scenario, stage, args)

    return scenario.run(body, (Broken, OSError))


def main():
    parser = argparse.ArgumentParser()
    for program in ("--sidecar", "--bench", "--mcp1", "--mcp2", "--npm", "--dir"):
        parser.add_argument(program, type=Path, required=True)
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
