"""Sends every query of every panel, and every metric of every alert, to a Prometheus, and reports empty results.

    ask.py PROMETHEUS [--range SECONDS] [--rate SECONDS] [--end TIME] [--cluster] [--set NAME=VALUE]...

--set: a variable of the dashboards; all of them are at `All` else. With --cluster the API server is scraped too. Exit code 1:
something is empty that should not be, or cannot be asked.
"""
import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import promql_parser as promql

from boards import boards, everything, interpolate, queries, rules
from lint import FOREIGN, selectors

# Empty in a cluster where nothing is wrong, and why. Each has a unit test (alerts_test.yaml) in which it is not.
QUIET_METRICS = {
    "kube_pod_init_container_status_restarts_total": "only with kube-state-metrics",
    "apiserver_admission_webhook_rejection_count": "only with a scrape of the API server, and once a webhook refused something",
    "apiserver_admission_webhook_admission_duration_seconds_bucket": "only with a scrape of the API server",
}
# Of these the API server has series after the tour, which refuses a policy.
IN_A_CLUSTER = {name for name in QUIET_METRICS if name.startswith("apiserver_")}


def ask(url, path, **parameters):
    body = urllib.parse.urlencode(parameters).encode()
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}", body, timeout=60) as response:
            return json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{parameters['query']}\n{json.load(error)['error']}") from error


def numbers(result):
    """Returns the values that can be drawn."""
    values = [float(value) for series in result for _, value in series.get("values", [series["value"]] if "value" in series else [])]
    return [value for value in values if math.isfinite(value)]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("url")
    arguments.add_argument("--range", type=int, default=3600)
    arguments.add_argument("--rate", type=int, default=60)
    arguments.add_argument("--end", type=float, default=None)
    arguments.add_argument("--cluster", action="store_true")
    arguments.add_argument("--set", action="append", default=[])
    given = arguments.parse_args()
    end, chosen = given.end or time.time(), dict(pair.split("=", 1) for pair in given.set)
    empty = []

    for board in boards():
        known = everything(board) | {name: value for name, value in chosen.items() if name in everything(board)}
        for query in queries(board):
            expr = interpolate(query.target["expr"], known, given.range, given.rate)
            if query.instant:
                result = ask(given.url, "query", query=expr, time=end)
            else:
                result = ask(given.url, "query_range", query=expr, start=end - given.range, end=end, step=max(given.range // 240, 5))
            drawn = numbers(result)
            print(f"{len(result):4} series  {query.name}")
            if not drawn:
                empty.append(f"{query.name}: {'nothing but NaN' if result else 'nothing'}\n    {expr}".replace("\n", "\n    "))
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
                found = ask(given.url, "query", query=f"count by ({label}) (last_over_time({interpolate(selector, known, given.range, given.rate)}[{given.range}s]))", time=end)
                values = sorted(series["metric"].get(label, "") for series in found)
                print(f"{len(values):4} values  {board['title']} / ${variable['name']}: {', '.join(values)[:100]}")
                if not any(values):
                    empty.append(f"{board['title']} / ${variable['name']}: no values")

    # An alert that fires shows nothing of its queries; what it looks at must be there all the same.
    looked, recorded = {}, {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        for selector, _ in selectors(promql.parse(rule["expr"])):
            if selector.name in recorded:
                continue
            # Which values are bad is for the alert to say; that the labels are there is for this.
            labels = ", ".join(f'{matcher.name}!=""' for matcher in selector.matchers.matchers if matcher.name not in ("reason", "error_type"))
            looked.setdefault((selector.name, labels), []).append(rule.get("alert") or rule["record"])
        # It must be possible to ask it; what is recorded must be something.
        result = ask(given.url, "query", query=rule["expr"], time=end)
        if "record" in rule:
            print(f"{len(result):4} series  {rule['record']}")
            if not numbers(result):
                empty.append(f"{rule['record']}: nothing")
    for (name, labels), who in looked.items():
        result = ask(given.url, "query", query=f"count(last_over_time({name}{{{labels}}}[{given.range}s]))", time=end)
        there = numbers(result)
        print(f"{int(there[0]) if there else 0:4} series  {', '.join(sorted(set(who)))}: {name}")
        quiet = name in QUIET_METRICS and not (given.cluster and name in IN_A_CLUSTER)
        if not there and not quiet:
            empty.append(f"{', '.join(sorted(set(who)))}: there is no {name}{{{labels}}}")

    if empty:
        sys.exit("empty:\n" + "\n".join(empty))


if __name__ == "__main__":
    assert IN_A_CLUSTER | {"kube_pod_init_container_status_restarts_total"} == set(QUIET_METRICS) and len(FOREIGN) == len(QUIET_METRICS)
    main()
