"""The scenarios. Each is a function and can run alone."""

from dataclasses import dataclass
from typing import Callable

SCENARIOS = {}


@dataclass
class Scenario:
    name: str
    what: str
    target: str
    function: Callable


def scenario(name, what, target):
    def keep(function):
        SCENARIOS[name] = Scenario(name, what, target, function)
        return function

    return keep


# In the order in which they run: those that stop the operator come late, and the chart last.
from . import agents, policies, denials, tools, pins, operations, credentials, nodes, capture, intercept, capture_pods, capture_ways, capture_outages, approvals, operators, shared, chart  # noqa: E402, F401
