"""Holds what the pages print of tables and suggested policies against the files in golden/."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent / "golden"
PAGES = ["README.md", "docs/tools.md"]
ROW = re.compile(r"^\S+ +(Read|Write|Execute|Destructive|Financial|Unknown) +(Low|Medium|High|Critical) ")


def parts(block):
    """The rows of tables in a block; of a suggested policy its head, and each entry with what is said of it."""
    yield from (line for line in block.splitlines() if ROW.match(line))
    # What agents did differs from run to run.
    if re.search(r"^    # \w+ \(\w+\)", block, re.M) and "what agents did" not in block:
        for part in re.split(r"^(?=    # \w+ \()|^ *\.\.\.\n", block, flags=re.M):
            if part.strip():
                yield part


def faults():
    """What a page prints and no file in golden/ has. Also how much was looked at."""
    known = [path.read_text() for path in sorted(GOLDEN.iterdir())]
    found, looked = [], 0
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
            for part in parts(block):
                looked += 1
                if not any(part in text for text in known):
                    found.append(f"{page}: {part.strip()}")
    return found, looked
