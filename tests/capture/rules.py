"""The rules themselves: what nft says of them, and what is said where they cannot be written or do not hold."""

import json
import re
import time
from pathlib import Path

from network import GID, UID, Namespace

HERE = Path(__file__).resolve().parent


def listed(namespace):
    """The table as nft lists it, without handles and counts."""

    def clean(part):
        if isinstance(part, dict):
            return {name: clean(value) for name, value in part.items() if name not in ("handle", "packets", "bytes")}
        return [clean(one) for one in part] if isinstance(part, list) else part

    return [json.dumps(clean(one), sort_keys=True) for one in json.loads(namespace.sh("nft", "-j", "list", "table", "inet", "toolweir"))["nftables"]]


def scenario_rules(scenario, world):
    """Equal to those of nft; the same when written twice; others' ports; words for each failure."""
    reference = Namespace(world, "reference")
    text = (HERE / "rules.nft").read_text()
    reference.sh("nft", "-f", "-", input=text)
    expected = listed(reference)
    first, began = world.capture(), time.time()
    scenario.require(first.returncode == 0 and "IPv4: captured; IPv6: captured" in first.stderr, f"written and proven: {first.stderr.strip()[-150:]}", "both families")
    ours = listed(world.inside)
    scenario.require(ours == expected, f"{len(ours)} parts; other than nft's: {sorted(set(ours) ^ set(expected))[:4]}", f"the {len(expected)} of rules.nft")
    again = world.capture()
    scenario.require(again.returncode == 0 and listed(world.inside) == expected, f"written twice, the second time in {time.time() - began:.2f} s", "the same")

    ports = {"15000": "25000", "15001": "25001", "15002": "25002", "15020": "25020"}
    flags = ["--admin-port", "25000", "--proxy-port", "25001", "--capture-port", "25002", "--metrics-port", "25020"]
    reference.sh("nft", "delete", "table", "inet", "toolweir")
    reference.sh("nft", "-f", "-", input=re.sub("15000|15001|15002|15020", lambda found: ports[found[0]], text))
    other = world.capture(*flags)
    scenario.require(other.returncode == 0 and listed(world.inside) == listed(reference), "other ports: as nft's with these ports", "equal")
    world.capture()

    refusals(scenario, world)
    networks(scenario, world)


def refusals(scenario, world):
    """What is said where the rules cannot be written or do not hold; they stay as they were."""
    before = listed(world.inside)
    capture = [world.binary, "capture", "--uid", str(UID), "--gid", str(GID)]
    for name, user, words in (
        ("without NET_ADMIN, as root", ["setpriv", "--bounding-set", "-all", "--inh-caps=-all"], "NET_ADMIN"),
        ("without NET_ADMIN, as another user", ["setpriv", "--reuid", "1000", "--clear-groups"], "capabilities.add"),
    ):
        ran = world.inside.run(*user, *capture)
        right = ran.returncode == 1 and words in ran.stderr and len(ran.stderr.splitlines()) == 1
        scenario.require(right and listed(world.inside) == before, f"{name}: {ran.stderr.strip()[-300:]}", f"exit code 1, one line with {words}; nothing changes")
    only = world.inside.run("setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps=-all", "--no-new-privs", *capture)
    scenario.require(only.returncode == 0, f"with NET_ADMIN alone, under no_new_privs: {only.stderr.strip()[-80:]}", "exit code 0")

    for name, table, words in (
        ("others redirect before", "table inet other { chain c { type nat hook output priority -150; meta l4proto tcp redirect to :1; }; }", "not redirected"),
        ("others drop on loopback", "table inet other { chain c { type filter hook input priority 0; tcp dport 15002 drop; }; }", "not redirected"),
    ):
        world.inside.sh("nft", "-f", "-", input=table.replace("; ", "\n"))
        ran = world.inside.run(*capture)
        world.inside.sh("nft", "delete", "table", "inet", "other")
        right = ran.returncode == 1 and words in ran.stderr and ran.stderr.count("\n") == 1
        scenario.require(right and listed(world.inside) == before, f"{name}: {ran.stderr.strip()[-300:]}", f"exit code 1, one line with {words!r}; the rules stay")
    for name, flags, words in (
        ("uid 0", ["--uid", "0", "--gid", "7"], "--uid"),
        ("a port twice", ["--uid", "7", "--gid", "7", "--admin-port", "15001"], "port 15001 is given twice"),
        ("no such file", ["--uid", "7", "--gid", "7", "--resolv-conf", "/nonexistent"], "--resolv-conf /nonexistent"),
    ):
        ran = world.inside.run(world.binary, "capture", *flags)
        scenario.require(ran.returncode in (1, 2) and words in ran.stderr, f"{name}: {ran.stderr.splitlines()[0]}", f"refused, with {words!r}")


def networks(scenario, world):
    """Pods with one family, and with none."""
    for name, prepare, words in (
        ("IPv6 off", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "IPv6: not in this pod"),
        ("no routes", "true", "IPv4: no default route"),
    ):
        pod = world.pod(name.replace(" ", "-"))
        pod.sh("sh", "-ec", prepare)
        ran = world.capture(where=pod)
        scenario.require(ran.returncode == 0 and words in ran.stderr, f"{name}: {ran.stderr.strip()[-100:]}", f"exit code 0, {words!r}")
    pod = world.pod("resolvers")
    (world.dir / "other.conf").write_text("nameserver 127.0.0.53\nnameserver not-an-address\nnameserver fe80::1%eth0\n")
    ran = world.capture("--resolv-conf", world.dir / "other.conf", where=pod)
    six = "fe80::1" in pod.sh("nft", "list", "set", "inet", "toolweir", "resolvers6")
    scenario.require(ran.returncode == 0 and six and "not-an-address" in ran.stderr, f"odd resolvers: {ran.stderr.splitlines()[0][-120:]}", "a link-local one is open, a name is told of")
