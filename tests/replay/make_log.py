#!/usr/bin/env python3
"""Writes audit lines of calls as a sidecar does, in the order in which the calls ended: make_log.py LINES [arguments].

The calls come at fixed intervals, 100 a second, from 50 sessions, and every third is of the tool `send`. With `arguments`, they have
recorded arguments.
"""

import hashlib
import heapq
import sys
import time

START = 1_767_225_600_000  # 2026-01-01T00:00:00Z, in milliseconds
STEP = 10


def line(number, with_arguments):
    at = START + number * STEP
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 1000)) + f".{at % 1000:03}Z"
    tool = ("send_dm_to_user", "get_page_posts", "get_insights")[number % 3]
    session = hashlib.sha256(b"session %d" % (number % 50)).hexdigest()[:16]
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    latency = 5 + number * 7919 % 100_000 / 1000
    arguments = f',"arguments":{{"user":"user-{number % 1000}","amount":{number % 100}}}' if with_arguments else ""
    text = (
        f'{{"time":"{moment}","server":"facebook","tool":"{tool}","decision":"allowed","reason":"none","policy":"default/facebook",'
        f'"entry":"{tool}","outcome":"ok","latencyMs":{latency},"session":"{session}","argumentsSha256":"{digest}"{arguments}}}\n'
    )
    return at + latency, text


def main():
    with_arguments = sys.argv[2:] == ["arguments"]
    waiting = []
    for number in range(int(sys.argv[1])):
        end, text = line(number, with_arguments)
        heapq.heappush(waiting, (end, number, text))
        while waiting and waiting[0][0] <= START + number * STEP:
            sys.stdout.write(heapq.heappop(waiting)[2])
    while waiting:
        sys.stdout.write(heapq.heappop(waiting)[2])


if __name__ == "__main__":
    main()
