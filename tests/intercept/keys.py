"""What lies in files and in memory: the pod's authority, its bundle, and what becomes of them when the sidecar is killed or its state is lost."""

import datetime
import json
import re
import stat
import subprocess
import sys
import warnings
from pathlib import Path

from certificates import Authority, fingerprint, pem
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from network import UID

warnings.filterwarnings("ignore", "Parsed a serial number", module="cryptography|keys")
from world import InterceptedPod, addresses, policy, server

PRIVATE = re.compile(rb"PRIVATE KEY|\x02\x01\x01\x04\x20")
SYSTEM_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
HOURS = datetime.timedelta(hours=1)
# A client that lives on: for each line that it reads, it asks anew with the roots that it read at its start.
LIVES_ON = """
import ssl, sys, urllib.request
context = ssl.create_default_context()
for line in sys.stdin:
    try:
        with urllib.request.urlopen("https://tools.test/page", timeout=10, context=context) as answer:
            print(answer.status, flush=True)
    except urllib.error.HTTPError as error:
        print(error.code, flush=True)
    except OSError as error:
        print(repr(error), flush=True)
"""
LEAF = """
import socket, ssl, sys
with ssl.create_default_context().wrap_socket(socket.create_connection((sys.argv[1], 443), 10), server_hostname=sys.argv[1]) as made:
    sys.stdout.buffer.write(made.getpeercert(True))
"""


def kept(world):
    return json.loads(world.interception.read_text())["authority"]


def change(**fields):
    """Writes other fields of the authority into the state."""

    def damage(file):
        whole = json.loads(file.read_text())
        whole["authority"] |= fields
        file.write_text(json.dumps(whole))

    return damage


OTHER = Authority.root("Another authority")
DAMAGES = {
    "the file is gone": lambda file: file.unlink(),
    "the file is cut short": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "the file is empty": lambda file: file.write_bytes(b""),
    "the key is another": change(key=pem(OTHER.key)),
    "the key is none": change(key="x"),
    "the intermediate is another": change(intermediate=pem(OTHER.certificate)),
    "the root is another": change(root=pem(OTHER.certificate)),
    "there is no host": change(hosts=[]),
    "others may write the file": lambda file: file.chmod(0o666),
}


def scenario_keys(scenario, world):
    for number, name in enumerate(("tools", "late"), 110):
        world.host(f"{name}.test", addresses(number))
    world.begin()
    tools = server("tools", "https://tools.test/mcp")
    world.govern(policy(tools, server("spelled", "https://spelled.agents.svc.cluster.local:8443/mcp")))
    client = world.popen(
        "client", world.container("root", sys.executable, "-c", LIVES_ON), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=world.environment()
    )
    authority(scenario, world)
    files(scenario, world)
    memory(scenario, world)
    explained(scenario, world)
    killed(scenario, world, client)
    damaged(scenario, world, client)
    without_hosts(scenario, world, tools)


