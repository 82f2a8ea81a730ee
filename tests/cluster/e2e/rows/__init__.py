"""The rows of the table, each a function that measures one and can run alone."""

from dataclasses import dataclass
from typing import Callable

ROWS = {}


@dataclass
class Row:
    name: str
    what: str
    bar: str
    function: Callable


def row(name, what, bar):
    def keep(function):
        ROWS[name] = Row(name, what, bar, function)
        return function

    return keep


# In the order in which they run: what takes the operator away comes late, and the chart last.
from . import agents, policies, denials, operators, shared, chart  # noqa: E402, F401
