"""Writes the dashboards of charts/toolweir/dashboards.

    generate.py            write them
    generate.py --check    say whether they are up to date

It needs grafana-foundation-sdk; tests/dashboards/run.sh makes an environment that has it, and UPDATE_GOLDEN=1 calls this.
"""
import difflib
import json
import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

import denials
import fleet

TO = pathlib.Path(__file__).parents[1] / "toolweir/dashboards"


def tidy(value):
    """Without what the SDK writes and Grafana's schema does not know: nulls, but for the first threshold, and some of a variable."""
    if isinstance(value, list):
        return [tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    is_step = set(value) == {"value", "color"}
    is_variable = "type" in value and "skipUrlSync" in value
    return {
        key: tidy(item)
        for key, item in value.items()
        if (item is not None or (is_step and key == "value")) and not (is_variable and key in ("id", "auto", "auto_min", "auto_count"))
    }


def text(built):
    # A switch of Grafana before 10, which it reads no more.
    built.style = None
    plain = tidy(json.loads(json.dumps(built, cls=JSONEncoder)))
    for id, panel in enumerate(plain["panels"], 1):
        panel["id"] = id
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main():
    made = {f"{board.uid}.json": text(board) for board in (denials.build().build(), fleet.build().build())}
    if sys.argv[1:] == ["--check"]:
        there = {path.name: path.read_text() for path in TO.glob("*")}
        for name in sorted(made.keys() | there.keys()):
            sys.stdout.writelines(difflib.unified_diff(there.get(name, "").splitlines(True), made.get(name, "").splitlines(True), name, "charts/dashboards", n=1))
        sys.exit("charts/toolweir/dashboards is not what charts/dashboards says; run UPDATE_GOLDEN=1 tests/dashboards/run.sh" if there != made else 0)
    elif sys.argv[1:]:
        sys.exit("usage: generate.py [--check]")
    TO.mkdir(exist_ok=True)
    for name, content in made.items():
        (TO / name).write_text(content)


if __name__ == "__main__":
    main()
