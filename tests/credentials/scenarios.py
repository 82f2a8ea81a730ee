"""Scenarios of credentials that only the sidecar holds. What the MCP servers and the OAuth servers received decides whether they pass."""

import argparse
import asyncio
import inspect
import json
import re
import signal
import ssl
import sys
import time
from pathlib import Path

from agent import ACCEPT, JUNK_HEADERS, call, calls, request
from headers import scenario_headers
from kinds import CC_AUDIENCE, KEYCLOAK_ID, KEYCLOAK_SECRET, Kinds
from oauth import Keycloak
from outages import scenario_expiry
from refusals import scenario_refused
from rotation import scenario_keys, scenario_rotation
from scenario import Scenario
from world import (
    JUNK,
    TOOL,
    Broken,
    Governor,
    Keys,
    Stage,
    governed,
    policy,
    printed_summary,
    servers,
    wait_until,
    with_second_try,
)

CALLS, MAX = 35, 30


def scenario_kinds(scenario, stage, shared):
    """Each kind: a direct call is refused; through the sidecar 30 of 35 pass, and none of them with what the agent shows."""
    kinds = Kinds(stage, shared)
    pod = kinds.sidecar()
    trust = ssl.create_default_context(cafile=kinds.ca)
    for name, server in kinds.servers.items():
        scenario.require(*refused_directly(name, server, trust))
        before = len(server.requests())
        mode = "legacy" if server.settings.get("stateful") else "auto"
        tools, outcomes, texts = asyncio.run(calls(pod.url(name), CALLS, mode))
        received = server.requests()[before:]
        delivered = [one for one in received if one["tool"] and one["status"] == 200]
        passed, denied = outcomes.count("allowed"), outcomes.count("rate_limit")
        right = outcomes == ["allowed"] * MAX + ["rate_limit"] * (CALLS - MAX) and len(delivered) == MAX and tools == [TOOL]
        others = sorted({outcome for outcome in outcomes if outcome not in ("allowed", "rate_limit")})
        scenario.require(
            right,
            f"{name} ({mode}): {CALLS} calls, {passed} passed, {denied} denied by the limit; the server delivered {len(delivered)}"
            + (f"; others: {others[0][:300]}" if others else ""),
            f"{MAX}, {CALLS - MAX}, {MAX}",
        )
        methods = sorted({f"{one['method']} {one['status']}" for one in received})
        refused = [one for one in received if one["status"] == 401]
        seen = server.saw(JUNK)
        versions = {one["http"] for one in received}
        scenario.require(
            not refused and not seen and versions == {"2" if server.settings.get("http2") else "1.1"},
            f"{name}: {len(received)} requests over HTTP/{', '.join(versions)} ({', '.join(methods)}), {len(refused)} without its credential; {JUNK!r} "
            f"{'reached' if seen else 'never reached'} it",
            "0; never",
        )
    shows_the_chain(scenario, kinds)
    asks_for_tokens(scenario, kinds, pod)
    kinds.close()


def refused_directly(name, server, trust):
    """Whether the server refuses calls without its credential: with nothing, and with what the agent has."""
    found = []
    for headers in ({}, {"Authorization": "Bearer direct"}, {"X-Api-Key": "direct"}):
        try:
            found.append(f"HTTP {call(server.url, headers, context=trust if server.url.startswith('https') else None).status}")
        except OSError as error:
            found.append(f"TLS: {type(error).__name__}")
    delivered = len(server.delivered())
    holds = not delivered and all(one == "HTTP 401" or one.startswith("TLS") for one in found)
    return (
        holds,
        f"{name}: direct calls with nothing, a bearer, a key: {', '.join(found)}; {delivered} delivered",
        "all refused, 0",
    )


def shows_the_chain(scenario, kinds):
    serials = {one["certificate"] for one in kinds.servers["certificate"].requests()}
    scenario.require(serials == {kinds.serial}, f"certificate: the server saw {serials}", f"only {kinds.serial}")


