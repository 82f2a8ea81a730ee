"""Ways out by HTTP and TLS: each may reach the addresses that its policy allows, and what it smuggles may reach nobody."""

from network import GATEWAY, NODE_LOCAL, shown
from ways import tried

ROWS = 40
NAMES = {
    "allowed.test": ["203.0.113.10", "2001:db8:9::10"],
    "tools.test": ["203.0.113.20", "2001:db8:9::20"],
    "plain.test": ["203.0.113.30", "2001:db8:9::30"],
    "other.test": ["203.0.113.66", "2001:db8:9::66"],
    "meta.test": ["169.254.169.254", "fd00:ec2::254"],
    "internal.test": ["10.99.0.9", "fd99::9"],
    "pod.test": ["10.77.0.2", "fd77::2"],
    "loopback.test": ["127.0.0.1", "::1"],
    "mapped.test": ["::ffff:169.254.169.254"],
    "translated.test": ["64:ff9b::a9fe:a9fe"],
}
POLICY = """
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: way}
spec:
  servers:
  - {name: tools, url: "http://tools.test:9000/mcp", tools: [{name: ok}]}
  egress:
    allow:
    - {domainNames: [allowed.test], ports: [80, 443]}
    - {domainNames: [plain.test], ports: [9000]}
    - {domainNames: [meta.test, internal.test, pod.test, loopback.test, mapped.test, translated.test], ports: [80]}
"""


def astray(line):
    """The packets of a row that lead where it may not, or carry what it smuggles. The sidecar resolves names, and ends what the row
    before began."""
    away = [one for one in line["arrived"] if one.get("to") not in line["may"] or line["token"] in one["data"]]
    away = [one for one in away if not (one.get("to") in (*GATEWAY.values(), NODE_LOCAL) and one.get("port") == 53)]
    return [one for one in away if one["protocol"] != "tcp" or one["data"] or "S" in one.get("flags", "")]


def scenario_http(scenario, world):
    written = world.capture()
    scenario.require(written.returncode == 0, "the rules are written", "they are")
    world.sidecar(POLICY)
    for user in ("unprivileged", "root"):
        lines, _ = tried(world, user, "ways_out_http.py", names=NAMES)
        passed = [line for line in lines if astray(line)]
        broken = [line for line in lines if line["row"].startswith("works_") and line["result"] != "answered"]
        if user == "unprivileged":
            print(f"\n  {'way':<32} family  seen by its client")
            for line in lines:
                print(f"  {line['row']:<32} {line['family']:<7} {'OPEN' if line in passed else line['result']:<9} {line['detail'][:150]}")
            print(flush=True)
        for line in passed:
            print(f"  OPEN {user}: {line['row']} {line['family']}: {line['result']} {line['detail'][:300]}")
            for packet in astray(line)[:4]:
                print(f"       {shown(packet)}")
        ran = [line for line in lines if line["result"] != "untried"]
        scenario.require(
            not passed and len(ran) >= ROWS and all(one["result"] == "silent" for one in broken),
            f"{user}: {len(ran)} rows tried, {len(passed)} open; do not work: {[(one['row'], one['family'], one['result'], one['detail'][:120]) for one in broken]}",
            f"at least {ROWS}, 0, none",
        )
        scenario.in_time(not broken, f"{user}: {len(broken)} of what must work is not answered", "0")
