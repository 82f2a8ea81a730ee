"""Runs the scenarios on a cluster, and prints for each what was measured and whether it passed.

    python3 tests/cluster/e2e                 runs all scenarios (e2e.sh starts a cluster and loads the images first)
    python3 tests/cluster/e2e SCENARIO...     runs these scenarios only
    python3 tests/cluster/e2e --list          lists the scenarios
"""

import json
import os
import signal
import sys
import time
import traceback

from kube import Cluster, Failure
from scenarios import SCENARIOS
from second_try import Checks, Late, verdict, with_second_try
from settings import OUT


class Measured(Checks):
    """What one try of a scenario measures, and what it misses."""

    def __init__(self, scenario):
        super().__init__(scenario.name)
        self.scenario, self.notes, self.figures, self.missed = scenario, [], {}, []
        self.problem, self.logs, self.seconds = "", None, 0

    def note(self, text):
        self.notes.append(text)

    def at_most(self, what, value, most, unit):
        """Records a time that must not exceed `most`."""
        self.figures[what] = round(value, 3)
        self.notes.append(f"{what} {shown(value)} {unit}")
        if not value <= most:
            self.missed.append(f"{what} is {shown(value)} {unit}; the target is at most {shown(most)} {unit}")

    def fail(self, problem, late):
        self.problem, self.failed, self.late = problem, 1, int(late)

    def result(self):
        """What is written of it."""
        told = {
            "scenario": self.name, "what": self.scenario.what, "target": self.scenario.target, "holds": not self.failed, "result": verdict(self),
            "measured": "; ".join(self.notes), "problem": self.problem, "figures": self.figures, "seconds": round(self.seconds, 1), "logs": self.logs,
        }
        return told | ({"first": self.first.result()} if self.first else {})


def shown(value):
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def measure(cluster, scenario, number):
    """One try, in namespaces of its own."""
    measured, began = Measured(scenario), time.monotonic()
    try:
        cluster.install()
        cluster.settled()
        cluster.server()
        scenario.function(cluster, measured)
        if measured.missed:
            measured.fail("; ".join(measured.missed), late=True)
    except Failure as failure:
        measured.fail(str(failure), isinstance(failure, Late))
    except Exception:
        # A defect of the test is reported like one of the product, with its place.
        measured.fail(traceback.format_exc(), late=False)
    if measured.failed:
        measured.logs = str(cluster.collect(scenario.name if number == 1 else f"{scenario.name}-{number}"))
    cluster.remove_namespaces()
    measured.seconds = time.monotonic() - began
    print(f"     measured: {'; '.join(measured.notes) or 'nothing'} ({measured.seconds:.1f} s)", flush=True)
    if measured.failed:
        print(f"     FAILED: {measured.problem}\n     logs: {measured.logs}", flush=True)
    return measured


def one_line(text):
    return " ".join(text.split())


def table(results):
    """The results as Markdown."""
    lines = ["| What | Target | Measured | Result |", "| --- | --- | --- | --- |"]
    for result in results:
        told = result["result"] if result["holds"] else f"**{result['result'].lower()}**: {one_line(result['problem'])[-300:]}"
        if first := result.get("first"):
            told += f"; the first: {one_line(first['problem'])[-300:]}"
        cells = [result["what"], result["target"], result["measured"] or "–", told]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(results):
    """A line for each scenario, and why it failed, or did at first."""
    print("\n---- summary\n")
    for result in results:
        print(f"  {result['result']:24} {result['scenario']:18} {result['seconds']:6.1f} s   {result['measured']}")
        for what, told in (("", result if not result["holds"] else None), ("first: ", result.get("first"))):
            if told:
                print(f"  {'':24}   {what}{one_line(told['problem']):.300}\n  {'':24}   logs: {told['logs']}")
    failed, again = (sum(map(chosen, results)) for chosen in (lambda one: not one["holds"], lambda one: one["holds"] and "first" in one))
    print(f"\n  {len(results) - failed} passed{f' ({again} at the second try)' if again else ''}, {failed} failed; the results are in {OUT / 'results.md'}")
    return 1 if failed else 0


def main():
    words = sys.argv[1:]
    if words == ["--list"]:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:18} {scenario.what}")
        return 0
    check, names = words[:1] == ["--check"], [word for word in words if word != "--check"]
    if unknown := [name for name in names if name not in SCENARIOS]:
        print(f"e2e: there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    if check:
        return 0

    OUT.mkdir(parents=True, exist_ok=True)
    # SIGTERM cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster, results = Cluster(), []
    try:
        for scenario in [SCENARIOS[name] for name in names or SCENARIOS]:
            print(f"\n---- {scenario.name}: {scenario.what}\n     target: {scenario.target}", flush=True)
            results.append(with_second_try(lambda number: measure(cluster, scenario, number)).result())
    finally:
        if results:
            (OUT / "results.json").write_text(json.dumps(results, indent=1))
            (OUT / "results.md").write_text(table(results))
        if os.environ.get("E2E_CLEAN") != "0":
            clean(cluster)
        cluster.api.close()

    return summary(results)


def clean(cluster):
    """Removes everything of the tests from a cluster that was there before."""
    try:
        cluster.namespaces += ["toolweir-e2e-tools"] if cluster.server_ready else []
        cluster.remove_namespaces(wait=True)
        cluster.uninstall()
    except Failure as failure:
        print(f"e2e: cleaning up: {failure}", file=sys.stderr)


sys.exit(main())
