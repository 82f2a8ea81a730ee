#!/usr/bin/env python3
"""Holds CONTRIBUTING.md, ARCHITECTURE.md and tests/README.md against the repository.

- Every stage of tests/run.sh has a row in the table of stages, and every row is a stage.
- Every tool that a script asks for with `need` or `ensure` is in the table of tools.
- Every `make TARGET` is a target of the Makefile.
- Every path in backticks exists; so do the links to files.
- Every folder of tests/ has a row in tests/README.md.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOP = {path.name for path in ROOT.iterdir()}
# What a tool of the table brings along: the table names the package.
BROUGHT = {"callgrind_control": "valgrind", "timeout": "coreutils", "javac": "JDK", "java": "JDK", "mvn": "Maven", "npm": "npm",
           "go": "Go", "node": "Node", "cc": "C compiler", "c++": "C++ compiler", "cargo": "Rust", "python3": "Python"}


def section(page, heading):
    return page.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]


def faults():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    tests = (ROOT / "tests/README.md").read_text()

    run = (ROOT / "tests/run.sh").read_text()
    stages = re.search(r"^ALL=\((.*)\)$", run, re.M)[1].split() + ["dashboards-live"]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| `make [a-z0-9-]+` \|", section(page, "## Tests"), re.M)
    if rows != stages:
        yield f"CONTRIBUTING.md: the table of stages has {' '.join(rows)}; tests/run.sh has {' '.join(stages)}"

    tools = section(page, "## What you need")
    for script in sorted((ROOT / "tests").rglob("*.sh")):
        for tool in re.findall(r"^\s*(?:need|ensure) ([a-z0-9+_-]+) ", script.read_text(), re.M):
            if f"`{tool}`" not in tools and BROUGHT.get(tool, tool) not in tools:
                yield f"CONTRIBUTING.md: {script.relative_to(ROOT)} needs {tool}, which the table of tools does not have"

    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    pages = (("CONTRIBUTING.md", page, ROOT), ("ARCHITECTURE.md", architecture, ROOT), ("tests/README.md", tests, ROOT / "tests"))
    for name, text, folder in pages:
        for target in re.findall(r"\bmake ([a-z0-9-]+)\b", " ".join(re.findall(r"`([^`]*)`", text))):
            if target not in targets:
                yield f"{name}: there is no target {target} in the Makefile"
        paths = [ROOT / path for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text) if path.split("/")[0] in TOP]
        paths += [folder / path for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
        for path in paths:
            if not path.exists() and "target" not in path.parts:
                yield f"{name}: there is no {path.relative_to(ROOT)}"

    folders = sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__")
    rows = sorted(re.findall(r"^\| \[([a-z]+)/\]\(", tests, re.M))
    if rows != folders:
        yield f"tests/README.md: the table has {' '.join(rows)}; tests/ has {' '.join(folders)}"


def main():
    found = list(faults())
    print("\n".join(found) or "CONTRIBUTING.md, ARCHITECTURE.md and tests/README.md: complete")
    sys.exit(bool(found))


main()
