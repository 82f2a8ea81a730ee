"""Capture in network namespaces: the rules, every way out, and what must still work."""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "credentials"))
from edges import NAMES as NAMES_OF_EDGES, scenario_edges  # noqa: E402
from network import World, sh  # noqa: E402
from rules import scenario_rules  # noqa: E402
from scenario import Scenario  # noqa: E402
from second_try import verdict, with_second_try  # noqa: E402
from ways_http import NAMES as NAMES_OF_WAYS, scenario_http  # noqa: E402
from ways import scenario_impostor, scenario_older, scenario_ways, scenario_works  # noqa: E402

SCENARIOS = {
    "rules": scenario_rules,
    "ways": scenario_ways,
    "older": scenario_older,
    "impostor": scenario_impostor,
    "works": scenario_works,
    "http": scenario_http,
    "edges": scenario_edges,
}
# What the resolver knows.
NAMES = NAMES_OF_WAYS | NAMES_OF_EDGES


def certificate(folder):
    sh(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=outside"),
        *("-addext", "subjectAltName=DNS:*.test", "-keyout", folder / "server.key", "-out", folder / "server.crt"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sidecar", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("only", nargs="*", metavar="SCENARIO")
    options = parser.parse_args()
    if unknown := set(options.only) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; the scenarios are {', '.join(SCENARIOS)}")
    ran = [with_second_try(lambda number, name=name: attempt(name, number, options)) for name in options.only or SCENARIOS]
    print()
    for scenario in ran:
        print(f"{scenario.name:<10} {scenario.checks:3} checks, {scenario.failed} failed, {scenario.took:.0f} s: {verdict(scenario)}")
    sys.exit(any(scenario.failed for scenario in ran))


def attempt(name, number, options):
    """One try of a scenario, in a world of its own."""
    scenario, began, world = Scenario(name), time.monotonic(), None
    try:
        world = World(options.sidecar, options.dir / (name if number == 1 else f"{name}-{number}"), options.python)
        certificate(world.dir)
        (world.dir / "names.json").write_text(json.dumps(NAMES))
        world.connect()
        SCENARIOS[name](scenario, world)
    except Exception as error:  # noqa: BLE001 # the others still run
        traceback.print_exc()
        scenario.broke_off(error, "broke off: ")
    finally:
        if world:
            world.close()
    scenario.took = time.monotonic() - began
    return scenario


if __name__ == "__main__":
    main()
