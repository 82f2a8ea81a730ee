"""TLS handshakes of every form, and where each leads: `tls.py` makes them in the pod."""

import json
import subprocess
import sys

from certificates import Authority
from world import HERE, Growth, addresses, policy, server

GOVERNED, RESET = "governed", "reset"
# Each row of tls.py: what must come of it; who signed the certificate, where it matters; what else is measured; what the sidecar counts.
POD, OUTSIDE = "pod", "Authority of the outside"
EXPECTED = {
    "http1": (GOVERNED, {"by": POD, "alpn": "http/1.1"}),
    "http2": (GOVERNED, {"by": POD, "alpn": "h2"}),
    "without_alpn": (GOVERNED, {"by": POD, "alpn": None}),
    "both_alpn": ("chosen", {"alpn": "h2"}),
    "alpn_of_neither": ("", {"connections": {"tls_handshake": 1}}),
    "tls_1_2": (GOVERNED, {"by": POD, "tls": "TLSv1.2"}),
    "tls_1_3": (GOVERNED, {"by": POD, "tls": "TLSv1.3"}),
    "tls_1_1": ("", {"connections": {"tls_handshake": 1}}),
    "segments": (GOVERNED, {"by": POD}),
    "single_bytes": (GOVERNED, {"by": POD}),
    "tls_records": (GOVERNED, {"by": POD}),
    "tls_records_in_segments": (GOVERNED, {"by": POD}),
    "long_client_hello": (GOVERNED, {"by": POD}),
    "too_long_client_hello": (RESET, {"connections": {"malformed": 1}, "handshakes": {}}),
    "server_name_with_a_dot": (GOVERNED, {"by": POD}),
    "resumption_1_3": ("governed, governed, denied", {"reused": True, "by": POD}),
    "resumption_1_2": ("governed, governed, denied", {"reused": True, "by": POD}),
    "ticket_of_another_name_1_3": ("passed", {"reused": False, "by": POD}),
    "ticket_of_another_name_1_2": ("passed", {"reused": False, "by": POD}),
    "early_data": ("0 bytes in ", {}),
    "hundred_at_once": ("100 governed", {"handshakes": {"completed": 100}}),
    "forty_by_alpn_at_once": ("40 governed", {}),
    "http2_without_alpn": ("closed", {}),
    "forty_over_http2_without_alpn": ("40 closed", {}),
    "pipelined": ("governed | 421: Toolweir: | governed", {}),
    "http2_streams": ("governed | denied | 421: Toolweir: | 403: Toolweir: | governed", {"by": POD}),
    "host_of_another": ("421: Toolweir:", {"by": POD, "connections": {"other_name": 1}}),
    "host_with_its_port": (GOVERNED, {}),
    "host_with_another_port": ("421: Toolweir:", {"connections": {"other_name": 1}}),
    "host_twice": ("400: ", {}),
    "no_host": (GOVERNED, {"by": POD}),
    "absolute_form": (GOVERNED, {}),
    "absolute_form_of_another": ("421: Toolweir:", {"connections": {"other_name": 1}}),
    "absolute_form_plain": ("4", {}),
    "other_path": ("403: Toolweir:", {"by": POD, "connections": {"other_path": 1}}),
    "authorization_metadata": ("passed", {"by": POD}),
    "hidden_tool": ("denied", {"by": POD}),
    "connect_inside": ("400: ", {}),
    "connect_tunnel": (GOVERNED, {"by": POD}),
    "connect_tunnel_of_another": (RESET, {"connections": {"other_name": 1}}),
    "no_server_name": (RESET, {"handshakes": {}}),
    "server_name_of_another": ("passed", {"by": POD}),
    "capital_letters": (GOVERNED, {"by": POD}),
    "other_port": (RESET, {"handshakes": {}}),
    "plain_http": ("403: Toolweir:", {"connections": {"other_path": 1}}),
    "not_intercepted": (RESET, {"connections": {"server_tls": 1}, "handshakes": {}}),
    "intercepted_and_refused": (RESET, {"connections": {"server_tls": 1}, "handshakes": {}}),
    "undeclared_under_egress": ("passed", {"by": OUTSIDE, "handshakes": {}}),
    "below_a_declared_host": ("passed", {"by": OUTSIDE, "handshakes": {}}),
    "undeclared": (RESET, {"connections": {"not_allowed": 1}, "handshakes": {}}),
    "garbage_after_client_hello": ("closed within 5 s", {"connections": {"tls_handshake": 1}, "handshakes": {"failed": 1}}),
    "http_after_client_hello": ("closed within 5 s", {"connections": {"tls_handshake": 1}, "handshakes": {"failed": 1}}),
    "certificate_refused": ("SSLCertVerificationError", {"connections": {"tls_handshake": 1}, "handshakes": {"refused": 1}}),
    "hung_up_in_handshake": ("hung up", {"connections": {"tls_handshake": 1}, "handshakes": {"failed": 1}}),
}
LATER = {"declared_later": (RESET, {"connections": {"new_pod_needed": 1}, "handshakes": {}})}
BOUND = 40
HOSTS = ("tools", "page", "refused", "both", "later", "other", "third", "below.tools")


def client(world, *rows, **options):
    """The client in the pod, which prints a line for each row."""
    names = {name: found[0] for name, found in world.names.items()}
    pod = Authority.of_pod(world.interception).name()
    settings = {"roots": str(world.bundle), "intermediate": pod, "addresses": names}
    return [str(word) for word in world.container("root", sys.executable, HERE / "tls.py", json.dumps(settings), *rows)]