def asks_for_tokens(scenario, kinds, pod):
    """What the OAuth servers were asked."""
    wanted = {
        "client-credentials": {"grant_type": "client_credentials", "scope": "mcp"},
        "resource": {
            "grant_type": "client_credentials",
            "scope": "mcp other",
            "resource": kinds.servers["resource"].settings["want"]["audience"],
        },
        "exchange": {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": kinds.subject,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "audience": "mcp-exchange",
            "scope": "mcp",
        },
    }
    for name, form in wanted.items():
        log = kinds.fronts[name].log
        given = log[0]["form"] if log else {}
        right = all(given.get(field) == value for field, value in form.items())
        shown = {field: value for field, value in given.items() if not re.search("secret|subject_token$", field)}
        fetches = pod.metric("toolweir_credential_fetches_total", server=name, outcome="ok")
        scenario.require(
            right and len(log) == 1 and fetches == 1,
            f"{name}: {len(log)} requests for a token, {fetches:g} ok in the metrics: {shown}"
            if fetches is not None
            else f"{name}: {len(log)} requests for a token, none in the metrics: {shown}",
            f"1 of each, with {', '.join(form)}",
        )
    ready = {name: pod.metric("toolweir_credential_ready", server=name) for name in kinds.servers}
    scenario.require(set(ready.values()) == {1.0}, f"toolweir_credential_ready is {ready}", "1 for each")
    expiry = {
        name: pod.metric("toolweir_credential_expiry_seconds", server=name)
        for name in ("certificate", "pod-token", "client-credentials", "resource", "exchange", "exchange-open")
    }
    between = {"certificate": (7000, 7200), "pod-token": (3400, 3600)}
    right = all(
        left is not None and between.get(name, (200, 300))[0] < left <= between.get(name, (200, 300))[1]
        for name, left in expiry.items()
    )
    scenario.require(
        right, f"toolweir_credential_expiry_seconds is {expiry}", "just below 7200, 3600, and 300 for tokens of OAuth"
    )


def scenario_conflict(scenario, stage, shared):
    """Two policies that give one server different credentials close it; the same ones do not."""
    found = servers(stage, {name: {"want": {"kind": "bearer", "token": "one"}} for name in ("torn", "agreed", "beside")})
    keys = Keys(stage.dir / "keys")
    keys.put({"one": "one", "two": "two"})

    def credential(key):
        return {"bearer": {"secretKey": key}}

    first = [governed(name, found[name].url, credential("one"), None) for name in found]
    second = [
        governed("torn", found["torn"].url, credential("two"), None),
        governed("agreed", found["agreed"].url, credential("one"), None),
        {"name": "beside", "tools": [{"name": TOOL}]},
    ]
    pod = Governor(stage, "sidecar", [policy("first-policy", first), policy("second-policy", second)], keys)
    for headers in ({}, JUNK_HEADERS):
        answer = call(pod.url("torn"), headers)
        both = "first-policy" in answer.text and "second-policy" in answer.text
        scenario.require(answer.denied and both, f"different credentials: {answer}", "a denial that names both policies")
    answer = request("POST", pod.url("torn"), json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), ACCEPT)
    received = len(found["torn"].requests())
    scenario.require(received == 0, f"the server of both received {received} requests; tools/list gave HTTP {answer.status}", "0")
    for name, what in (("agreed", "the same credential twice"), ("beside", "a credential in one policy, rules in another")):
        answer = call(pod.url(name))
        scenario.require(answer.allowed, f"{what}: {answer}", "allowed")
    file = stage.dir / "sidecar.policies/second-policy.yaml"
    file.write_text(json.dumps(policy("second-policy", [governed("torn", found["torn"].url, credential("one"), None)])))
    began = time.monotonic()
    wait_until("the conflict is over", lambda: call(pod.url("torn")).allowed, 10, 0.1)
    scenario.require(True, f"once both give the same, calls pass after {time.monotonic() - began:.1f} s", "within 10 s")


def scenario_secrecy(scenario, stage, shared):
    """No secret is where anybody but the sidecar could read it."""
    kinds = Kinds(stage, shared)
    heard = []
    for form in ("text", "json"):
        pod = kinds.sidecar(form, ["--log-level", "trace", "--log-format", form])
        answers = exercised(kinds, pod)
        heard.append((form, pod, answers))
    secrets = kinds.secrets()
    planted = "".join((kinds.keys.dir / name).read_text() for name in kinds.keys.now) + "".join(kinds.fronts["resource"].tokens())
    known = sum(text in planted for text in secrets.values())
    scenario.require(known >= 8, f"the search finds {known} of {len(secrets)} texts where they must be", ">= 8")
    for form, pod, answers in heard:
        places = {"answers to the client": "\n".join(answers)} | exposed(pod)
        for place, text in places.items():
            leaks = [name for name, secret in secrets.items() if secret in text]
            scenario.require(
                not leaks,
                f"{form}: {place}: {len(text)} characters, {len(leaks)} of {len(secrets)} secrets {leaks[:3] or ''}",
                "0",
            )
    kinds.close()


