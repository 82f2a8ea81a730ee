"""Runs the scenarios on a cluster, and prints for each what was measured and whether it passed.

    python3 tests/cluster/e2e                 runs all scenarios (e2e.sh starts a cluster and loads the images first)
    python3 tests/cluster/e2e SCENARIO...     runs these scenarios only
    python3 tests/cluster/e2e --list          lists the scenarios
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback

from kube import Cluster, Failure
from scenarios import SCENARIOS
from settings import OUT


class Measured:
    """What a scenario measures, and which targets it misses."""

    def __init__(self):
        self.notes, self.figures, self.missed = [], {}, []

    def note(self, text):
        self.notes.append(text)

    def at_most(self, what, value, most, unit):
        """Records a figure that must not exceed `most`."""
        self.figures[what] = round(value, 3)
        self.notes.append(f"{what} {shown(value)} {unit}")
        if not value <= most:
            self.missed.append(f"{what} is {shown(value)} {unit}; the target is at most {shown(most)} {unit}")


def shown(value):
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def measure(cluster, scenario):
    measured, began = Measured(), time.monotonic()
    try:
        cluster.install()
        cluster.settled()
        cluster.server()
        scenario.function(cluster, measured)
        problem = "; ".join(measured.missed)
    except (Failure, subprocess.TimeoutExpired) as failure:
        problem = str(failure)
    except Exception:
        # A defect of the test is reported like one of the product, with its place.
        problem = traceback.format_exc()
    folder = str(cluster.collect(scenario.name)) if problem else None
    cluster.remove_namespaces()
    return {
        "scenario": scenario.name, "what": scenario.what, "target": scenario.target, "holds": not problem, "measured": "; ".join(measured.notes),
        "problem": problem, "figures": measured.figures, "seconds": round(time.monotonic() - began, 1), "logs": folder,
    }


def table(results):
    """The results as Markdown."""
    lines = ["| What | Target | Measured | Result |", "| --- | --- | --- | --- |"]
    for result in results:
        verdict = "passed" if result["holds"] else f"**failed**: {' '.join(result['problem'].split())[-300:]}"
        cells = [result["what"], result["target"], result["measured"] or "–", verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
            result = measure(cluster, scenario)
            results.append(result)
            print(f"     measured: {result['measured'] or 'nothing'} ({result['seconds']} s)")
            if not result["holds"]:
                print(f"     FAILED: {result['problem']}\n     logs: {result['logs']}", flush=True)
    finally:
        if results:
            (OUT / "results.json").write_text(json.dumps(results, indent=1))
            (OUT / "results.md").write_text(table(results))
        if os.environ.get("E2E_CLEAN") != "0":
            clean(cluster)
        cluster.api.close()

    failed = [result for result in results if not result["holds"]]
    print("\n---- summary\n")
    for result in results:
        print(f"  {'passed' if result['holds'] else 'FAILED'}  {result['scenario']:18} {result['seconds']:6.1f} s   {result['measured']}")
        if not result["holds"]:
            print(f"          {'':18}            {' '.join(result['problem'].split()):.300}\n          {'':18}            logs: {result['logs']}")
    print(f"\n  {len(results) - len(failed)} passed, {len(failed)} failed; the results are in {OUT / 'results.md'}")
    return 1 if failed else 0


def clean(cluster):
    """Removes everything of the tests from a cluster that was there before."""
    try:
        cluster.namespaces += ["toolweir-e2e-tools"] if cluster.server_ready else []
        cluster.remove_namespaces(wait=True)
        cluster.uninstall()
    except (Failure, subprocess.TimeoutExpired) as failure:
        print(f"e2e: cleaning up: {failure}", file=sys.stderr)


sys.exit(main())
