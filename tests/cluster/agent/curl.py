"""A client that is nothing but curl, for tests/sdk/driver.py, which says how the two speak.

    curl.py URL
"""

import json
import subprocess
import sys

VERSION = "2025-11-25"


def post(message, session):
    """Posts a message with curl: the answer, and the session that it names."""
    headers = ["content-type: application/json", "accept: application/json, text/event-stream"]
    headers += [f"mcp-session-id: {session}", f"mcp-protocol-version: {VERSION}"] if session else []
    words = [word for header in headers for word in ("-H", header)]
    done = subprocess.run(
        ["/usr/bin/curl", "-sS", "--max-time", "15", "-i", *words, "--data-binary", "@-", sys.argv[1]],
        input=json.dumps(message), capture_output=True, text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\n")[1:] if ": " in line)
    if "text/event-stream" in fields.get("content-type", ""):
        data = [json.loads(line[5:]) for line in body.split("\n") if line.startswith("data:") and line[5:].strip()]
        answer = next(message for message in data if "id" in message)
    else:
        answer = json.loads(body) if body.strip() else {}
    if "error" in answer or "error" in answer.get("result", {}):
        raise RuntimeError(json.dumps(answer))
    return answer.get("result", {}), fields.get("mcp-session-id")


def say(**answer):
    print(json.dumps(answer), flush=True)


try:
    client = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}
    result, session = post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": client}, None)
    post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
    say(protocol=result["protocolVersion"])
except (RuntimeError, KeyError, ValueError) as error:
    say(error=str(error))
    sys.exit(1)
for number, line in enumerate(sys.stdin, 1):
    request = json.loads(line)
    try:
        if request.get("list"):
            found, _ = post({"jsonrpc": "2.0", "id": number, "method": "tools/list", "params": {}}, session)
            say(tools=[tool["name"] for tool in found["tools"]])
        else:
            params = {"name": request["call"], "arguments": request["args"]}
            say(result=post({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}, session)[0])
    except (RuntimeError, StopIteration, ValueError) as error:
        say(error=str(error))
