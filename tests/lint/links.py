#!/usr/bin/env python3
"""Checks that the links between Markdown files lead to files and headings that exist."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.md"), *ROOT.glob("charts/*/*.md")]
CODE = re.compile(r"^```.*?^```", re.S | re.M)


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub makes them: repeated ones get a number."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.M):
        slug = base = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


def faults():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                yield f"{page.relative_to(ROOT)}: there is no {link}"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{page.relative_to(ROOT)}: there is no heading for {link}"


def main():
    found = list(faults())
    print("\n".join(found) or "links: all lead somewhere")
    sys.exit(bool(found))


main()
