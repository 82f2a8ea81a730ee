"""Reads the queries of the dashboards and alerts, as Grafana and Prometheus send them."""
import json
import pathlib
import re
from dataclasses import dataclass

import yaml

ROOT = pathlib.Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "charts/toolweir/dashboards").glob("*.json"))
ALERTS = ROOT / "charts/toolweir/alerts.yaml"


@dataclass
class Query:
    """One query of one panel."""

    board: str
    panel: dict
    target: dict

    @property
    def name(self):
        return f"{self.board} / {self.panel['title']} [{self.target['refId']}]"

    @property
    def instant(self):
        return self.target.get("instant", False)


def boards():
    return [json.loads(path.read_text()) for path in DASHBOARDS]


def panels(board):
    """Returns the panels without rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board):
    return [Query(board["title"], panel, target) for panel in panels(board) for target in panel.get("targets", [])]


def rules():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def interpolate(expr, variables, range_seconds, rate_seconds):
    """Replaces variables as Grafana does. Variables that are not in `variables` have their `all` value."""
    known = {
        "__rate_interval_ms": str(rate_seconds * 1000), "__rate_interval": f"{rate_seconds}s",
        "__range_s": str(range_seconds), "__range": f"{range_seconds}s",
    } | variables

    def value(found):
        name = found[1] or found[2]
        if name not in known:
            raise SystemExit(f"no variable ${name} in {expr}")
        return known[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, expr)


def everything(board):
    """Returns the value `All` of each variable."""
    return {variable["name"]: variable["allValue"] for variable in board["templating"]["list"] if variable["type"] == "query"}
