"""Lint rules for dashboards and alerts: the applicable rules of Grafana's dashboard linter, and our own.

    lint.py [CHECK]

Says what does not hold, a line each, and exits with 1. Rules of the linter that are left out, and why: `target-instance-rule` and
`template-instance-rule`, since who reads these boards looks for agents by namespace and workload, not by address.
"""
import pathlib
import re
import sys

import promql_parser as promql
import yaml

from boards import ALERTS, ROOT, boards, everything, interpolate, panels, queries, rules

problems = []
# Units that are used, as Grafana's "valueFormats" name them. A misspelt one is shown as text behind each value.
UNITS = {"short", "percentunit", "reqps", "ops", "s", "d"}
# Those of other programs: the API server's, and kube-state-metrics'.
FOREIGN = {"apiserver_admission_webhook_rejection_count", "apiserver_admission_webhook_admission_duration_seconds", "kube_pod_init_container_status_restarts_total"}
# What a scrape gives, and what our metrics have.
SCRAPED = {"job", "instance", "namespace", "pod", "workload"}


def expect(holds, *words):
    if not holds:
        problems.append(" ".join(str(word) for word in words))
    return holds


def walk(node, parents=()):
    """(node, its parents, the nearest last) of every part of an expression."""
    yield node, parents
    below = [getattr(node, field, None) for field in ("expr", "lhs", "rhs", "param", "vector_selector")] + list(getattr(node, "args", None) or [])
    for one in below:
        if isinstance(one, promql.Expr):
            yield from walk(one, (*parents, node))


def selectors(expr):
    return [(node, parents) for node, parents in walk(expr) if isinstance(node, promql.VectorSelector)]


def base(name):
    return re.sub(r"_(bucket|count|sum)$", "", name) if not name.endswith("_rejection_count") else name


def parsed(query, board):
    return promql.parse(interpolate(query.target["expr"], everything(board), 3600, 240))


def by(node):
    """Returns the labels of an expression's result, as far as its aggregations determine them."""
    while True:
        if isinstance(node, promql.ParenExpr):
            node = node.expr
        elif isinstance(node, promql.BinaryExpr):
            left, right = by(node.lhs), by(node.rhs)
            return left if left is not None else right
        elif isinstance(node, promql.Call):
            inner = [arg for arg in node.args if not isinstance(arg, (promql.NumberLiteral, promql.StringLiteral))]
            if not inner:
                return set() if node.func.name == "vector" else None
            labels = by(inner[-1])
            return labels - {"le"} if labels and node.func.name == "histogram_quantile" else labels
        elif isinstance(node, promql.AggregateExpr):
            if str(node.op) in ("topk", "bottomk"):
                node = node.expr
                continue
            return set(node.modifier.labels) if node.modifier else set()
        else:
            return None


# ---- dashboards


def dashboards():
    """A title, a relative time range, and not editable in Grafana, since an upgrade would overwrite changes."""
    uids = [board["uid"] for board in boards()]
    expect(len(uids) == 2 and len(set(uids)) == 2, "dashboards:", uids)
    for board in boards():
        title = board["title"]
        expect(title.startswith("Toolweir / "), title, "is not among those of Toolweir")
        expect(board["description"] and "toolweir" in board["tags"], title, "has no description or tag")
        expect(board["editable"] is False, title, "may be edited")
        expect(board["time"]["to"] == "now" and board["refresh"], title, "stands still")
        expect("id" not in board and "version" not in board, title, "has an id or a version, which differ in each Grafana")


