"""Writes each dashboard as a typed TypeScript constant, for tsc to check: `typed.py FOLDER`."""
import pathlib
import sys

from boards import DASHBOARDS

# JSON has the values of enumerations, not their members.
HEAD = """import type { Dashboard } from '@grafana/schema';
type Json<T> = T extends string ? `${T}` : T extends (infer Item)[] ? Json<Item>[] : T extends object ? { [Key in keyof T]: Json<T[Key]> } : T;
"""
to = pathlib.Path(sys.argv[1])
to.mkdir(exist_ok=True)
for old in to.glob("*.ts"):
    old.unlink()
for path in DASHBOARDS:
    (to / f"{path.stem}.ts").write_text(f"{HEAD}export const board: Json<Dashboard> = {path.read_text()};\n")
