"""Generates the tables of charts/toolweir/README.md from the comments in values.yaml.

    readme.py            writes the tables
    readme.py --check    fails if they are not up to date

Each key with a comment above it becomes a row. If the keys of a map have comments, each of them becomes a row instead of the map. A
comment `# ---- TITLE` begins a table.
"""
import difflib, json, pathlib, re, sys

import yaml

CHART = pathlib.Path(__file__).parents[2] / "charts/toolweir"
BEGIN, END = "<!-- begin of what tests/chart/readme.py writes -->\n", "<!-- end of it -->\n"


def comment(lines, line):
    """Returns the comment right above a line, as one line."""
    found = []
    while line > 0 and re.match(r" *#(?! ----)", lines[line - 1]):
        line -= 1
        found.insert(0, lines[line].strip().lstrip("#").strip())
    return " ".join(found)


def rows(text):
    """Yields (title of the table, path, default, comment) for each documented value."""
    lines = text.splitlines()

    def title(line):
        return next((above.removeprefix("# ---- ") for above in reversed(lines[:line]) if above.startswith("# ---- ")), "")

    def documented(node):
        """Tells whether a key of this map, or of a map in it, has a comment."""
        return isinstance(node, yaml.MappingNode) and any(comment(lines, key.start_mark.line) or documented(below) for key, below in node.value)

    def walk(node, value, path):
        for key, below in node.value:
            name, line = [*path, key.value], key.start_mark.line
            if below.start_mark.line > line and documented(below):
                yield from walk(below, value[key.value], name)
            elif words := comment(lines, line):
                yield title(line), ".".join(name), value[key.value], words
            else:
                sys.exit(f"readme.py: {'.'.join(name)} has no comment in values.yaml")

    yield from walk(yaml.compose(text), yaml.safe_load(text), [])


def tables(text):
    out, section = "", None
    for title, path, default, words in rows(text):
        if title != section:
            section = title
            out += f"\n### {title}\n\n| value | default | |\n| --- | --- | --- |\n"
        out += f"| `{path}` | `{json.dumps(default)}` | {words.replace('|', chr(92) + '|')} |\n"
    return out + "\n"


def main():
    readme = CHART / "README.md"
    there = readme.read_text()
    written = there[: there.index(BEGIN)] + BEGIN + tables((CHART / "values.yaml").read_text()) + there[there.index(END) :]
    if sys.argv[1:] == ["--check"]:
        sys.stdout.writelines(difflib.unified_diff(there.splitlines(True), written.splitlines(True), "README.md", "values.yaml", n=0))
        sys.exit("README.md is not up to date with values.yaml; run UPDATE_GOLDEN=1 tests/chart/run.sh" if there != written else 0)
    elif sys.argv[1:]:
        sys.exit("usage: readme.py [--check]")
    readme.write_text(written)


if __name__ == "__main__":
    main()
