#!/usr/bin/env python3
"""Checks the structure of the workspace: module cycles, duplicate type names and long files.

    structure.py            prints one line for each fault; exit code 1 if there is one
    structure.py --circles  also prints, for each module of a cycle, which modules of the cycle it uses

A module is a file. It uses another module if a path that begins with `crate::`, `super::` or `self::` leads there, directly or
through a `pub use`. Code in `#[cfg(test)] mod tests` does not count.

A type name is a duplicate if two files define it and one of the definitions is visible outside its file.

structure.txt, next to this script, lists the exceptions and their reasons.
"""

import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CRATES = ["crds", "sidecar/engine", "sidecar/replay", "sidecar/store", "sidecar", "operator", "cli", "tests/bench", "tests/rmcp", "tests/simulator"]
LONGEST = 600

TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:pub\(crate\) )?mod \w+ \{")
# Comments, raw strings, strings and characters. The first that begins wins, so `"//"` is a string.
NO_CODE = re.compile(r"""//[^\n]*|r(#+)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\\n])'""", re.S)
TYPE = re.compile(r"^ *(pub(?:\([^)]*\))? )?(struct|enum|trait|union|type) (\w+)", re.M)


def label(module):
    return "::".join(module) or "the root"


def sources(root, crate):
    """Maps the path of each module, such as ("certs", "plan"), to its file. The crate root is ()."""
    src = root / crate / "src"
    found = {}
    for file in sorted(src.rglob("*.rs")):
        module = file.relative_to(src).with_suffix("").parts
        if module == ("main",) and (src / "lib.rs").exists():
            continue
        if module[-1] in ("mod", "lib", "main"):
            module = module[:-1]
        if "bin" not in module:
            found[module] = file
    return found


def code(file):
    """Returns the text of a file without tests, comments and strings."""
    return NO_CODE.sub("", TESTS.split(file.read_text())[0])


def expand(tree):
    """Lists the paths of a `use` and the names they get: `a::{b, c as d}` is [("a::b", "b"), ("a::c", "d")]."""
    tree = tree.strip()
    prefix, brace, rest = tree.partition("{")
    if not brace:
        path, _, name = tree.partition(" as ")
        return [(path.strip(), name.strip() or path.strip().split("::")[-1])] if path.strip() else []
    parts, depth, start = [], 0, 0
    inner = rest.rstrip()[:-1] + ","
    for at, char in enumerate(inner):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts += expand(inner[start:at])
            start = at + 1
    return [(prefix.strip() + path, name) for path, name in parts]


def absolute(path, module):
    """Returns the words of a path from the crate root, or None if the path does not lead into the crate."""
    words, base = path.split("::"), module
    if words[0] == "crate":
        return tuple(words[1:])
    if words[0] not in ("super", "self"):
        return None
    while words and words[0] in ("super", "self"):
        base = base[:-1] if words[0] == "super" else base
        words = words[1:]
    return (*base, *words)


class Crate:
    """The modules of one crate, and what each of them uses."""

    def __init__(self, root, crate):
        self.name = crate
        self.files = sources(root, crate)
        self.texts = {module: code(file) for module, file in self.files.items()}
        # What `pub use` re-exports: (module, name) -> the path that it stands for.
        self.exported = {}
        for module, text in self.texts.items():
            for tree in re.findall(r"pub(?:\([^)]*\))? use ([^;]*);", text):
                for path, name in expand(tree):
                    self.exported[(*module, name)] = absolute(path, module) or (*module, *path.split("::"))
        self.uses = {module: self.used_by(module) for module in self.files}

    def home(self, words):
        """Returns the module that a path leads to, after at most four re-exports."""
        for _ in range(4):
            prefixes = [words[:n] for n in range(len(words), 0, -1)]
            exported = next((prefix for prefix in prefixes if prefix in self.exported), None)
            if exported is None:
                break
            words = self.exported[exported] + words[len(exported) :]
        return next((words[:n] for n in range(len(words), -1, -1) if words[:n] in self.files), None)

    def used_by(self, module):
        text = self.texts[module]
        trees = re.findall(r"\buse ((?:crate|super|self)::[^;]*);", text)
        paths = [path for tree in trees for path, _ in expand(tree)]
        paths += re.findall(r"\b(?:crate|super)(?:::\w+)+", re.sub(r"\buse [^;]*;", "", text))
        # A module that re-exports an item of a child does not use the child.
        children = {self.home(path) for key, path in self.exported.items() if key[:-1] == module}
        found = set()
        for path in paths:
            used = self.home(absolute(path, module))
            if used is not None and used != module and not (used in children and path.startswith("self")):
                found.add(used)
        return found


def cycles(uses):
    """Lists the sets of modules in which each module leads to each other one."""
    reach = {}
    for start in uses:
        seen, todo = set(), [start]
        while todo:
            new = uses.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        reach[start] = seen
    found = []
    for module in sorted(reach):
        cycle = {other for other in reach[module] if module in reach.get(other, ())}
        if cycle and cycle not in found:
            found.append(cycle)
    return found


def type_names(root, crates):
    """Maps each type name to its definitions: the place, and whether the type is visible outside its file."""
    found = collections.defaultdict(list)
    for crate in crates:
        for file in crate.files.values():
            text = TESTS.split(file.read_text())[0]
            for match in TYPE.finditer(text):
                visible, kind, name = match.groups()
                # An indented `type` is an associated type.
                if kind == "type" and match[0].startswith(" "):
                    continue
                line = text[: match.start()].count("\n") + 1
                found[name].append((f"{file.relative_to(root)}:{line}", bool(visible)))
    return found


def read_exceptions(file):
    """Returns the exceptions of a file such as structure.txt: {"name": {...}, "file": {...}}."""
    found = {"name": set(), "file": set()}
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            kind, which, _reason = line.split(None, 2)
            found[kind].add(which)
    return found


def faults(root, names, allowed, explain=False):
    """Yields a line for each fault of the crates with these names."""
    crates = [Crate(root, name) for name in names]
    for crate in crates:
        for cycle in cycles(crate.uses):
            yield f"{crate.name}: a cycle of {', '.join(map(label, sorted(cycle)))}"
            for module in sorted(cycle) if explain else ():
                yield f"    {label(module)} uses {', '.join(map(label, sorted(crate.uses[module] & cycle)))}"
        for file in crate.files.values():
            lines, name = len(file.read_text().splitlines()), str(file.relative_to(root))
            if lines > LONGEST and name not in allowed["file"] and file.name != "tests.rs":
                yield f"{name}: {lines} lines, more than {LONGEST}"
    defined = type_names(root, crates)
    for name, places in sorted(defined.items()):
        if len(places) > 1 and any(visible for _, visible in places) and name not in allowed["name"]:
            yield f"the type {name} is defined {len(places)} times: {', '.join(place for place, _ in places)}"
    for name in sorted(allowed["name"]):
        if len(defined.get(name, ())) < 2:
            yield f"structure.txt: {name} is no longer an exception; remove the line"


def main():
    allowed = read_exceptions(pathlib.Path(__file__).with_suffix(".txt"))
    found = list(faults(ROOT, CRATES, allowed, explain="--circles" in sys.argv[1:]))
    print("\n".join(found) or "structure: no cycles, no duplicate type names, no long files")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
