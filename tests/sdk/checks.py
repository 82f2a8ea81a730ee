"""The checks of one client against one server, for the Python SDKs. checks.mjs is its twin: keep them alike.

Every client script is called as `client TARGET TRANSPORT PROTOCOL STEPS` (TARGET: a URL, or for stdio a command as a JSON
array; TRANSPORT: http, sse or stdio; PROTOCOL: the version that must be agreed on; STEPS: the JSON array that steps.py
prints) with the SDK's way of negotiating in MCP_MODE where it has several. It runs the steps in one session and prints one
line for each: `ok WHAT` or `FAIL WHAT: WHY`.
"""

import asyncio
import json
import sys

import anyio


def expect(ok, why):
    if not ok:
        raise AssertionError(why)


def check_list(step, names):
    missing, leaked = set(step["present"]) - set(names), set(step["absent"]) & set(names)
    expect(not missing, f"{sorted(missing)} missing from {names}")
    expect(not leaked, f"{sorted(leaked)} should not be in {names}")


def check_call(step, result):
    """`result`: as on the wire; or, of a framework that hands over less, `words` and, if it tells them, `isError`."""
    words = result.get("words")
    text = "".join(item.get("text", "") for item in result["content"]) if words is None else words
    denied, wrong = step.get("denied"), "denied" in step or "failed" in step
    expect(bool(result.get("isError", words is not None and wrong)) == wrong, f"isError is wrong in {result}")
    if not wrong:
        expect(text == step["text"], f"expected {step['text']!r}, got {result}")
        return
    expect(step["text"] in text, f"{step['text']!r} is not in {text!r}")
    told = (result.get("_meta") or {}).get("toolweir.dev/denial") or {}
    if not denied:
        expect(words is not None or told == step["failed"], f"_meta is {told}, expected {step['failed']}")
        return
    begin = f"Denied by policy {denied['policy']}: "
    # A framework may put words of its own around the policy's.
    expect(text.startswith(begin) if words is None else begin in text, f"text is not the policy's: {text!r}")
    if words is not None:
        return
    expected = {"tool": step["call"], **denied}
    expect({key: told.get(key) for key in expected} == expected, f"denial is {told}, expected {expected}")
    if denied["reason"] == "rate_limit":
        # A minute, and the 1/64 of it by which a place may come free late.
        expect(0 < told.get("retryAfterSeconds", 0) <= 61, f"retryAfterSeconds is wrong in {told}")


def report(what, error=None):
    # An exception group's own text hides what happened inside.
    while getattr(error, "exceptions", None):
        error = error.exceptions[0]
    detail = str(error) if isinstance(error, AssertionError) else repr(error)
    print(f"FAIL {what}: {' '.join(detail.split())[:600]}" if error else f"ok {what}", flush=True)


async def run_steps(protocol, steps, list_tools, call_tool):
    """`protocol`: the version agreed on, if the client tells it; `list_tools()`: names; `call_tool(name, args)`: the result
    (see check_call)."""
    try:
        expect(protocol in (sys.argv[3], None), f"speaks {protocol}, expected {sys.argv[3]}")
        report("connect")
    except AssertionError as error:
        report("connect", error)
    for step in steps:
        try:
            # One step that hangs must not hide what the others say. Some frameworks import for seconds in the first one.
            with anyio.fail_after(60 if step is steps[0] else 20):
                if "list" in step:
                    check_list(step["list"], await list_tools())
                else:
                    check_call(step, await call_tool(step["call"], step["args"]))
            report(step["what"])
        except Exception as error:
            report(step["what"], error)


def main(session):
    """`session(target, transport, steps)`: connects and calls run_steps."""
    target, transport, _, steps = sys.argv[1:]
    try:
        asyncio.run(session(json.loads(target) if transport == "stdio" else target, transport, json.loads(steps)))
    except Exception as error:
        report("session", error)
        sys.exit(1)
