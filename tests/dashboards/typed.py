"""Writes each dashboard as TypeScript that says of which type it is: `typed.py FOLDER`. tsc says whether it is so."""
import pathlib
import sys

from boards import DASHBOARDS

to = pathlib.Path(sys.argv[1])
to.mkdir(exist_ok=True)
for old in to.glob("*.ts"):
    old.unlink()
for path in DASHBOARDS:
    (to / f"{path.stem}.ts").write_text(f"import type {{ Dashboard }} from '@grafana/schema';\nexport const board: Dashboard = {path.read_text()};\n")
