"""An agent that calls tools again and again, each as often as its command line says, until it is stopped: traffic for dashboards.

    traffic.py SERVER TOOL=CALLS_A_MINUTE[@ARGUMENTS]...

ARGUMENTS are JSON. How often swings by half within five minutes, so that there is something to see. With CALLS_A_MINUTE of `50!`,
50 calls are made at once, at the start, and none after them.
"""

import json
import math
import random
import signal
import sys
import time

from call import Agent

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
agent, wanted = Agent(sys.argv[1]), []
for word in sys.argv[2:]:
    tool, _, rest = word.partition("=")
    often, _, arguments = rest.partition("@")
    wanted.append((tool, often, json.loads(arguments or "{}")))
for tool, often, arguments in wanted:
    if often.endswith("!"):
        for _ in range(int(often[:-1])):
            agent.call(tool, arguments)
steady = [(tool, float(often), arguments) for tool, often, arguments in wanted if not often.endswith("!")]
while True:
    for tool, often, arguments in steady:
        swing = 1 + 0.5 * math.sin(time.time() / 300 * 2 * math.pi)
        # A quarter of a second at a time.
        if random.random() < often / 240 * swing:
            agent.call(tool, arguments)
    time.sleep(0.25)
