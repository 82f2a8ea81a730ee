"""The MCP server's log of arrivals, and what it says of a limit. Run alone, it checks itself."""

import random
from collections import namedtuple

SECOND = 1_000_000_000

Arrival = namedtuple("Arrival", "time tool account")


def read(path):
    """The arrivals in the order of their times. A line that is not whole is an error: a log with holes would let a broken limit
    pass."""
    with open(path) as file:
        text = file.read()
    if text and not text.endswith("\n"):
        raise ValueError(f"{path}: the last line is cut off")
    lines = (line.split(" ") for line in text.splitlines())
    return sorted(Arrival(int(time), tool, account) for time, tool, account in lines)


def busiest(times, window):
    """The most arrivals in any span of `window` nanoseconds, both ends included. `times` are sorted."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] > window:
            first += 1
        most = max(most, last + 1 - first)
    return most


def shortest(times, count):
    """The shortest time from an arrival to the one `count` places later; over the window where `count` is the limit's
    maximum and was kept. Nothing where there are not so many."""
    return min((b - a for a, b in zip(times, times[count:])), default=None)


def self_test():
    # Two a second, evenly: kept. Both ends belong to a span, so that three in exactly a second are one too many.
    assert busiest([0, SECOND // 2 + 1, SECOND + 2], SECOND) == 2
    assert busiest([0, SECOND // 2, SECOND], SECOND) == 3
    assert busiest([], SECOND) == 0
    # Kept in every second of the clock, and broken across two of them: what fixed windows let through.
    clock = [SECOND - 3, SECOND - 2, SECOND + 1, SECOND + 2]
    assert busiest(clock, SECOND) == 4 and shortest(clock, 2) < SECOND
    # 200 a second for a minute, and the same with a single arrival more in the middle.
    kept = [i * SECOND // 200 + i // 200 * 1000 for i in range(12000)]
    assert busiest(kept, SECOND - SECOND // 200) == 200
    broken = sorted([*kept, kept[6000] + 1])
    assert busiest(broken, SECOND - SECOND // 200) == 201 and shortest(broken, 200) <= SECOND - SECOND // 200
    # Against the plainest way to say it.
    for seed in range(200):
        dice = random.Random(seed)
        times = sorted(dice.randrange(1000) for _ in range(dice.randrange(1, 60)))
        window = dice.randrange(1, 300)
        plain = max(sum(start <= time <= start + window for time in times) for start in times)
        assert busiest(times, window) == plain
        gap = shortest(times, plain)
        assert gap is None or gap > window
        assert plain == 1 or shortest(times, plain - 1) <= window


if __name__ == "__main__":
    self_test()
    print("the checker of logs finds what it should")