def ask(client):
    client.stdin.write("\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


def leaf(world, name="tools.test"):
    ran = subprocess.run(
        [str(word) for word in world.container("root", sys.executable, "-c", LEAF, name)], capture_output=True, env=world.environment(), timeout=30
    )
    assert ran.returncode == 0, ran.stderr.decode()[-500:]
    return x509.load_der_x509_certificate(ran.stdout)


def extension(certificate, kind):
    found = certificate.extensions.get_extension_for_class(kind)
    return found.critical, found.value


def authority(scenario, world):
    """What the certificates say."""
    root, between = (x509.load_pem_x509_certificate(kept(world)[name].encode()) for name in ("root", "intermediate"))
    shown = leaf(world)
    now = datetime.datetime.now(datetime.UTC)
    left, whole = shown.not_valid_after_utc - now, shown.not_valid_after_utc - shown.not_valid_before_utc
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    scenario.require(
        HOURS < left <= 24 * HOURS
        and whole <= 25 * HOURS
        and [one.value for one in names] == ["tools.test"]
        and [one._name for one in usage] == ["serverAuth"],
        f"a leaf is valid for {left / HOURS:.1f} h more, of {whole / HOURS:.1f} h in all, for {[one.value for one in names]}, {[one._name for one in usage]}",
        "at most 24 h more; one name; serverAuth",
    )
    keys = [one.public_key() for one in (root, between, shown)]
    curves = [key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__ for key in keys]
    points = {key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys}
    scenario.require(
        curves == ["secp256r1"] * 3 and len(points) == 3, f"keys of root, intermediate and leaf: {curves}, {len(points)} different", "P-256, three"
    )
    critical, basic = extension(between, x509.BasicConstraints)
    critical_names, constraints = extension(between, x509.NameConstraints)
    permitted, excluded = ([one.value for one in part or ()] for part in (constraints.permitted_subtrees, constraints.excluded_subtrees))
    # With the search domains, all of them mean a declared host.
    strangers = [name for name in permitted if not meanings(name) & (meanings("tools.test") | meanings("spelled.agents.svc.cluster.local"))]
    short = {"tools.test", "spelled", "spelled.agents", "spelled.agents.svc", "spelled.agents.svc.cluster.local"} - set(permitted)
    scenario.require(
        critical
        and critical_names
        and basic.ca
        and basic.path_length == 0
        and not strangers
        and not short
        and set(map(str, excluded)) == {"0.0.0.0/0", "::/0", *(f".{name}" for name in permitted)},
        f"the intermediate: path length {basic.path_length}, permits {len(permitted)} names, of which strangers {strangers}, and not {short or 'one that is needed'}; excludes {list(map(str, excluded))}",
        "0; the declared hosts in every spelling; all addresses",
    )
    bundle = x509.load_pem_x509_certificates(world.bundle.read_bytes())
    prints = [fingerprint(one) for one in bundle]
    system = x509.load_pem_x509_certificates(SYSTEM_ROOTS.read_bytes())
    scenario.require(
        prints.count(fingerprint(root)) == 1
        and fingerprint(world.public.certificate) in prints
        and fingerprint(between) not in prints
        and len(set(prints)) == len(prints) >= len(system) + 2,
        f"the bundle: {len(prints)} certificates, the system has {len(system)}",
        "the system's, the extra root, the pod's root, none twice",
    )
    store = subprocess.run(["keytool", "-list", "-keystore", world.bundle.with_suffix(".jks"), "-storepass", "changeit"], capture_output=True, text=True)
    entries = store.stdout.count("trustedCertEntry")
    scenario.require(entries == len(prints), f"the trust store for Java: {entries} entries {store.stderr[-200:]}", len(prints))


def meanings(name):
    return {name, *(f"{name}.{domain}" for domain in InterceptedPod.search)}


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


def files(scenario, world):
    """Who may read what, and which files have a private key."""
    owner = world.interception.stat().st_uid
    scenario.require(mode(world.interception) == 0o600 and owner == UID, f"the state: {oct(mode(world.interception))}, of {owner}", f"0o600, of {UID}")
    folders = (world.state, world.bundle_dir)
    private = [file for folder in folders for file in folder.rglob("*") if file.is_file() and PRIVATE.search(file.read_bytes())]
    names = [str(file.relative_to(world.dir)) for file in private]
    scenario.require(names == ["state/interception.json"], f"files with a private key: {names}", "one")
    given = {file.name: oct(mode(file)) for file in sorted(world.bundle_dir.iterdir())}
    scenario.require(given == {"ca-bundle.jks": "0o644", "ca-bundle.pem": "0o644"}, f"what the agent gets: {given}", "two files, 0644")
    attempt = f"""
cat {world.bundle} >/dev/null && echo read
for file in {world.bundle} {world.bundle.with_suffix(".jks")}; do (echo x >>$file) 2>/dev/null && echo written; rm -f $file 2>/dev/null && echo removed; done
touch {world.bundle_dir}/new 2>/dev/null && echo made
cat {world.interception} 2>/dev/null && echo key
"""
    for user in ("unprivileged", "root"):
        said = world.agent("sh", "-c", attempt, user=user, cwd="/").stdout.split()
        scenario.require(said == ["read"], f"{user} in the agent's container: {said}", "it can read the bundle, and nothing else")


def memory(scenario, world):
    """The private keys in the sidecar's memory, in the form in which they are written."""
    root, between = (x509.load_pem_x509_certificate(kept(world)[name].encode()).public_key() for name in ("root", "intermediate"))
    found = {"root": 0, "intermediate": 0, "others": 0}
    for scalar in secrets_in(world.inner(world.process)):
        try:
            public = ec.derive_private_key(scalar, ec.SECP256R1()).public_key().public_numbers()
        except ValueError:
            continue
        found["root" if public == root.public_numbers() else "intermediate" if public == between.public_numbers() else "others"] += 1
    scenario.require(found["root"] == 0, f"keys of P-256 in the sidecar's memory, in DER: {found}", "none of the root")


def secrets_in(pid):
    """What follows the head of an ECPrivateKey of 32 bytes (RFC 5915) in a process's memory."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if "rw" not in rights:
                continue
            begin, end = (int(text, 16) for text in span.split("-"))
            try:
                memory.seek(begin)
                held = memory.read(end - begin)
            except OSError:
                continue
            for match in re.finditer(rb"\x02\x01\x01\x04\x20", held):
                found.add(int.from_bytes(held[match.end() : match.end() + 32], "big"))
    return found - {0}


def explained(scenario, world):
    told = json.loads(world.ask("admin", "/explain", {"url": "https://tools.test/mcp"}))
    between = Authority.of_pod(world.interception).certificate
    said, own = told.get("openedBy") or "", fingerprint(between)
    letters = re.sub(r"[^0-9a-f]", "", said.lower().partition("sha-256")[2].partition(", until")[0])
    scenario.require(
        own.startswith(letters) and len(letters) >= 4 and f"{between.not_valid_after_utc:%Y-%m-%d}" in said and "agents/agent-0" in said,
        f"explain of https://tools.test/mcp: {said}",
        f"who signs: {own[:8]}..., until {between.not_valid_after_utc:%Y-%m-%d}",
    )
    other = json.loads(world.ask("admin", "/explain", {"url": "https://late.test/mcp"}))
    scenario.require(not other.get("openedBy"), f"explain of a host that no policy declares: {other}", "no openedBy")


def killed(scenario, world, client):
    before = (world.bundle.read_bytes(), world.bundle.with_suffix(".jks").read_bytes(), world.fingerprint())
    first = ask(client)
    world.kill()
    meanwhile = ask(client)
    world.start()
    after = (world.bundle.read_bytes(), world.bundle.with_suffix(".jks").read_bytes(), world.fingerprint())
    again = ask(client)
    scenario.require(
        before == after, f"after SIGKILL and a start: bundle {'same' if before[:2] == after[:2] else 'another'}, intermediate {after[2][:16]}", before[2][:16]
    )
    scenario.require(
        first == again == "403" and not meanwhile.isdigit(),
        f"a client that was open: {first}, then {meanwhile}, then {again}",
        "an answer of the sidecar, an error, the answer again",
    )


def damaged(scenario, world, client):
    for what, damage in DAMAGES.items():
        world.kill()
        before, said = world.fingerprint(), len(world.log())
        damage(world.interception)
        began = datetime.datetime.now()
        world.start()
        took = datetime.datetime.now() - began
        after, lines = world.fingerprint(), [json.loads(line) for line in world.log()[said:].splitlines() if line.startswith("{")]
        about = [line for line in lines if re.search("authority|interception", json.dumps(line), re.I)]
        shown = leaf(world)
        scenario.require(
            before != after and about and shown.issuer == Authority.of_pod(world.interception).certificate.subject and mode(world.interception) == 0o600,
            f"{what}: intermediate {before[:8]} -> {after[:8]}, ready after {took.total_seconds():.1f} s; {json.dumps(about[:1])[:300]}",
            "another, with a line in the log",
        )
    # It has the roots of the first.
    said = ask(client)
    scenario.require("CERTIFICATE_VERIFY_FAILED" in said, f"a client with the bundle of before: {said[:120]}", "it refuses the new authority")


def without_hosts(scenario, world, tools):
    """A pod that had nothing to intercept at its start: never an authority, whatever comes."""
    world.kill()
    for folder in (world.state, world.bundle_dir):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    world.govern(policy(server("tools", "https://tools.test/mcp", tls=None)))
    roots = len(x509.load_pem_x509_certificates(world.bundle.read_bytes()))
    keys = [file.name for file in world.state.rglob("*") if file.is_file() and PRIVATE.search(file.read_bytes())]
    scenario.require(
        not keys and roots > 10 and world.bundle.with_suffix(".jks").exists(),
        f"without hosts: keys {keys}, {roots} roots in the bundle",
        "no key; a bundle all the same",
    )
    world.govern(policy(tools))
    explained = json.loads(world.ask("admin", "/explain", {"url": "https://tools.test/mcp"}))
    world.restart()
    again = json.loads(world.ask("admin", "/explain", {"url": "https://tools.test/mcp"}))
    keys = [file.name for file in world.state.rglob("*") if file.is_file() and PRIVATE.search(file.read_bytes())]
    scenario.require(
        explained["reason"] == again["reason"] == "new_pod_needed" and not keys,
        f"a host that comes later: {explained['reason']}, after a start {again['reason']}; keys {keys}",
        "new_pod_needed both times, no key",
    )