def lines_of(world, *rows):
    ran = subprocess.run(client(world, *rows), capture_output=True, text=True, timeout=150, env=world.environment())
    lines = {line["row"]: line for line in map(json.loads, ran.stdout.splitlines())}
    if ran.returncode or set(lines) != set(rows):
        raise RuntimeError(f"tls.py ended after {list(lines)[-1:]}: {ran.stderr[-1500:]}")
    return lines


def fits(wanted, line):
    """Whether a result is as wanted: `|` separates answers, each of which begins as it says."""
    result, facts = wanted
    parts, found = result.split(" | "), line["result"].split(" | ")
    return (
        len(parts) == len(found) and all(one.startswith(part) for part, one in zip(parts, found)) and all(line.get(key) == want for key, want in facts.items())
    )


def policies(later=(), tools="Intercept"):
    egress = {"allow": [{"domainNames": ["other.test", "below.tools.test"], "ports": [443]}]}
    servers = [
        server("tools", "https://tools.test/mcp", tls=tools),
        server("page", "https://page.test/page"),
        server("refused", "https://refused.test/mcp", tls=None),
        server("both", "https://both.test/mcp"),
        *later,
    ]
    return policy(*servers, egress=egress), policy(server("both", "https://both.test/mcp", tls="Refuse"), name="strict")


def scenario_handshakes(scenario, world):
    for number, name in enumerate(HOSTS, 70):
        world.host(f"{name}.test", addresses(number))
    world.begin(sessions=False)
    world.govern(*policies())
    found = lines_of(world, *EXPECTED)
    later = server("later", "https://later.test/mcp")
    world.govern(*policies([later]))
    found |= lines_of(world, *LATER)
    print(f"\n  {'handshake':<28} {'result':<60} connections, handshakes")
    wanted = EXPECTED | LATER
    for name, line in found.items():
        mark = "" if fits(wanted[name], line) else "  NOT AS WANTED"
        facts = {key: value for key, value in line.items() if key not in ("row", "result", "connections", "handshakes") and value}
        print(f"  {name:<28} {line['result'][:60]:<60} {line['connections'] or ''} {line['handshakes'] or ''} {facts or ''}{mark}")
    print(flush=True)
    for name, line in found.items():
        given = ", ".join(f"{key} {value}" for key, value in wanted[name][1].items())
        scenario.require(fits(wanted[name], line), f"{name}: {line}"[:600], f"{wanted[name][0] or 'an end'}{'; ' if given else ''}{given}")
    grown = Growth(world)
    # This takes half a minute, and the rest goes on beside it.
    stalls = subprocess.Popen(client(world, "stalls"), stdout=subprocess.PIPE, text=True, env=world.environment())
    reported(scenario, world)
    while_open(scenario, world, later)
    text, _ = stalls.communicate(timeout=90)
    line = json.loads(text)
    ends = [int(part.split("closed within ")[-1].split()[0]) if "closed within" in part else 999 for part in line["result"].split(";")]
    timeouts, counted = grown.handshakes("timeout"), grown.connections("tls_handshake")
    scenario.require(
        len(ends) == 4 and max(ends) <= BOUND and timeouts >= 1 and counted >= 1,
        f"clients that stall: {line['result']}; handshakes {timeouts:+} timeout, connections {counted:+} tls_handshake",
        f"closed within {BOUND} s; both are counted",
    )
    got = {line["host"].partition(":")[0] for line in world.requests()}
    wrong = got & {"refused.test", "both.test", "later.test", "third.test"}
    scenario.require(not wrong, f"servers that got a request and may not: {sorted(wrong) or 'none'}", "none")


def reported(scenario, world):
    """What the operator is told of a host that came later, and what the metric says."""
    told = [one["interception"] for one in world.reports() if "interception" in one]
    states = {state["server"]: state.get("problem") for state in told[-1]} if told else {}
    scenario.require(
        states.get("later") and "new" in states["later"] and states.get("tools", 0) is None and "both" not in states,
        f"the last report: {states}",
        "a problem of later with its remedy, none of tools, nothing of both",
    )
    ready = {labels["server"]: value for labels, value in world.samples().get("toolweir_interception_ready", ())}
    scenario.require(ready.get("later") == 0 and ready.get("tools") == 1, f"toolweir_interception_ready: {ready}", "later 0, tools 1")


def while_open(scenario, world, later):
    """Policies that change while a connection is open: the next request is refused, and the connection ends."""
    undeclared = [policy(server("page", "https://page.test/page"), egress={"default": "Allow"})]
    for what, changed, reason in (
        ("a policy says Refuse", policies([later], tools="Refuse"), "TLS to a declared server"),
        ("no policy declares the server, and all else may pass", undeclared, "by a way that no policy declares"),
    ):
        world.govern(*policies([later]))
        process = subprocess.Popen(client(world, "while_open"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=world.environment())

        def ask(process=process):
            """What was said to the request before this one; the next request."""
            process.stdin.write("/mcp\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())["said"]

        first = ask()
        # The answer to the second request is there before the policies change.
        second, third = ask_after(world, changed, ask), ask()
        process.stdin.close()
        fourth = json.loads(process.stdout.readline())["result"]
        process.wait(timeout=10)
        scenario.require(first == second == GOVERNED, f"two requests on an open connection: {first}, {second}", GOVERNED)
        scenario.require(third.startswith("403: Toolweir:") and reason in third, f"the next after {what}: {third}", f"403, {reason}")
        scenario.require(fourth.startswith((RESET, "closed")), f"and the one after that: {fourth}", "the connection has ended")
    world.govern(*policies([later]))


def ask_after(world, changed, ask):
    """Brings policies into force, and then asks; what was said before that."""
    world.govern(*changed)
    return ask()
