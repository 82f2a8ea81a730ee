"""Compares the classes of a server's tools with a golden table; UPDATE_GOLDEN=1 writes the table.

    table.py GOLDEN COMMAND...              a server that speaks MCP on stdin and stdout
    table.py GOLDEN --printed COMMAND...    a command that prints the result of tools/list
"""

import difflib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def listed(command: list[str]) -> list[dict[str, Any]]:
    """The tools that a server lists on stdio."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        ids = iter(range(1, 1000))

        def send(message: dict[str, Any]) -> None:
            server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
            server.stdin.flush()

        def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
            sent = next(ids)
            send({"id": sent, "method": method, "params": params})
            for line in server.stdout:
                answer = json.loads(line)
                if answer.get("id") == sent and "method" not in answer:
                    return answer["result"]
            raise SystemExit(f"{command[0]} ended without an answer to {method}")

        client = {"name": "classes", "version": "1"}
        ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client})
        send({"method": "notifications/initialized"})
        tools, cursor = [], None
        while True:
            page = ask("tools/list", {"cursor": cursor} if cursor else {})
            tools += page["tools"]
            cursor = page.get("nextCursor")
            if not cursor:
                server.stdin.close()
                server.terminate()
                return tools


def classified(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tool with its class."""
    asked = subprocess.run([os.environ["CLASSIFY"]], input=json.dumps({"tools": tools}), capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


def main() -> None:
    golden, command = Path(sys.argv[1]), sys.argv[2:]
    if command[0] == "--printed":
        tools = json.loads(subprocess.run(command[1:], capture_output=True, text=True, check=True).stdout)["tools"]
    else:
        tools = listed(command)
    lines = [f"{tool['name']:<36} {tool['class']:<11} {tool['severity']:<8} {tool['why']}\n" for tool in classified(tools)]
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text("".join(lines))
    expected = golden.read_text().splitlines(keepends=True)
    difference = list(difflib.unified_diff(expected, lines, str(golden), "found"))
    if difference:
        raise SystemExit("".join(difference) + "\nUPDATE_GOLDEN=1 tests/classes/run.sh writes the table anew")
    print(f"{len(lines)} tools")


if __name__ == "__main__":
    main()