def exercised(kinds, pod):
    """Lets all that can happen to credentials happen, and gives all that the client got."""
    heard = []
    for name, server in kinds.servers.items():
        mode = "legacy" if server.settings.get("stateful") else "auto"
        heard += asyncio.run(calls(pod.url(name), 2, mode))[2]
        heard.append(call(pod.url(name), JUNK_HEADERS).all())
        if server.url.startswith("http:"):
            server.control(refuse=3)
            heard.append(call(pod.url(name)).all())
            server.control(refuse=0)
        heard.append(request("GET", f"http://127.0.0.1:{pod.port}/.well-known/oauth-protected-resource/{name}").all())
    # What a careless message would quote: keys of a wrong form, and answers of token endpoints that cannot be read.
    good = dict(kinds.keys.now)
    bearer, private = good["bearer"].decode(), good["tls.key"].decode()
    kinds.keys.put(
        good
        | {
            "bearer": f"{bearer}\n{bearer}",
            "password": good["password"] + b"\x00",
            "tls.key": private.replace("PRIVATE", "PUBLIC"),
        }
    )
    token = kinds.fronts["resource"].tokens()[0]
    for mode in (json.dumps({"access_token": token, "token_type": "mac"}), f'{{"access_token": "{token}", ', 500, 401):
        kinds.fronts["resource"].mode = mode
        kinds.servers["resource"].control(refuse=1)
        heard.append(call(pod.url("resource")).all())
    time.sleep(1.5)
    heard += [call(pod.url(name)).all() for name in ("bearer", "basic", "certificate", "header")]
    kinds.servers["resource"].control(refuse=0)
    kinds.fronts["resource"].mode = "pass"
    kinds.keys.put(good)
    return heard


def exposed(pod):
    """All that others can read of a sidecar."""
    explain = {"server": "bearer", "tool": TOOL, "arguments": {}}
    proc = Path(f"/proc/{pod.process.pid}")
    return {
        "stderr": pod.log.read_text(),
        "stdout": pod.audit.read_text(),
        "/metrics": pod.metrics(),
        "/policy": json.dumps(pod.admin("/policy")),
        "/limits": json.dumps(pod.admin("/limits")),
        "/explain": json.dumps(pod.admin("/explain", explain)),
        "/log-level": str(pod._get(pod.admin_port, "/log-level")),
        "--mcp-config": pod.mcp_config.read_text(),
        "/proc/PID/cmdline": (proc / "cmdline").read_text(),
        "/proc/PID/environ": (proc / "environ").read_text(errors="replace"),
    }


class Shared:
    """What several scenarios use: Keycloak, which takes long to start."""

    def __init__(self, stage, args):
        self.stage, self.home, self.node, self.exchange, self.started = stage, args.keycloak, args.node, args.exchange, None

    def start(self):
        self.started = Keycloak(self.stage, self.home, CC_AUDIENCE, KEYCLOAK_ID, KEYCLOAK_SECRET)

    def keycloak(self):
        return self.started.wait()


SCENARIOS = {
    "headers": scenario_headers,
    "conflict": scenario_conflict,
    "refused": scenario_refused,
    "keys": scenario_keys,
    "rotation": scenario_rotation,
    "expiry": scenario_expiry,
    "kinds": scenario_kinds,
    "secrecy": scenario_secrecy,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--keycloak", type=Path, required=True)
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--exchange", type=Path, required=True)
    parser.add_argument("scenarios", nargs="*", help=f"{', '.join(SCENARIOS)}; the default is all")
    args = parser.parse_args()
    if unknown := [name for name in args.scenarios if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]}")
    # What was started ends with this process, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = args.scenarios or list(SCENARIOS)
    scenarios = []
    with Stage(args.sidecar, None, args.dir / "shared") as stage:
        shared = Shared(stage, args)
        if {"kinds", "secrecy"}.intersection(chosen):
            shared.start()
        for name in chosen:
            scenarios.append(with_second_try(lambda number, name=name: run(name, number, args, shared)))
    return printed_summary(scenarios, args.dir)


def run(name, number, args, shared):
    """One try of a scenario, with a folder of its own."""
    scenario = Scenario(name)
    print(f"\n== {name}: {inspect.getdoc(SCENARIOS[name])}", flush=True)

    def body():
        with Stage(args.sidecar, None, args.dir / (name if number == 1 else f"{name}-{number}")) as stage:
            SCENARIOS[name](scenario, stage, shared)

    return scenario.run(body, (Broken, OSError))


if __name__ == "__main__":
    sys.exit(main())
