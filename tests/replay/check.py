#!/usr/bin/env python3
"""Checks of a replay: check.py million SIDECAR POLICY LOG | check.py demo SIDECAR POLICY LOG."""

import datetime
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

MOST_SECONDS, MOST_MIB = 10, 100


def fail(message):
    sys.exit(f"check.py: {message}")


def replay(sidecar, policy, log):
    done = subprocess.run([sidecar, "replay", "--policy", policy, "-o", "json", log], capture_output=True, check=False)
    if done.returncode or done.stderr:
        fail(f"replay failed ({done.returncode}): {done.stderr.decode()}")
    return json.loads(done.stdout)


def million(sidecar, policy, log):
    began = time.monotonic()
    report = replay(sidecar, policy, log)
    seconds = time.monotonic() - began
    mebibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{report['calls']} calls in {seconds:.1f} s and {mebibytes:.0f} MiB: {report['changed']}")
    if report["calls"] != 1_000_000 or report["unchanged"] + sum(report["changed"].values()) != 1_000_000:
        fail(f"not every call was decided once: {report}")
    if seconds >= MOST_SECONDS or mebibytes >= MOST_MIB:
        fail(f"takes {seconds:.1f} s and {mebibytes:.0f} MiB; at most {MOST_SECONDS} s and {MOST_MIB} MiB are in order")


def naive(lines, tool, most):
    """Counts the calls of a tool that were let through, and are not if at most `most` are in any minute."""
    denied, through = 0, []
    for line in sorted(lines, key=lambda line: line["time"]):
        if line["tool"] != tool or line["reason"] not in ("none", "rate_limit"):
            continue
        now = datetime.datetime.fromisoformat(line["time"])
        if sum((now - at).total_seconds() <= 60 for at in through) < most:
            through.append(now)
        elif line["decision"] == "allowed":
            denied += 1
    return denied


def demo(sidecar, policy, log):
    lines = [json.loads(line) for line in pathlib.Path(log).read_text().splitlines()]
    same = replay(sidecar, policy, log)
    if (same["calls"], same["unchanged"], same["changes"]) != (len(lines), len(lines), []):
        fail(f"the same policy decides otherwise: {same}")
    text = pathlib.Path(policy).read_text()
    if len(re.findall(r"max: 30\b", text)) != 1:
        fail(f"the policy has not one limit of 30:\n{text}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as half:
        half.write(re.sub(r"max: 30\b", "max: 15", text))
        half.flush()
        changed = replay(sidecar, half.name, log)
    expected = naive(lines, "send_dm_to_user", 15)
    print(f"{len(lines)} calls: the same policy decides the same; with 15 in place of 30 a minute, {expected} more are denied")
    if expected == 0 or changed["changed"] != {"newly_denied": expected}:
        fail(f"a naive count gives {expected}: {changed}")
    change = changed["changes"][0]
    if (change["tool"], change["reason"], len(changed["changes"])) != ("send_dm_to_user", "rate_limit", 1):
        fail(f"something else is denied: {changed}")


if __name__ == "__main__":
    {"million": million, "demo": demo}[sys.argv[1]](*sys.argv[2:])
