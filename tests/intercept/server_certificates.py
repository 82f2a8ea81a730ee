"""Servers whose certificates are wrong: the agent is told in words, and nothing reaches them."""

import json
import sys

from certificates import Authority, self_signed
from world import Growth, addresses, policy, server

# Each server with what its agent must be told.
FAULTS = {
    "wrong": ("a certificate for another name", ("name", "not valid for")),
    "expired": ("an expired certificate", ("expired",)),
    "unknown": ("a certificate of an unknown authority", ("issuer", "authority", "unknown")),
    "own": ("a certificate that it signed itself", ("issuer", "authority", "unknown", "self-signed", "CaUsedAsEndEntity")),
    "pods": ("a certificate of the pod's own authority", ("issuer", "authority", "unknown")),
}
CLIENT = """
import json, ssl, sys, urllib.error, urllib.request
found = {}
for name in sys.argv[1:]:
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get_page_fan_count", "arguments": {}}}
    head = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    said = []
    for body in (json.dumps(call).encode(), None):
        request = urllib.request.Request(f"https://{name}.test/mcp", body, head if body else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                said.append([answer.status, answer.read().decode()])
        except urllib.error.HTTPError as error:
            said.append([error.code, error.read().decode()])
        except OSError as error:
            said.append([0, repr(error)])
    found[name] = said
print(json.dumps(found))
"""


def scenario_certificates(scenario, world):
    for number, name in enumerate([*FAULTS, "right"], 90):
        world.host(f"{name}.test", addresses(number))
    world.begin(sessions=False)
    certificates = {
        "wrong": world.public.leaf("another.test"),
        "expired": world.public.leaf("expired.test", days=-1),
        "unknown": Authority.root("Authority of nobody").leaf("unknown.test"),
        "own": self_signed("own.test"),
    }
    for name, text in certificates.items():
        world.certificate(world.outside_dir, f"{name}.test", text)
    world.govern(policy(*(server(name, f"https://{name}.test/mcp") for name in [*FAULTS, "right"])))
    world.certificate(world.outside_dir, "pods.test", Authority.of_pod(world.interception).leaf("pods.test"))
    grown = Growth(world)
    ran = world.agent(sys.executable, "-c", CLIENT, *FAULTS, "right")
    found = json.loads(ran.stdout)
    asked = {line["host"] for line in world.requests()}
    handshakes = set((world.outside_dir / "handshakes").read_text().split())
    print(f"\n  {'server':<10} {'call':<130} GET")
    for name, (call, get) in found.items():
        print(f"  {name:<10} {call[0]} {call[1][:126]:<126} {get[0]} {get[1][:90]!r}")
    for name, (what, words) in FAULTS.items():
        (status, text), (status_of_get, text_of_get) = found[name]
        failed = grown("toolweir_requests_total", server=name, outcome="connect_failed")
        told = all(any(word.lower() in one.lower() for word in words) and "certificate" in one.lower() for one in (text, text_of_get))
        # As a result that a model reads, or as an error of HTTP.
        form = status == 502 or status == 200 and '"isError":true' in text.replace(" ", "")
        scenario.require(
            status_of_get == 502 and told and form,
            f"{what}: a call is told {status} {text[:260]}; a GET {status_of_get} {text_of_get[:160]}",
            "502, and why",
        )
        scenario.require(
            failed == 2 and f"{name}.test" not in asked and f"{name}.test" in handshakes,
            f"{what}: connect_failed {failed:+}; requests at the server: {'some' if f'{name}.test' in asked else 'none'}",
            "+2, none",
        )
    completed = grown.handshakes("completed")
    scenario.require(completed == 2 * len(found), f"{completed} handshakes with the agent for {2 * len(found)} requests", "all: the words need them")
    scenario.require("1911" in found["right"][0][1], f"a server whose certificate is right: {found['right'][0][1][:120]}", "its answer")