def variables():
    """template-datasource-rule, template-job-rule, template-label-promql-rule, template-on-time-change-reload-rule; and namespace."""
    for board in boards():
        title, there = board["title"], {variable["name"]: variable for variable in board["templating"]["list"]}
        source = board["templating"]["list"][0]
        expect(source["name"] == "datasource" and source["type"] == "datasource" and source["query"] == "prometheus" and source["label"] == "Data source", title, "the data source", source)
        wanted = {"job", "namespace"} | ({"workload", "server", "policy"} if board["uid"] == "toolweir-denials" else set())
        expect(there.keys() - {"datasource"} == wanted, title, "has the variables", *there)
        for name in wanted & there.keys():
            variable = there[name]
            expect(variable["type"] == "query" and variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title, name, "does not ask the data source")
            expect(variable["label"] and variable["description"], title, name, "has no label or description")
            expect(variable["multi"] and variable["includeAll"], title, name, "takes one value only")
            expect(variable["allValue"] == (".+" if name == "job" else ".*"), title, name, "all is", variable["allValue"])
            expect(variable["refresh"] == 2, title, name, "is not asked again when the time range changes")
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            if expect(found and found[2] == name, title, name, "asks", variable["query"]):
                promql.parse(interpolate(found[1], everything(board), 3600, 240))


def layout():
    """Panels do not overlap, are inside the grid, and have unique ids and titles."""
    for board in boards():
        cells, seen = {}, set()
        for panel in board["panels"]:
            at, name = panel["gridPos"], f"{board['title']} / {panel['title']}"
            expect(panel["id"] not in seen and name not in seen, name, "is there twice, or its id is")
            seen |= {panel["id"], name}
            expect(at["w"] > 0 and at["h"] > 0 and at["x"] >= 0 and at["x"] + at["w"] <= 24, name, "is out of the grid:", at)
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    expect((x, y) not in cells, name, "lies over", cells.get((x, y)))
                    cells[x, y] = name
        ends = {}
        for panel in board["panels"]:
            at = panel["gridPos"]
            ends.setdefault(at["y"], 0)
            ends[at["y"]] += at["w"]
        expect(all(width == 24 for width in ends.values()), board["title"], "has lines that are not full:", ends)


def described():
    """panel-title-description-rule, panel-units-rule, panel-datasource-rule, panel-no-targets-rule; and a text where there is nothing."""
    for board in boards():
        for panel in panels(board):
            name, defaults = f"{board['title']} / {panel['title']}", panel["fieldConfig"]["defaults"]
            expect(panel["title"] and panel["description"].endswith("."), name, "has no title or description")
            expect(defaults.get("unit") in UNITS, name, "has the unit", defaults.get("unit"))
            expect(defaults.get("noValue"), name, "says nothing where there is no data")
            expect(panel["datasource"]["uid"] == "${datasource}", name, "asks", panel["datasource"])
            refs = [target["refId"] for target in panel["targets"]]
            expect(refs and len(set(refs)) == len(refs), name, "has the queries", refs)
            for target in panel["targets"]:
                expect(target["datasource"]["uid"] == "${datasource}", name, "asks", target["datasource"])


def asked():
    """target-promql-rule, target-job-rule, target-rate-interval-rule, target-counter-agg-rule."""
    for board in boards():
        for query in queries(board):
            name, raw = query.name, query.target["expr"]
            try:
                expr = parsed(query, board)
            except ValueError as error:
                expect(False, name, "is no PromQL:", error)
                continue
            window = "$__range" if query.instant else "$__rate_interval"
            windows = set(re.findall(r"\[(\$?\w+)\]", raw)) | set(re.findall(r"offset (\S+?)\)*(?:\s|$)", raw))
            expect(windows <= {window}, name, "looks back over", windows, "not over", window)
            for selector, parents in selectors(expr):
                matchers = [(matcher.name, str(matcher.op), matcher.value) for matcher in selector.matchers.matchers]
                expect(("job", "MatchOp.Re", ".+") in matchers, name, "asks for", selector.name, "of every job")
                near = parents[-1] if parents else None
                if selector.name.endswith("_total"):
                    in_call = isinstance(near, promql.MatrixSelector) and parents[-2].func.name in ("rate", "increase", "min_over_time")
                    # `counted` of charts/dashboards/common.py: what a counter began with.
                    began = any(isinstance(one, promql.BinaryExpr) and "unless" in str(one.op).lower() for one in parents)
                    expect(in_call or began, name, "takes the counter", selector.name, "as it is")


