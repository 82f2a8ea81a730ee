"""A second try for scenarios that missed time and nothing else. This machine may be busy; a statement about what passes holds on any.

A record of a scenario says how many of its checks failed (`failed`), and how many of these are about time alone (`late`): what was waited
for did not come, or a figure in seconds was missed. What got out, was let through, counted or said wrongly is never one of them.
"""

import time
import traceback


class Late(Exception):
    """What a test waited for did not come in time. What must not be, such as a connection that must be closed, is never raised as this."""


class Checks:
    """Counts the checks of one try."""

    first = None

    def __init__(self, name):
        self.name, self.failed, self.late = name, 0, 0

    def in_time(self, holds, figure, required):
        """A check of time alone."""
        self.late += not holds
        return self.require(holds, figure, required)

    def broke_off(self, error, part=""):
        """The scenario, or a part of it, ended with an error."""
        check = self.in_time if isinstance(error, Late) else self.require
        check(False, part + str(error), "the scenario runs")

    def run(self, body, expected):
        """Runs the scenario, and records how it broke off, with an error that was `expected` or another, and how long it took."""
        began = time.monotonic()
        try:
            body()
        except expected as error:
            self.broke_off(error)
        except Exception as error:
            traceback.print_exc()
            self.require(False, f"{type(error).__name__}: {error}", "the scenario runs")
        self.took = time.monotonic() - began
        return self


class PrintedChecks(Checks):
    """Prints a line for each check, too, with what was required where that does not hold."""

    def __init__(self, name):
        super().__init__(name)
        self.checks, self.took = 0, 0.0

    def require(self, holds, what, required=None):
        self.failed += not holds
        self.checks += 1
        print(f"{self.name}: {'ok' if holds else 'FAILED'}: {what}" + (f" (required: {required})" if required and not holds else ""), flush=True)
        return holds


def with_second_try(attempt):
    """Runs `attempt`, with the number of the try, and returns its record. Where everything that failed is about time, it runs once more, and
    the record of that has the earlier one as `first`."""
    first = attempt(1)
    if not first.failed or first.failed > first.late:
        return first
    print(f"\n---- {first.name}: a second try, as only time was missed", flush=True)
    second = attempt(2)
    second.first = first
    return second


def verdict(record):
    """What the summary says of a scenario."""
    if record.failed:
        return "FAILED twice" if record.first else "FAILED"
    return "passed at the second try" if record.first else "passed"


def printed_summary(records, logs):
    """Prints how each of these records of `PrintedChecks` ended. Returns the exit code of the whole."""
    print("\n== summary", flush=True)
    for record in records:
        word = f"{record.failed} " if record.failed else ""
        print(f"  {record.name}: {record.checks} checks, {word}{verdict(record)} ({record.took:.0f} s)")
    failed = sum(bool(record.failed) for record in records)
    print(f"{len(records) - failed} passed, {failed} failed; logs are in {logs}")
    return 1 if failed else 0
