"""The methods that the SDKs know, and whether the table has them: by sender, kind and version.

No package ships the schema of MCP. These have what was generated or written from it:

- PyPI `mcp`: maps of `(method, version)`, in which tasks are left out, and types generated from the schemas of 2025-11-25 and
  2026-07-28;
- npm `@modelcontextprotocol/sdk` 1.x: `spec.types.d.ts`, of about 2025-11-25;
- npm `@modelcontextprotocol/core` 2.x: schemas of both eras, and extensions; and whatever else it, `client` and `server` write as
  the name of a method.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import get_args

import mcp_types._v2025_11_25 as v2025
import mcp_types._v2026_07_28 as v2026
from mcp_types import methods
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter

from table import ALL, CLIENT, INPUT, MODERN, NOTIFICATION, REQUEST, ROWS, SERVER, TASKS

UNIONS = {
    "ClientRequest": (CLIENT, REQUEST), "ClientNotification": (CLIENT, NOTIFICATION),
    "ServerRequest": (SERVER, REQUEST), "ServerNotification": (SERVER, NOTIFICATION), "InputRequest": (SERVER, INPUT),
}
MAPS = {
    "CLIENT_REQUESTS": (CLIENT, REQUEST), "CLIENT_NOTIFICATIONS": (CLIENT, NOTIFICATION),
    "SERVER_REQUESTS": (SERVER, REQUEST), "SERVER_NOTIFICATIONS": (SERVER, NOTIFICATION),
}
# Strings that look like methods and are none.
TABLE = "tests/methods/table.py"
NO_METHODS = {"resources/list_changed"}


class Unknown(Exception):
    """A package is not as this file knows it."""


def _method(model):
    """The method of a type of messages; nothing for one of all messages, and for other types."""
    field = model.model_fields.get("method")
    return field and (get_args(field.annotation) or [None])[0]


def generated(module):
    """`{(sender, kind): {method: type}}` of the unions of a module of generated types."""
    found = {}
    for name, key in UNIONS.items():
        if union := getattr(module, name, None):
            # A union of one is that one.
            found[key] = {_method(model): model for model in get_args(union) or (union,)}
    inside = [model for model in vars(module).values() if isinstance(model, type) and model.__module__ == module.__name__]
    if others := {_method(model) for model in inside} - {None} - {method for types in found.values() for method in types}:
        raise Unknown(f"{module.__name__} has {' '.join(sorted(others))} in none of the unions {' '.join(UNIONS)}")
    return found


def python_maps():
    """Those of `mcp_types.methods`: `{(sender, kind, method, version): type}`."""
    maps = [(key, getattr(methods, name)) for name, key in MAPS.items()]
    return {(*key, method, version): model for key, one in maps for (method, version), model in one.items()}


def python_types():
    """All that PyPI `mcp` knows: `{(sender, kind, method, version): type}`."""
    if KNOWN_PROTOCOL_VERSIONS != ALL:
        raise Unknown(f"PyPI mcp knows the versions {' '.join(KNOWN_PROTOCOL_VERSIONS)}; the table has {' '.join(ALL)}")
    found = python_maps()
    for module, version in ((v2025, TASKS[0]), (v2026, MODERN[0])):
        for key, types in generated(module).items():
            found |= {(*key, method, version): model for method, model in types.items()}
    return found


def spec_types(file):
    """`{(sender, kind): methods}` of a spec.types.d.ts."""
    text = file.read_text()
    interfaces = re.findall(r"export interface (\w+)(?: extends [^{]*)? \{(.*?)^\}", text, re.M | re.S)
    method = re.compile(r'^    method: "([^"]+)";$', re.M)
    named = {name: found[1] for name, inside in interfaces if (found := method.search(inside))}
    found = {}
    for union, key in UNIONS.items():
        if listed := re.search(rf"^export type {union} = ([\w| ]+);$", text, re.M):
            found[key] = {named[name] for name in listed[1].split(" | ")}
    if len(found) < 4 or set(named.values()) != set().union(*found.values()):
        raise Unknown(f"{file} has messages in none of the unions {' '.join(UNIONS)}")
    return found


def bundled(folder):
    """Whatever the programs of the packages quote as a method of a family that the table has."""
    families = sorted({row.method.split("/")[0] for row in ROWS if "/" in row.method and not row.invented})
    quoted = re.compile(rf'"((?:{"|".join(families)})/[A-Za-z][\w/]*)"')
    files = [file for name in ("client", "core", "server") for file in (folder / name / "dist").rglob("*.mjs")]
    if not files:
        raise Unknown(f"{folder} has no programs")
    return {method for file in files for method in quoted.findall(file.read_text())} - NO_METHODS


class Known:
    """What the packages know. `npm`: the folder with node_modules and typescript.mjs."""

    def __init__(self, npm):
        folder = Path(npm) / "node_modules/@modelcontextprotocol"
        self.python = set(python_types())
        spec = spec_types(folder / "sdk/dist/esm/spec.types.d.ts")
        self.spec = {(*key, method) for key, found in spec.items() for method in found}
        program = subprocess.run(["node", "typescript.mjs"], cwd=npm, capture_output=True, text=True, timeout=60)
        if program.returncode:
            raise Unknown(f"typescript.mjs: {program.stderr[-500:]}")
        found = json.loads(program.stdout)
        self.core = {(*UNIONS[union], method) for union in UNIONS if union in found for method in found[union]}
        self.extensions = {(CLIENT, REQUEST, method) for one in found["extensions"].values() for method in one}
        self.quoted = bundled(folder)

    def differences(self, rows):
        """What the packages have that the rows lack, and the reverse."""
        rows = [row for row in rows if not row.invented]
        table = {(row.sender, row.kind, row.method, version) for row in rows for version in row.versions}
        # An extension has its methods in no union.
        extension = {(row.sender, row.kind, row.method, version) for row in rows for version in row.extension}
        of_2025 = {name[:3] for name in table if name[3] in TASKS}
        # The core package leaves tasks out of its unions, and has no union of what results ask for.
        plain = {name[:3] for name in table - extension if name[1] != INPUT and "tasks/" not in name[2]}
        named = {(row.method,) for row in rows}
        quoted = {(method,) for method in self.quoted}
        yield from _lacks("PyPI mcp", self.python, TABLE, table)
        yield from _lacks(TABLE, table - extension, "PyPI mcp", self.python)
        yield from _lacks("npm sdk", self.spec, TABLE, of_2025)
        yield from _lacks(TABLE, of_2025, "npm sdk", self.spec)
        yield from _lacks("npm core", self.core, TABLE, plain)
        yield from _lacks(TABLE, plain, "npm core", self.core)
        yield from _lacks("an extension of npm core", self.extensions, TABLE, {name[:3] for name in extension})
        yield from _lacks("a program of npm client, core or server", quoted, TABLE, named)
        named = {name for name in named if "/" in name[0]}
        yield from _lacks(TABLE, named, "every program of npm client, core and server", quoted)


def _lacks(one, names, other, others):
    return (f"{one} has {' '.join(name)}, which {other} lacks" for name in sorted(names - others))


def invalid():
    """Samples, and answers to them, that the generated types refuse: `(what, why)`."""
    types = python_types()
    for row in (row for row in ROWS if not row.invented):
        for version in row.versions:
            # An extension has no type.
            if model := types.get((row.sender, row.kind, row.method, version)):
                yield from _invalid_samples(row, version, model)
            results = methods.SERVER_RESULTS if row.sender == CLIENT else methods.CLIENT_RESULTS
            if row.kind == REQUEST and (model := results.get((row.method, version))):
                yield from _refused(f"the answer to {row.sender} {row.method} {version}", model, row.answer(version))


def _invalid_samples(row, version, model):
    for name, params in row.samples(version):
        if row.sender == CLIENT and row.kind == REQUEST and version in MODERN:
            params = (params or {}) | {"_meta": meta()}
        message = {"jsonrpc": "2.0", "id": 1, "method": row.method} | ({} if params is None else {"params": params})
        yield from _refused(f"{row.sender} {row.method} {name} {version}", model, message)


def _refused(what, model, value):
    try:
        TypeAdapter(model).validate_python(value, by_name=False)
    except ValueError as error:
        yield what, str(error).replace("\n", " ")


def meta():
    """What each request of 2026-07-28 says of its client."""
    return {
        "io.modelcontextprotocol/protocolVersion": MODERN[0],
        "io.modelcontextprotocol/clientInfo": {"name": "methods", "version": "1.0"},
        "io.modelcontextprotocol/clientCapabilities": {"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {}},
    }

