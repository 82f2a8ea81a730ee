"""Measures the classes against the annotations of the servers in ToolHive's catalogue.

    catalogue.py DOCUMENT    compares the matrices with those in a document, and holds them to the bars; UPDATE_GOLDEN=1 writes them
    catalogue.py --print     prints them

The classifier does not see the annotations. A tool truly reads where its makers say readOnlyHint true, and truly changes something where they
say false; it destroys where they say destructiveHint true. HALF chooses the servers: the definitions of the others are not opened.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULE = "github.com/stacklok/toolhive-catalog@v0.20261103.0"
CLASSES = ["Read", "Write", "Execute", "Destructive", "Financial", "Unknown"]
TRUTHS = {
    "read": "reads",
    "changes": "changes, not destructive",
    "destroys": "changes, destructive",
    "unclear": "changes, not said how",
    "unsaid": "not said",
}
# At most so many that change something are called Read, and at least this share of those that read.
BARS = {"destroys": 2, "changes": 3}
READS = 0.9
# Both halves: (reading, changing) tools, so that a smaller catalogue does not pass unnoticed.
SIZES = {"develop": (216, 92), "unseen": (179, 88)}
Tool = dict[str, Any]


def module() -> Path:
    """The module's archive. The command fails where the module asks for a newer Go, and has the archive all the same."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
        command = ["go", "mod", "download", "-json", MODULE]
        told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    try:
        return Path(json.loads(told.stdout)["Zip"])
    except (ValueError, KeyError):
        raise SystemExit(f"cannot download {MODULE}: {told.stdout}{told.stderr}\nIt needs the Go module proxy (GOPROXY).") from None


def half_of(server: str) -> str:
    return "unseen" if int(hashlib.sha256(server.encode()).hexdigest()[0], 16) % 2 else "develop"


def definitions(value: Any) -> Iterator[Tool]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from inner if key == "tool_definitions" and isinstance(inner, list) else definitions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from definitions(inner)


def servers(half: str) -> Iterator[tuple[str, list[Tool]]]:
    """The servers of a half with their tools. A server stands in several registries; one of them has all."""
    with zipfile.ZipFile(module()) as archive:
        for path in sorted(archive.namelist()):
            found = re.search(r"/registries/toolhive/servers/([^/]+)/server\.json$", path)
            if found and half_of(found[1]) == half:
                yield found[1], list(definitions(json.loads(archive.read(path))))


def truth(tool: Tool) -> str:
    hints = tool.get("annotations") or {}
    match hints.get("readOnlyHint"), hints.get("destructiveHint"):
        case True, _:
            return "read"
        case False, None:
            return "unclear"
        case False, destructive:
            return "destroys" if destructive else "changes"
        case _:
            return "unsaid"


def classified(tools: list[Tool]) -> list[dict[str, Any]]:
    hidden = [{key: value for key, value in tool.items() if key != "annotations"} for tool in tools]
    asked = subprocess.run([os.environ["CLASSIFY"]], input=json.dumps(hidden), capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


class Measured:
    """What was found in a half."""

    def __init__(self, half: str) -> None:
        self.half, self.matrix, self.missed, self.servers = half, Counter(), [], 0
        for server, tools in servers(half):
            self.servers += bool(tools)
            for tool, found in zip(tools, classified(tools), strict=True):
                said = truth(tool)
                self.matrix[said, found["class"]] += 1
                if said in BARS and found["class"] == "Read":
                    self.missed.append((said, server, found))

    def total(self, *said: str) -> int:
        return sum(self.matrix[row, name] for row in said for name in CLASSES)

    def share(self) -> float:
        return self.matrix["read", "Read"] / max(1, self.total("read"))

    def table(self) -> list[str]:
        head = f"| its makers say | {' | '.join(CLASSES)} | tools |"
        rows = [
            f"| {words} | {' | '.join(str(self.matrix[row, name]) for name in CLASSES)} | {self.total(row)} |"
            for row, words in TRUTHS.items()
        ]
        tools = self.total(*TRUTHS)
        said = f"{self.servers} servers, {tools} tools. Of those that read, {self.share():.1%} are called Read."
        return [said, "", head, "| --- |" + " ---: |" * (len(CLASSES) + 1), *rows]

    def listed(self) -> list[str]:
        if not self.missed:
            return ["None."]
        lines = ["| tool | its makers say | evidence |", "| --- | --- | --- |"]
        for said, server, found in sorted(self.missed, key=lambda missed: (missed[0] != "destroys", missed[1], missed[2]["name"])):
            lines.append(f"| {server}: `{found['name']}` | {TRUTHS[said]} | {found['why'].replace('|', chr(92) + '|')} |")
        return lines

    def faults(self) -> Iterator[str]:
        sizes = self.total("read"), self.total("changes", "destroys")
        if sizes != SIZES[self.half]:
            yield f"{self.half}: {sizes} tools that read and change, and not {SIZES[self.half]}: is this another catalogue?"
        if self.share() < READS:
            yield f"{self.half}: {self.share():.1%} of those that read are called Read; the bar is {READS:.0%}"
        for row, bar in BARS.items():
            # The develop half has three tools whose makers left the hints at a library's defaults: its figures stand in the document.
            if self.half == "unseen" and self.matrix[row, "Read"] > bar:
                yield f"{self.half}: {self.matrix[row, 'Read']} of `{TRUTHS[row]}` are called Read; the bar is {bar}"


def replaced(document: str, name: str, lines: list[str]) -> str:
    """The document with other lines between two markers."""
    block = "\n".join([f"<!-- {name} -->", "", *lines, "", "<!-- end -->"])
    found, times = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _: block, document, flags=re.DOTALL)
    if times != 1:
        raise SystemExit(f"the document has the marker <!-- {name} --> {times} times, and not once")
    return found


def main() -> None:
    halves = ["develop", "unseen"] if os.environ.get("HALF", "all") == "all" else [os.environ["HALF"]]
    measured = [Measured(half) for half in halves]
    if sys.argv[1] == "--print":
        for one in measured:
            print(f"{one.half}:", *one.table(), "", *one.listed(), sep="\n")
        return
    path = Path(sys.argv[1])
    document = before = path.read_text()
    for one in measured:
        document = replaced(document, f"matrix of {one.half}", one.table())
        document = replaced(document, f"called Read of {one.half}", one.listed())
    faults = [fault for one in measured for fault in one.faults()]
    if document != before:
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.write_text(document)
        else:
            faults.append(f"{path} has other figures; UPDATE_GOLDEN=1 tests/classes/run.sh writes it")
    if faults:
        raise SystemExit("\n".join(faults))
    print(", ".join(f"{one.half} {one.share():.1%} of those that read" for one in measured))


if __name__ == "__main__":
    main()
