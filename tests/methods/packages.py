"""The methods that the SDKs know, and whether the table has them: by sender, kind and version.

No package ships the schema of MCP. These have what was generated or written from it:

- PyPI `mcp`: maps of `(method, version)`, in which tasks are left out, and the types generated from the schemas of 2025-11-25 and 2026-07-28;
- npm `@modelcontextprotocol/sdk` 1.x: `spec.types.d.ts`, of about 2025-11-25;
- npm `@modelcontextprotocol/core` 2.x: schemas of both eras, and extensions; and whatever else its packages write as the name of a method.
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
    return get_args(model.model_fields["method"].annotation)[0]


def generated(module):
    """`{(sender, kind): {method: type}}` of the unions of a module of generated types."""
    found = {}
    for name, key in UNIONS.items():
        if union := getattr(module, name, None):
            # A union of one is that one.
            found[key] = {_method(model): model for model in get_args(union) or (union,)}
    return found


def python_maps():
    """Those of `mcp_types.methods`: `{(sender, kind, method, version): type}`."""
    return {(*key, method, version): model for name, key in MAPS.items() for (method, version), model in getattr(methods, name).items()}


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
    body = r"export interface (\w+)(?: extends [^{]*)? \{(.*?)^\}"
    named = {name: found[1] for name, inside in re.findall(body, text, re.M | re.S) if (found := re.search(r'^    method: "([^"]+)";$', inside, re.M))}
    found = {}
    for union, key in UNIONS.items():
        if listed := re.search(rf"^export type {union} = ([\w| ]+);$", text, re.M):
            found[key] = {named[name] for name in listed[1].split(" | ")}
    if len(found) < 4:
        raise Unknown(f"{file} has the unions {found.keys()}")
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
        self.spec = {(*key, method) for key, found in spec_types(folder / "sdk/dist/esm/spec.types.d.ts").items() for method in found}
        program = subprocess.run(["node", "typescript.mjs"], cwd=npm, capture_output=True, text=True, timeout=60)
        if program.returncode:
            raise Unknown(f"typescript.mjs: {program.stderr[-500:]}")
        found = json.loads(program.stdout)
        self.core = {(*UNIONS[union], method) for union in UNIONS if union in found for method in found[union]}
        self.extensions = {(CLIENT, REQUEST, method) for methods_of_one in found["extensions"].values() for method in methods_of_one}
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
        yield from _lacks(TABLE, {name for name in named if "/" in name[0]}, "every program of npm client, core and server", quoted)


def _lacks(one, names, other, others):
    return (f"{one} has {' '.join(name)}, which {other} lacks" for name in sorted(names - others))


def invalid():
    """Samples, and answers to them, that the generated types refuse: `(what, why)`."""
    types = python_types()
    for row in ROWS:
        for version in row.versions:
            model = types.get((row.sender, row.kind, row.method, version))
            if row.invented or model is None:
                continue
            for name, params in row.samples(version):
                message = {"jsonrpc": "2.0", "id": 1, "method": row.method}
                if row.sender == CLIENT and version in MODERN:
                    params = (params or {}) | {"_meta": meta()} if row.kind == REQUEST else params
                yield from _refused(f"{row.sender} {row.method} {name} {version}", model, message | ({} if params is None else {"params": params}))
            if row.kind == REQUEST:
                results = methods.SERVER_RESULTS if row.sender == CLIENT else methods.CLIENT_RESULTS
                if answer := results.get((row.method, version)):
                    yield from _refused(f"the answer to {row.sender} {row.method} {version}", answer, row.answer(version))


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

