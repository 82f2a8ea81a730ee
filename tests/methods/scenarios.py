"""Every method of MCP, in both directions, through a real sidecar: allowed, it passes byte for byte; denied, it does not pass."""

import argparse
import asyncio
import inspect
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "shared")]
from processes import Broken, PrintedChecks, Stage, printed_summary, with_second_try  # noqa: E402

from checks import Rows  # noqa: E402
from packages import Known, Unknown, invalid  # noqa: E402
from policies import allowing, denying, tools_alone  # noqa: E402
from table import ROWS  # noqa: E402
from ways import WAYS  # noqa: E402


def table(scenario, stage, args):
    """The rows of tests/methods/table.py are the methods that the SDKs know, and its samples are valid."""
    known = Known(args.npm)
    wrong = list(known.differences(ROWS))
    scenario.require(not wrong, f"{len(ROWS)} rows, as the packages have them", "; ".join(wrong))
    unnoticed = []
    for row in (row for row in ROWS if not row.invented):
        without = known.differences([one for one in ROWS if one is not row])
        unnoticed += [] if any(f" {row.method}" in why for why in without) else [row.method]
    scenario.require(not unnoticed, "a method without a row is noticed", f"all; not {' '.join(unnoticed)}")
    refused = [f"{what}: {why}" for what, why in invalid()]
    scenario.require(not refused, "the samples and answers are valid", "; ".join(refused))


def way(name):
    def scenario_of(scenario, stage, args):
        async def half(kind, policy):
            async with WAYS[name](stage, kind, policy) as one:
                print(f"-- {name}: {policy.__name__}", flush=True)
                await Rows(scenario, one, kind == "allows", args.tools_alone).run()
            log = (stage.dir / f"{kind}.log").read_text()
            scenario.require("panicked" not in log, "no panic")

        if args.tools_alone:
            asyncio.run(half("allows", tools_alone))
        else:
            asyncio.run(half("allows", allowing))
            asyncio.run(half("denies", denying))

    scenario_of.__doc__ = inspect.getdoc(WAYS[name])
    return scenario_of


SCENARIOS = {"table": table} | {name: way(name) for name in WAYS}


def run(name, number, args):
    """One try of a scenario, with a folder of its own."""
    scenario = PrintedChecks(name)
    print(f"\n== {name}: {inspect.getdoc(SCENARIOS[name])}", flush=True)

    def body():
        with Stage(args.sidecar, None, args.dir / (name if number == 1 else f"{name}-{number}")) as stage:
            SCENARIOS[name](scenario, stage, args)

    return scenario.run(body, (Broken, OSError, Unknown))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", required=True)
    parser.add_argument("--npm", required=True)
    parser.add_argument("--dir", type=Path, required=True)
    help_of = "the sidecar decides calls of tools alone: only what passes is checked, and nothing is counted"
    parser.add_argument("--tools-alone", action="store_true", help=help_of)
    parser.add_argument("scenarios", nargs="*", help=f"{', '.join(SCENARIOS)}; the default is all")
    args = parser.parse_args()
    if unknown := [name for name in args.scenarios if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    # What was started ends with this process, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    records = [with_second_try(lambda number, name=name: run(name, number, args)) for name in args.scenarios or SCENARIOS]
    return printed_summary(records, args.dir)


if __name__ == "__main__":
    sys.exit(main())
