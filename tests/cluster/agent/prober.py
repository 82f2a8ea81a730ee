"""Calls one tool again and again, and prints a line with the time whenever what decides changes: the limit that a denial names,
or that a call went through. Its clock is the node's, so the lines can be held against the times at which policies were changed.

    prober.py SERVER TOOL [ARGUMENTS [LAST]]      until what decides is LAST, such as `ok`, if it is given

A line is {"time": seconds since 1970 when the answer was there, "asked": when it was asked, "max": 30, "calls": so many before}.
"""

import json
import sys
import time

from call import Agent

agent, tool, arguments = Agent(sys.argv[1]), sys.argv[2], json.loads("".join(sys.argv[3:4]) or "{}")
last, calls = object(), 0
while True:
    asked = time.time()
    answer = agent.call(tool, arguments)
    now = time.time()
    calls += 1
    limit = (answer["denial"] or {}).get("limit") or {}
    decided = limit.get("max") if answer["outcome"] == "denied" else answer["outcome"]
    if decided != last:
        print(json.dumps({"time": now, "asked": asked, "max": decided, "calls": calls, "text": answer["text"]}), flush=True)
        last = decided
        if sys.argv[4:] == [decided]:
            break
    # Often enough to measure milliseconds, seldom enough to leave the machine to what is measured.
    time.sleep(0.002)
