"""Runs the rows of the table on a cluster, and says of each what was measured and whether it holds.

    python3 tests/cluster/e2e            all rows (e2e.sh starts a cluster and puts the images there first)
    python3 tests/cluster/e2e ROW...     these alone
    python3 tests/cluster/e2e --list     their names
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback

from kube import Cluster, Failure
from rows import ROWS
from settings import OUT


class Measured:
    """What a row finds out, and whether every bar holds."""

    def __init__(self):
        self.notes, self.figures, self.missed = [], {}, []

    def note(self, text):
        self.notes.append(text)

    def bar(self, what, value, most, unit):
        """A figure that may not exceed `most`."""
        self.figures[what] = round(value, 3)
        self.notes.append(f"{what} {shown(value)} {unit}")
        if not value <= most:
            self.missed.append(f"{what} is {shown(value)} {unit}, and the bar {shown(most)} {unit}")


def shown(value):
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def measure(cluster, row):
    measured, began = Measured(), time.monotonic()
    try:
        cluster.install()
        cluster.settled()
        cluster.server()
        row.function(cluster, measured)
        problem = "; ".join(measured.missed)
    except (Failure, subprocess.TimeoutExpired) as failure:
        problem = str(failure)
    except Exception:
        # A defect of the test is told like one of the product, with where it is.
        problem = traceback.format_exc()
    folder = str(cluster.collect(row.name)) if problem else None
    cluster.remove_namespaces()
    return {
        "row": row.name, "what": row.what, "bar": row.bar, "holds": not problem, "measured": "; ".join(measured.notes),
        "problem": problem, "figures": measured.figures, "seconds": round(time.monotonic() - began, 1), "logs": folder,
    }


def table(results):
    """The results as Markdown."""
    lines = ["| what | bar | measured | |", "| --- | --- | --- | --- |"]
    for result in results:
        verdict = "holds" if result["holds"] else f"**does not hold**: {' '.join(result['problem'].split())[-300:]}"
        cells = [result["what"], result["bar"], result["measured"] or "–", verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    words = sys.argv[1:]
    if words == ["--list"]:
        for row in ROWS.values():
            print(f"{row.name:18} {row.what}")
        return 0
    check, names = words[:1] == ["--check"], [word for word in words if word != "--check"]
    if unknown := [name for name in names if name not in ROWS]:
        print(f"e2e: there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if check:
        return 0

    OUT.mkdir(parents=True, exist_ok=True)
    # What is stopped is cleaned up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster, results = Cluster(), []
    try:
        for row in [ROWS[name] for name in names or ROWS]:
            print(f"\n---- {row.name}: {row.what}\n     bar: {row.bar}", flush=True)
            result = measure(cluster, row)
            results.append(result)
            print(f"     measured: {result['measured'] or 'nothing'} ({result['seconds']} s)")
            if not result["holds"]:
                print(f"     DOES NOT HOLD: {result['problem']}\n     logs: {result['logs']}", flush=True)
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
        print(f"  {'holds ' if result['holds'] else 'FAILED'}  {result['row']:18} {result['seconds']:6.1f} s   {result['measured']}")
        if not result["holds"]:
            print(f"          {'':18}            {' '.join(result['problem'].split()):.300}\n          {'':18}            logs: {result['logs']}")
    print(f"\n  {len(results) - len(failed)} hold, {len(failed)} do not; the table is {OUT / 'results.md'}")
    return 1 if failed else 0


def clean(cluster):
    """Leaves a cluster that was there before without anything of the tests."""
    try:
        cluster.namespaces += ["toolweir-e2e-tools"] if cluster.server_ready else []
        cluster.remove_namespaces(wait=True)
        cluster.uninstall()
    except (Failure, subprocess.TimeoutExpired) as failure:
        print(f"e2e: cleaning up: {failure}", file=sys.stderr)


sys.exit(main())
