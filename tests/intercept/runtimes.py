"""HTTPS clients of many runtimes: each goes through the sidecar, and none takes what the pod's authority may not sign."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from certificates import Authority
from world import HERE, LOOPBACK, ROGUE, Growth, addresses, policy, server

CLIENTS = HERE / "clients"
PAGE = "https://page.test/page"
PYTHON, LIBRARIES, PROGRAMS, FETCH = sys.executable, CLIENTS / "libraries.py", CLIENTS / "programs.py", CLIENTS / "fetch.mjs"


def built(name):
    """What run.sh has built or installed, and tells in a variable."""
    return os.environ[f"INTERCEPT_{name}"]


def runtimes():
    """Each with its command, to which URLs are added, and the command that tells its version."""
    node24, bun, deno, uv, pip = map(built, ("NODE24", "BUN", "DENO", "UV", "PIP"))

    def python(library):
        return [PYTHON, LIBRARIES, library], [PYTHON, "-c", f"import {library}; print({library}.__version__)"]

    return {
        "Python ssl, urllib": ([PYTHON, LIBRARIES, "urllib"], [PYTHON, "-c", "import platform, ssl; print(platform.python_version(), ssl.OPENSSL_VERSION)"]),
        "Python requests": python("requests"),
        "Python httpx": python("httpx"),
        "Python aiohttp": python("aiohttp"),
        "pip": (["env", f"PIP={pip}", PYTHON, PROGRAMS, "pip"], [pip, "--version"]),
        "uv": (["env", f"UV={uv}", PYTHON, PROGRAMS, "uv"], [uv, "--version"]),
        "Node, the machine's": (["node", FETCH], ["node", "--version"]),
        "Node 24": ([node24, FETCH], [node24, "--version"]),
        "Bun": ([bun, FETCH], [bun, "--version"]),
        "Deno": ([deno, "run", "--quiet", "--allow-all", "--no-config", FETCH], [deno, "--version"]),
        "Go": ([built("GO")], [shutil.which("go"), "version", built("GO")]),
        "Java": (["java", "-XX:TieredStopAtLevel=1", "-cp", built("JAVA"), "HttpsGet"], ["java", "--version"]),
        "Rust, native roots": ([built("RUST"), "native"], None),
        "curl": ([PYTHON, PROGRAMS, "curl"], ["curl", "--version"]),
        "git": ([PYTHON, PROGRAMS, "git"], ["git", "--version"]),
        "wget with a flag": ([PYTHON, PROGRAMS, "wget"], ["wget", "--version"]),
    }


def of_built_in_roots():
    """Clients that heed no variable, each with how its handshake ends for the sidecar. Node says nothing when it leaves; GnuTLS looks at the
    certificate after the handshake."""
    return {
        "Python requests, certifi": ([PYTHON, LIBRARIES, "requests-built-in"], "refused"),
        "Node 24, its own roots": (["env", "BUILT_IN=1", built("NODE24"), FETCH], "failed"),
        "Rust, webpki-root-certs": ([built("RUST"), "built-in"], "refused"),
        "wget without a flag": ([PYTHON, PROGRAMS, "wget-built-in"], "unused"),
    }


# What somebody with the key of the pod's intermediate authority could serve: the host of the URL -> the names in the certificate.
FORGED = {
    "another host": ("rogue.test", ["rogue.test"]),
    "one of two hosts": ("mixed.test", ["loop.test", "mixed.test"]),
    "a wildcard": ("wild.test", ["*.test"]),
    "in the subject": ("subject.test", []),
    "of an authority below": ("deeper.test", ["deeper.test"]),
    "below a host": ("below.loop.test", ["below.loop.test"]),
    "IPv4": ("127.0.0.1", LOOPBACK),
    "IPv6": ("[::1]", LOOPBACK),
}
# The words of a client that does not take a certificate, and of none that was not connected.
REFUSALS = ("certificate", "certpath", "unknownissuer", "unknown issuer", "constraint", "subtree violation", "x509")
DECLARED = ("page", "loop", "deeper")


def forge(world):
    """Serves them on loopback, which is not captured."""
    authority = Authority.of_pod(world.interception)

    def write(host, text):
        world.certificate(world.rogue_dir, host, text)

    for host, names in FORGED.values():
        if names != LOOPBACK and names:
            write(host, authority.leaf(*names))
    write("subject.test", authority.leaf(subject="subject.test"))
    # deeper.test is permitted, but authorities below the intermediate one are not.
    write("deeper.test", authority.intermediate("below").leaf("deeper.test"))
    write("default", authority.leaf(*LOOPBACK, subject="127.0.0.1"))
    write("loop.test", authority.leaf("loop.test"))
    world.serve("rogue", world.inside, ROGUE, world.rogue_dir, *LOOPBACK)


def said(world, command, urls):
    """What a client says of each URL."""
    ran = world.agent(*command, *urls, seconds=120)
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if len(lines) != len(urls):
        return [{"error": f"exit code {ran.returncode}: {ran.stderr[-600:]}"}] * len(urls)
    return lines


def refused(answer):
    """Whether a client has refused a certificate, and nothing else was amiss."""
    return "error" in answer and any(word in answer["error"].lower() for word in REFUSALS)


def at(host, port=ROGUE):
    return f"https://{host}:{port}/page"


def version(world, command):
    if not command:
        return ""
    ran = world.agent(*command)
    words = [line for line in (ran.stdout or ran.stderr).splitlines() if line and "JAVA_TOOL" not in line]
    return words[0][:48] if words else ""


def prepared(world):
    for number, name in enumerate(DECLARED[:1], 30):
        world.host(f"{name}.test", addresses(number))
    for host in {host for host, _ in FORGED.values()} | {"loop.test"}:
        if host.endswith(".test"):
            world.names[host] = LOOPBACK
    world.begin()
    world.govern(policy(*(server(name, f"https://{name}.test{'' if name == 'page' else f':{ROGUE}'}/page") for name in DECLARED)))


def scenario_runtimes(scenario, world):
    prepared(world)
    forge(world)
    hosts = [host for host, _ in FORGED.values()]
    urls = [PAGE, at("loop.test"), *map(at, hosts)]
    grown = Growth(world)
    clients = runtimes()
    with ThreadPoolExecutor(3) as threads:
        answers = dict(zip(clients, threads.map(lambda client: said(world, client[0], urls), clients.values())))
        versions = dict(zip(clients, threads.map(lambda client: version(world, client[1]), clients.values())))
    print(f"\n  {'client':<22} through  {'a host of its own':<18}{''.join(f'{what:<18}' for what in FORGED)}")
    for name, (through, own, *forged) in answers.items():
        shown = "".join(f"{'refused' if refused(one) else 'TAKEN' if 'status' in one else 'FAILED':<18}" for one in forged)
        print(f"  {name:<22} {through.get('status', 'no'):<8} {own.get('status', 'no'):<18}{shown}{versions[name]}")
    print(flush=True)
    for name, (through, own, *forged) in answers.items():
        # git and the like want more than a page: the sidecar's own answer for another path is what they get.
        expected = (200, "OUTSIDE GET /page page.test") if "OUTSIDE" in through.get("text", "") else (403, "")
        good = (through.get("status"), own.get("status")) in ((200, 200), (403, 200), (403, 404)) and expected[1] in through["text"]
        scenario.require(
            good, f"{name}: {shorter(through)}; for a host that the authority may vouch for: {shorter(own)}", "an answer through the sidecar; and one"
        )
        wrong = {what: shorter(one) for what, one in zip(FORGED, forged) if not refused(one)}
        scenario.require(not wrong, f"{name}: certificates that the authority may not sign and that were not refused: {wrong or 'none'}", "none")
    judge(scenario, world, grown, answers)
    built_in(scenario, world)


def judge(scenario, world, grown, answers):
    """What the sidecar and the servers saw of it."""
    asked = [line for line in world.requests() if line["host"].startswith("page.test")]
    pages = sum("OUTSIDE" in through.get("text", "") for through, *_ in answers.values())
    scenario.require(len(asked) == pages >= 12, f"{len(asked)} requests at the server, {pages} pages at clients", "as many; at least 12")
    handshakes = grown.handshakes("completed")
    scenario.require(handshakes >= len(answers), f"{handshakes} handshakes completed with {len(answers)} clients", "at least one for each")
    forged = [line for line in world.requests(world.rogue_dir) if not line["host"].startswith("loop.test")]
    scenario.require(not forged, f"requests that a forged server got: {forged[:3]}", "none")
    tried = {name for name in (world.rogue_dir / "handshakes").read_text().split()}
    missing = {host for host, _ in FORGED.values() if host.endswith(".test")} - tried
    scenario.require(not missing, f"forged servers that no client asked: {missing or 'none'}", "none")


def built_in(scenario, world):
    for name, (command, end) in of_built_in_roots().items():
        grown, requests = Growth(world), len(world.requests())
        answer = said(world, command, [PAGE])[0]
        counted, ended = grown.connections("tls_handshake"), grown.handshakes(end)
        scenario.require(
            refused(answer) and (counted or end == "unused") and ended and len(world.requests()) == requests,
            f"{name}: {shorter(answer)}; tls_handshake {counted:+}, {end} {ended:+}, {len(world.requests()) - requests} requests at the server",
            "the client refuses; both are counted; 0",
        )


def shorter(answer):
    return str(answer.get("status") or answer.get("error"))[:160]
