"""Runs the scenarios and prints the results. See run.sh."""

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import operator_scenarios
import sidecar_scenarios
from cgroup import NoCgroup
from stage import Broken, Scenario, verdict, with_second_try

SCENARIOS = sidecar_scenarios.SCENARIOS | operator_scenarios.SCENARIOS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", type=Path)
    parser.add_argument("--operator", type=Path)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--sidecar-mib", type=int, default=64)
    parser.add_argument("--operator-mib", type=int, default=256)
    parser.add_argument("--patience", type=float, default=20)
    parser.add_argument("scenarios", nargs="*")
    settings = parser.parse_args()
    if unknown := [name for name in settings.scenarios if name not in SCENARIOS]:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    # Thousands of connections, each with two ends of which one is here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < 16384:
        sys.exit(f"scenarios.py: needs 16384 open files, and this shell's hard limit is {most}; raise it with: ulimit -Hn 16384")
    # SIGTERM also ends what this has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    summary = []
    for name in settings.scenarios or SCENARIOS:
        summary.append(with_second_try(lambda number: attempt(name, number, settings)))
        # For reports.
        results = {done.name: {"result": verdict(done), "seconds": round(done.seconds, 1), "lines": done.lines} for done in summary}
        (settings.dir / "results.json").write_text(json.dumps(results, indent=1))
    failed = sum(bool(scenario.failed) for scenario in summary)
    print("\n==== bounds")
    for scenario in summary:
        print(f"  {scenario.name:<16} {verdict(scenario):<24} {scenario.seconds:5.1f} s")
        if scenario.first:
            for how, text in scenario.first.lines:
                if how == "FAILED":
                    print(f"      first: {text[:300]}")
        for how, text in scenario.lines:
            if how != "note":
                print(f"      {how}: {text[:300]}")
    print(f"{len(summary) - failed} scenarios passed, {failed} failed")
    sys.exit(failed > 0)


def attempt(name, number, settings):
    """One try of a scenario, with a folder of its own."""
    began, scenario = time.monotonic(), Scenario(name, settings.dir / (name if number == 1 else f"{name}-{number}"))
    try:
        SCENARIOS[name](scenario, settings)
    except NoCgroup as error:
        sys.exit(f"scenarios.py: {error}")
    except Broken as error:
        scenario.broke_off(error)
    except Exception:
        scenario.require(False, traceback.format_exc(), "the scenario runs")
    finally:
        scenario.end()
    scenario.seconds = time.monotonic() - began
    return scenario


main()
