"""Runs scenarios, each in a world of its own, and prints a summary."""

import argparse
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "credentials"))
from scenario import Scenario  # noqa: E402
from second_try import verdict, with_second_try  # noqa: E402


def main(what, scenarios, make_world, prepare=lambda world: None):
    """Runs those that the command line names. `make_world(sidecar, logs, python)` makes a world, `prepare(world)` what is in it."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--sidecar", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("only", nargs="*", metavar="SCENARIO")
    options = parser.parse_args()
    if unknown := set(options.only) - set(scenarios):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; the scenarios are {', '.join(scenarios)}")

    def attempt(name, number):
        """One try of a scenario, in a world of its own."""
        scenario, began, world = Scenario(name), time.monotonic(), None
        try:
            world = make_world(options.sidecar, options.dir / (name if number == 1 else f"{name}-{number}"), options.python)
            prepare(world)
            scenarios[name](scenario, world)
        except Exception as error:  # noqa: BLE001 # the others still run
            traceback.print_exc()
            scenario.broke_off(error, "broke off: ")
        finally:
            if world:
                world.close()
        scenario.took = time.monotonic() - began
        return scenario

    ran = [with_second_try(lambda number, name=name: attempt(name, number)) for name in options.only or scenarios]
    print()
    for scenario in ran:
        print(f"{scenario.name:<18} {scenario.checks:3} checks, {scenario.failed} failed, {scenario.took:.0f} s: {verdict(scenario)}")
    sys.exit(any(scenario.failed for scenario in ran))
