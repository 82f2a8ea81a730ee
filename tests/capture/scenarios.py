"""Capture in network namespaces: the rules, every way out, and what must still work."""

import json

from edges import NAMES as NAMES_OF_EDGES, scenario_edges
from network import World, sh
from rules import scenario_rules
from runner import main
from ways_http import NAMES as NAMES_OF_WAYS, scenario_http
from ways import scenario_impostor, scenario_older, scenario_ways, scenario_works

SCENARIOS = {
    "rules": scenario_rules,
    "ways": scenario_ways,
    "older": scenario_older,
    "impostor": scenario_impostor,
    "works": scenario_works,
    "http": scenario_http,
    "edges": scenario_edges,
}
# What the resolver knows.
NAMES = NAMES_OF_WAYS | NAMES_OF_EDGES


def certificate(folder):
    sh(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=outside"),
        *("-addext", "subjectAltName=DNS:*.test", "-keyout", folder / "server.key", "-out", folder / "server.crt"),
    )


def prepare(world):
    certificate(world.dir)
    (world.dir / "names.json").write_text(json.dumps(NAMES))
    world.connect()


if __name__ == "__main__":
    main(__doc__, SCENARIOS, World, prepare)
