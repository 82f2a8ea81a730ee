"""What `toolweir drift` prints for two releases of real servers, whole, as a person agreed with it in golden/; and that docs/pins.md prints what it does.

    releases.py --toolweir BINARY --dir FOLDER --old FOLDER --new FOLDER...

The folders are those of the programs (node_modules/.bin), in the versions that releases.sh names. UPDATE_GOLDEN=1 writes golden/ anew. Exit code 1 if something
is not as it is there.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
PAGE = HERE.parents[1] / "docs" / "pins.md"
SERVERS = ("filesystem", "everything")


def ran(words, code):
    """What a program prints. It must end with this code."""
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}, not {code}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()


def tables(toolweir, folder, old, new):
    """For each server: its pins in the old release, and the drift of the new one from them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SERVERS:
        program = f"mcp-server-{name}"
        # The same argument for each run: some definitions could name it.
        words = ["--", *([folder] if name == "filesystem" else ["stdio"])]
        source = lambda folder: [words[0], folder / program, *words[1:]]  # noqa: E731
        pins = folder / f"{name}.pins.yaml"
        pins.write_text(ran([toolweir, "pin", "--server", name, *source(old)], 0))
        same = ran([toolweir, "drift", "--pins", pins, *source(old)], 0)
        if not re.fullmatch(rf"{name}: \d+ tools are as pinned by default/{name}\.\n", same):
            raise SystemExit(f"{name}: of its own pins, drift says {same}")
        newer = next(found for found in new if (found / program).exists())
        yield name, pins.read_text(), ran([toolweir, "drift", "--pins", pins, *source(newer)], 1)


def differences(name, text):
    """The differences of a text from its file in golden/, which UPDATE_GOLDEN=1 writes."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    held = path.read_text() if path.exists() else ""
    return list(difflib.unified_diff(held.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""))


def page_faults(printed):
    """The lines that docs/pins.md prints after `$ toolweir pin` and `$ toolweir drift`, and the programs do not."""
    blocks = re.findall(r"^```\n\$ toolweir (pin|drift) [^\n]*\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    known = {line.rstrip() for text in printed for line in text.splitlines()}
    # What a person reads of a document does not depend on where a server was installed.
    shown = [line for _, block in blocks for line in block.splitlines() if line.strip() != "..." and not line.startswith("# Pinned by")]
    found = [f"docs/pins.md: {line}" for line in shown if line not in known]
    if {command for command, _ in blocks} != {"pin", "drift"}:
        found.append("docs/pins.md shows no output of pin or of drift")
    return found


def faults(toolweir, folder, old, new):
    """All that is not as it was agreed."""
    found, printed = [], []
    for name, pins, drift in tables(toolweir, folder, old, new):
        printed += [pins, drift]
        found += differences(f"{name}.drift.txt", drift)
    return found + page_faults(printed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--toolweir", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True, nargs="+")
    args = parser.parse_args()
    found = faults(args.toolweir, args.dir, args.old, args.new)
    print("\n".join(found) or "the drift between releases of real servers is as agreed, and docs/pins.md shows it")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
