"""Prints what every client does in one session, as JSON.

ECHO and DENIED are tools that the policy allows and denies, SUM one that it limits to three calls a minute, UNLISTED one
that it does not name; ECHO is denied where its message is "forbidden".
"""

import argparse
import json

parser = argparse.ArgumentParser()
parser.add_argument("--direct", action="store_true", help="leave out what only a sidecar does")
parser.add_argument("--listed", action="store_true", help="call no tool that a list does not show")
parser.add_argument("--refused", action="store_true", help="with a call that the sidecar refuses")
parser.add_argument("--failed", action="store_true", help="with a call on which the server hangs up")
for name in ["echo", "sum", "sum_text", "denied", "unlisted", "policy"]:
    parser.add_argument(name)
args = parser.parse_args()


def listing(what):
    return {"what": what, "list": {"present": [args.echo, args.sum], "absent": [] if args.direct else [args.denied, args.unlisted]}}


def call(what, tool, arguments, text, **judged):
    return {"what": what, "call": tool, "args": arguments, "text": text, **judged}


def say(word, what):
    return call(what, args.echo, {"message": word}, f"Echo: {word}")


def denial(what, tool, arguments, text, reason):
    return call(what, tool, arguments, text, denied={"policy": args.policy, "reason": reason})


two_and_three = {"a": 2, "b": 3}
steps = [
    listing("list shows only what may be called"),
    say("one", "allowed tool"),
    denial("denied tool", args.denied, {}, "Ask the platform team.", "denied"),
    denial("denied arguments", args.echo, {"message": "forbidden"}, "This word is for people.", "validation"),
    say("two", "allowed tool after a denial"),
    denial("unlisted tool", args.unlisted, {}, args.unlisted, "not_listed"),
    *[call(f"limited tool, call {n} of 3", args.sum, two_and_three, args.sum_text) for n in (1, 2, 3)],
    denial("limited tool, call 4 of 3", args.sum, two_and_three, "Try again in", "rate_limit"),
    say("three", "another tool after the limit"),
    listing("list after denials"),
]
if args.refused:
    # Twice what run.sh sets as --max-body.
    steps.append(call("refused call", args.echo, {"message": "x" * 65536}, "larger than", failed={"reason": "refused", "retry": False}))
    steps.append(say("four", "allowed tool after a refused call"))
if args.failed:
    steps.append(call("failed call", args.echo, {"message": "please hang up"}, "hung up", failed={"reason": "upstream_failed", "retry": False}))
    steps.append(say("five", "allowed tool after a failed call"))
steps = [step for step in steps if not (args.direct and "denied" in step)]
print(json.dumps([step for step in steps if not (args.listed and step.get("call") in (args.denied, args.unlisted))]))
