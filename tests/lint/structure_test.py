#!/usr/bin/env python3
"""Tests of structure.py: small crates, and the faults that it finds in them."""

import pathlib
import tempfile

import structure

NOTHING = {"name": set(), "file": set()}


def faults(files, allowed=NOTHING):
    """The faults of a crate `a` with these files."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            file = root / "a/src" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return list(structure.faults(root, ["a"], allowed))


def expect(found, *wanted):
    assert found == list(wanted), found


def main():
    one_way = {"lib.rs": "mod b;\nmod c;\n", "b.rs": "use crate::c::C;\n", "c.rs": "pub struct C;\n"}
    expect(faults(one_way))
    # Two modules that use each other: by `use`, by a path in code, and through a `pub use` of the root.
    cycle = "a: a cycle of b, c"
    expect(faults({**one_way, "c.rs": "use super::{b::{B as Other}};\n"}), cycle)
    expect(faults({**one_way, "c.rs": "fn c() { crate::b::call() }\n"}), cycle)
    expect(faults({**one_way, "lib.rs": "mod b;\nmod c;\npub use b::B;\n", "c.rs": "use crate::B;\n"}), cycle)
    # A parent and its child.
    expect(faults({"b/mod.rs": "mod d;\nuse self::d::D;\n", "b/d.rs": "use super::helper;\n"}), "a: a cycle of b, b::d")
    # Comments, strings and tests do not count.
    expect(faults({**one_way, "c.rs": '// use crate::b::B;\nconst TEXT: &str = "use crate::b::B;";\n'}))
    expect(faults({**one_way, "c.rs": "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\n"}))
    # A type name that two files define, if one of them is visible.
    twice = "the type C is defined 2 times: a/src/b.rs:1, a/src/c.rs:1"
    expect(faults({"b.rs": "struct C;\n", "c.rs": "struct C;\n"}))
    expect(faults({"b.rs": "struct C;\n", "c.rs": "pub(crate) enum C {}\n"}), twice)
    expect(faults({"b.rs": "struct C;\n", "c.rs": "pub enum C {}\n"}, {"name": {"C"}, "file": set()}))
    expect(faults(one_way, {"name": {"C"}, "file": set()}), "structure.txt: C is no longer an exception; remove the line")
    # An associated type is no definition.
    expect(faults({"b.rs": "pub struct C;\n", "c.rs": "impl X for Y {\n    type C = ();\n}\n"}))
    long = {"b.rs": "//\n" * (structure.LONGEST + 1)}
    expect(faults(long), f"a/src/b.rs: {structure.LONGEST + 1} lines, more than {structure.LONGEST}")
    expect(faults(long, {"name": set(), "file": {"a/src/b.rs"}}))
    print("structure_test: passed")


main()
