"""Tests of lint.py: it must find each of the faults that are put into dashboards, one at a time."""
import copy
import sys

import boards as read
import lint

good = read.boards()


def panel(board, title):
    return next(one for one in board["panels"] if one["title"] == title)


def change(title, change_it, of=0):
    def apply(boards):
        change_it(panel(boards[of], title))

    return apply


def expr(title, old, new, of=0):
    def apply(boards):
        target = panel(boards[of], title)["targets"][0]
        assert old in target["expr"], old
        target["expr"] = target["expr"].replace(old, new)

    return apply


def variable(name, **fields):
    def apply(boards):
        next(one for one in boards[0]["templating"]["list"] if one["name"] == name).update(fields)

    return apply


SPOILT = [
    ("dashboards", lambda boards: boards[0].update(editable=True)),
    ("variables", variable("job", allValue=".*")),
    ("variables", variable("server", refresh=1)),
    ("variables", variable("namespace", multi=False)),
    ("layout", change("Denied", lambda one: one["gridPos"].update(x=0))),
    ("layout", change("Sidecars", lambda one: one["gridPos"].update(x=21))),
    ("layout", change("Sidecars", lambda one: one.update(title="Calls"))),
    ("described", change("Calls", lambda one: one.update(description=""))),
    ("described", change("Calls", lambda one: one["fieldConfig"]["defaults"].update(unit="seconds"))),
    ("described", change("Calls", lambda one: one["fieldConfig"]["defaults"].pop("noValue"))),
    ("described", change("Calls", lambda one: one["datasource"].update(uid="prometheus"))),
    ("described", change("Calls", lambda one: one.update(targets=[]))),
    ("asked", expr("Calls", "sum", "sum(")),
    ("asked", expr("Upstream latency", "[$__rate_interval]", "[5m]")),
    ("asked", expr("Fullest limit", 'job=~"$job", ', "")),
    ("asked", expr("Stream connections", "toolweir_operator_streams", "toolweir_operator_acks_total", 1)),
    ("shown", expr("Denials by reason", "sum by (reason)", "sum by (policy)")),
    ("shown", expr("Top denied tools", "tool, reason", "reason")),
    ("documented", expr("Sidecars", "toolweir_policy_connected", "toolweir_policy_conected")),
]

missed = []
for rule, spoil in SPOILT:
    spoilt = copy.deepcopy(good)
    spoil(spoilt)
    lint.boards = lambda spoilt=spoilt: spoilt
    lint.problems.clear()
    lint.CHECKS[rule]()
    if not lint.problems:
        missed.append(rule)
if missed:
    sys.exit(f"not found: {missed}")
