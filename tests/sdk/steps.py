"""Prints what every client does in one session, as JSON: `steps.py [--direct] ECHO SUM SUM_TEXT DENIED UNLISTED POLICY`.

ECHO and DENIED are tools that the policy allows and denies, SUM one that it limits to three calls a minute, UNLISTED one
that it does not name. --direct leaves out what only a sidecar does.
"""

import json
import sys

direct = sys.argv[1] == "--direct"
echo, total, total_text, denied, unlisted, policy = sys.argv[1 + direct :]


def listing(what):
    return {"what": what, "list": {"present": [echo, total], "absent": [] if direct else [denied, unlisted]}}


def call(what, tool, args, text, reason=None):
    step = {"what": what, "call": tool, "args": args, "text": text}
    return {**step, "denied": {"policy": policy, "reason": reason}} if reason else step


def say(word, what):
    return call(what, echo, {"message": word}, f"Echo: {word}")


sums = [call(f"limited tool, call {n} of 3", total, {"a": 2, "b": 3}, total_text) for n in (1, 2, 3)]
steps = [
    listing("list shows only what may be called"),
    say("one", "allowed tool"),
    call("denied tool", denied, {}, "Ask the platform team.", "denied"),
    say("two", "allowed tool after a denial"),
    call("unlisted tool", unlisted, {}, unlisted, "not_listed"),
    *sums,
    call("limited tool, call 4 of 3", total, {"a": 2, "b": 3}, "Try again in", "rate_limit"),
    say("three", "another tool after the limit"),
    listing("list after denials"),
]
print(json.dumps([step for step in steps if not (direct and "denied" in step)]))
