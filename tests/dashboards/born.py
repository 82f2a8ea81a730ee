"""Checks that the dashboard counts all calls of an agent that ended before its first scrape: `born.py PROMETHEUS END`, with sample.py."""
import sys

from ask import ask
from boards import boards, everything, interpolate, queries

url, end = sys.argv[1], float(sys.argv[2])
board = boards()[0]
chosen = everything(board) | {"workload": "nightly"}


def shown(title, range_seconds, legend=None):
    [query] = [query for query in queries(board) if query.panel["title"] == title and legend in (None, query.target.get("legendFormat"))]
    return interpolate(query.target["expr"], chosen, range_seconds, 60)


def expect(what, wanted, got):
    if wanted != got:
        sys.exit(f"{what}: expected {wanted}, got {got}")


expr = shown("Top denied tools", 3600)
got = {(series["metric"]["tool"], series["metric"]["reason"]): round(float(series["value"][1])) for series in ask(url, "query", query=expr, time=end)}
expect("denied by tool and reason", {("send_dm_to_user", "rate_limit"): 5, ("delete_post", "not_listed"): 1}, got)
expr = shown("Calls", 3600)
expect("calls", 36, round(float(ask(url, "query", query=expr, time=end)[0]["value"][1])))
# Over time: what is drawn adds up to the same.
step = 15
for decision, calls in (("allowed", 30), ("denied", 6)):
    [series] = ask(url, "query_range", query=shown("Calls by decision", 3600, decision), start=end - 3600, end=end, step=step)
    drawn = sum(float(value) for _, value in series["values"]) * step
    expect(f"{decision} calls over time, about {calls}: {drawn}", True, abs(drawn / calls - 1) < 0.3)
# Not of a process that is older than what is looked at: Prometheus may only have been away.
expr = shown("Calls", 120)
expect("calls in the last two minutes", [], [series for series in ask(url, "query", query=expr, time=end) if float(series["value"][1])])
