"""Runs the rows, and says what holds. See run.sh."""

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import operator_rows
import sidecar_rows
from cgroup import NoCgroup
from stage import Broken, Row

ROWS = sidecar_rows.ROWS | operator_rows.ROWS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", type=Path)
    parser.add_argument("--operator", type=Path)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--sidecar-mib", type=int, default=64)
    parser.add_argument("--operator-mib", type=int, default=256)
    parser.add_argument("--patience", type=float, default=20)
    parser.add_argument("rows", nargs="*")
    settings = parser.parse_args()
    if unknown := [name for name in settings.rows if name not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    # Thousands of connections, each with two ends of which one is here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < 16384:
        sys.exit(f"rows.py: needs 16384 open files, and this shell's hard limit is {most}; raise it with: ulimit -Hn 16384")
    # Whoever ends this ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    summary, failed = [], 0
    for name in settings.rows or ROWS:
        run = ROWS[name]
        began, row = time.monotonic(), Row(name, settings.dir / name)
        try:
            run(row, settings)
        except NoCgroup as error:
            sys.exit(f"rows.py: {error}")
        except Broken as error:
            row.bar(False, str(error), "the row can be measured")
        except Exception:
            row.bar(False, traceback.format_exc(), "the row can be measured")
        finally:
            row.end()
        failed += bool(row.failed)
        summary.append((name, time.monotonic() - began, row))
        # For whoever makes a table of it.
        results = {done: {"seconds": round(seconds, 1), "lines": found.lines} for done, seconds, found in summary}
        (settings.dir / "results.json").write_text(json.dumps(results, indent=1))
    print("\n==== bounds")
    for name, seconds, row in summary:
        print(f"  {name:<16} {'holds' if not row.failed else 'DOES NOT HOLD':<14} {seconds:5.1f} s")
        for how, text in row.lines:
            if how != "told":
                print(f"      {how}: {text[:300]}")
    print(f"{len(summary) - failed} rows hold, {failed} do not")
    sys.exit(failed > 0)


main()