def shown():
    """Legends and columns use only labels that the query returns."""
    for board in boards():
        for query in queries(board):
            labels = by(parsed(query, board))
            used = set(re.findall(r"\{\{ *(\w+) *\}\}", query.target.get("legendFormat", "")))
            if query.panel["type"] == "table":
                [organize] = [step["options"] for step in query.panel["transformations"] if step["id"] == "organize"]
                columns = {column for column in organize["renameByName"] if not column.startswith("Value")}
                wanted = {column for column in columns if len(query.panel["targets"]) == 1 or query.target["refId"] == "A"}
                expect(labels is not None and (labels == wanted or wanted == set() or query.target["refId"] != "A"), query.name, "gives", labels, "and shows", wanted)
            else:
                expect(labels is not None and used <= labels, query.name, "names", used, "of", labels)
                # Only a number has one series by design.
                expect(query.panel["type"] == "stat" or used or len(query.panel["targets"]) > 1, query.name, "has a legend that tells nothing apart")


# ---- alerts


def documented():
    """Every metric in a query is documented as exported."""
    known = set()
    for path in ("docs/metrics.md", *sorted((ROOT / "operator/src").rglob("*.rs"))):
        known |= set(re.findall(r"\b(?:toolweir|process)_[a-z0-9_]+", (ROOT / path).read_text()))
    known |= FOREIGN | {rule["record"] for rule in rules() if "record" in rule}
    wanted = {(query.name, selector.name) for board in boards() for query in queries(board) for selector, _ in selectors(parsed(query, board))}
    wanted |= {(rule.get("alert") or rule["record"], selector.name) for rule in rules() for selector, _ in selectors(promql.parse(rule["expr"]))}
    for who, name in sorted(wanted):
        expect(name in known or base(name) in known, who, "asks for", name, "which nobody exports")


def alerts():
    """Each alert has a summary, a severity and a runbook; docs/alerts.md has exactly one section for each."""
    page = (ROOT / "docs/alerts.md").read_text()
    sections = re.findall(r"^## (Toolweir\w+)$", page, re.M)
    named = [rule["alert"] for rule in rules() if "alert" in rule]
    expect(len(set(named)) == len(named), "an alert is there twice")
    expect(sections == named, "docs/alerts.md has", *sections, "and alerts.yaml has", *named)
    for rule in rules():
        if "alert" not in rule:
            continue
        name, notes = rule["alert"], rule["annotations"]
        expect(rule["labels"]["severity"] in ("warning", "critical"), name, "severity", rule["labels"])
        expect(set(notes) == {"summary", "description", "runbook_url"}, name, "annotations", *notes)
        expect(notes["runbook_url"].endswith(f"docs/alerts.md#{name.lower()}"), name, "runbook", notes["runbook_url"])
        labels = by(promql.parse(rule["expr"]))
        used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
        expect(labels is not None and used <= labels, name, "speaks of", used, "and has", labels)
        section = page.split(f"## {name}\n", 1)[-1].split("\n## ", 1)[0]
        for part in ("**Means**", "**Look**", "**Do**"):
            expect(part in section, "docs/alerts.md:", name, "lacks", part)


def tested():
    """Each alert has a test in which it fires and one in which it does not."""
    tests = yaml.safe_load((pathlib.Path(__file__).parent / "alerts_test.yaml").read_text())["tests"]
    said = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test.get("alert_rule_test", [])]
    for rule in rules():
        if "alert" in rule:
            expect((rule["alert"], True) in said, rule["alert"], "is never seen to fire")
            expect((rule["alert"], False) in said, rule["alert"], "is never seen to be silent")
    expect({name for name, _ in said} <= {rule.get("alert") for rule in rules()}, "tests of alerts that are not there")


CHECKS = {check.__name__: check for check in (dashboards, variables, layout, described, asked, shown, documented, alerts, tested)}

if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(*CHECKS)
        sys.exit()
    for name in sys.argv[1:] or CHECKS:
        CHECKS[name]()
    sys.exit("\n".join(problems) or 0)
