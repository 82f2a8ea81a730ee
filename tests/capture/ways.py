"""Ways out of a captured pod: what arrived outside decides, not what the way says of itself."""

import json
import subprocess
import time
from pathlib import Path

from network import GATEWAY, OUTSIDE, POD, PORTS, inevitable, shown

HERE = Path(__file__).resolve().parent
ROWS = 40
BY_SETTINGS = [
    *("address_literal", "plain_udp", "link_local", "source_routing", "extension_headers", "loopback_by_device", "bound_to_device"),
    *("forged_udp_answer", "forged_tcp_answer", "forged_captured", "forged_to_sidecar", "forged_error", "forged_ping", "forged_dns"),
]
OPEN = ("answered", "taken", "deleted")
# Nothing leaves, and no name is allowed.
NOTHING = """
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: nothing}
spec: {egress: {default: Deny}}
"""


def source(name):
    return (HERE / name).read_text()


def tried(world, user, script, *rows, writable=False, **targets):
    """Runs ways as a user: each with the packets that arrived meanwhile."""
    began = time.time()
    command = world.container(user, world.python, "-c", source(script), world.targets(**targets), *rows, writable=writable)
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    if ran.returncode:
        raise RuntimeError(f"{script} as {user}: {ran.stderr[-2000:]}")
    packets = [one for one in world.packets(began, time.time()) if not inevitable(one, world)]
    for line in lines:
        line["arrived"] = [one for one in packets if line["began"] <= one["time"] <= line["ended"]]
    between = [one for one in packets if not any(one in line["arrived"] for line in lines)]
    return lines, between


def is_open(line):
    return bool(line["arrived"]) or line["result"] in OPEN


def ended_connections(world):
    """Connections that the sidecar's user had, from known ports: one that it ended, and one whose process was killed."""
    code = """
import json, os, socket, sys
for family, host, port in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", port)); s.connect((host, 4435)); s.sendall(b"hello"); assert b"OUTSIDE" in s.recv(99)
"""
    given = json.dumps([(4, OUTSIDE[4], 40404), (6, OUTSIDE[6], 40406)])
    ran = subprocess.run(list(map(str, world.container("sidecar", world.python, "-c", code, given))), capture_output=True, text=True)
    time.sleep(0.2)
    return ran, {"4": [40404, OUTSIDE[4], 4435], "6": [40406, OUTSIDE[6], 4435]}


def scenario_ways(scenario, world):
    """Every way out, without rules and with them, as both users."""
    free, _ = tried(world, "unprivileged", "ways_out.py")
    written = world.capture()
    if not scenario.require(written.returncode == 0, f"capture: {written.stderr.strip()[-200:] or 'written'}", "exit code 0"):
        return
    sidecar = world.sidecar(NOTHING)
    ran, reuse = ended_connections(world)
    scenario.require(ran.returncode == 0, f"the sidecar's user connects: {ran.stderr[-300:] or 'yes, in both families'}", "it may")
    found = {user: tried(world, user, "ways_out.py", reuse=reuse) for user in ("unprivileged", "root")}
    table = found.copy()
    # As with `procMount: Unmasked`: the settings are changed, and then the ways are tried again that could profit.
    changed, _ = tried(world, "root", "ways_out.py", "kernel_settings", writable=True)
    scenario.require(changed[0]["result"] == "taken", f"root changes the kernel's settings where it may: {changed[0]['detail']}", "it may")
    found["root, settings changed"] = tried(world, "root", "ways_out.py", *BY_SETTINGS)
    without = {(line["row"], line["family"]): line for line in free}
    print(f"\n  {'way':<30} family  {'without rules':<16} {'   '.join(table)}")
    for row in zip(*(lines for lines, _ in table.values())):
        before = without[(row[0]["row"], row[0]["family"])]
        said = "".join(f"{'OPEN' if is_open(one) else one['result']:<15}" for one in row)
        print(f"  {row[0]['row']:<30} {row[0]['family']:<7} {'open' if is_open(before) else before['result']:<16} {said}")
        if missing := next((one["detail"] for one in row if one["result"] == "untried"), None):
            print(f"      {missing[:150]}")
    print(flush=True)
    for user, (lines, between) in found.items():
        passed = [line for line in lines if is_open(line)]
        for line in passed:
            print(f"  OPEN {user}: {line['row']} {line['family']}: {line['result']} {line['detail'][:200]}")
            for packet in line["arrived"][:6]:
                print(f"       {shown(packet)}")
        ran = [line for line in lines if line["result"] != "untried"]
        untried = sorted({line["row"] for line in lines if line["result"] == "untried"}) or ["none"]
        scenario.require(
            not passed and not between and len(ran) >= (ROWS if user in table else len(BY_SETTINGS)),
            f"{user}: {len(ran)} rows tried, {len(passed)} open, {len(between)} packets besides {[shown(one) for one in between[:3]]}; "
            f"not to be tried on this kernel: {', '.join(untried)}",
            f"at least {ROWS if user in table else len(BY_SETTINGS)}, 0, 0",
        )
    effective = sum(is_open(line) for line in free)
    scenario.require(effective >= 30, f"without rules {effective} of the {len(free)} rows are open: they do try", "at least 30")
    world.stop(sidecar)


def scenario_older(scenario, world):
    """A connection and datagrams from before the rules end with them."""
    command = world.container("unprivileged", world.python, "-c", source("ways_out.py"))
    pods = {}
    for family in (4, 6):
        given = [*command, world.targets(families=[family]), "older_connection"]
        pods[family] = world.popen(f"older-{family}", given, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        ready = json.loads(pods[family].stdout.readline())
        scenario.require(ready["first"][0] == "answered", f"IPv{family}, before the rules: {ready['first'][0]}", "answered")
    scenario.require(world.capture().returncode == 0, "the rules are written", "they are")
    for family, process in pods.items():
        began = time.time()
        process.stdin.write("go on\n")
        process.stdin.flush()
        line = json.loads(process.stdout.readline())
        arrived = [one for one in world.packets(began, time.time()) if not inevitable(one, world)]
        scenario.require(
            not arrived and line["result"] not in OPEN,
            f"IPv{family}, after the rules: {line['detail'] or line['result']}; arrived {[shown(one) for one in arrived]}",
            "nothing arrives",
        )


def scenario_impostor(scenario, world):
    """Somebody else on the sidecar's ports, while it is down, is heard by nobody: neither in the pod nor outside."""
    scenario.require(world.capture().returncode == 0, "the rules are written", "they are")
    for family in (4, 6):
        name = f"impostor-{family}"
        command = world.container("unprivileged", world.python, "-c", source("ways_out.py"))
        process = world.popen(name, [*command, world.targets(families=[family]), "instead_of_sidecar"], stdout=subprocess.PIPE)
        if "ready" not in process.stdout.readline():
            scenario.require(False, f"IPv{family}: the impostor does not listen", "it does")
            continue
        ask = """
import json, socket, sys, threading
heard = []
def call(host, port):
    try:
        s = socket.create_connection((host, port), 2)
        s.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
        got = s.recv(99)
        if got: heard.append([host, port, repr(got)])
    except OSError: pass
# More callers than the queue holds, so that the kernel answers with cookies.
threads = [threading.Thread(target=call, args=one) for one in json.loads(sys.argv[1]) for _ in range(12)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(heard))
"""
        loopback = "127.0.0.1" if family == 4 else "::1"
        inside = json.dumps([(loopback, PORTS["proxy"]), (loopback, PORTS["admin"]), (POD[family], PORTS["metrics"]), (OUTSIDE[family], 80)])
        outside = json.dumps([(POD[family], PORTS["metrics"])])
        callers = [
            world.popen("callers", [*map(str, world.container("root", world.python, "-c", ask, inside))], stdout=subprocess.PIPE),
            world.popen("callers", [*world.outside.enter, world.python, "-c", ask, outside], stdout=subprocess.PIPE),
        ]
        heard = [json.loads(one.communicate(timeout=30)[0]) for one in callers]
        line = json.loads(process.stdout.readline())
        scenario.require(heard == [[], []], f"IPv{family}: {line['detail']} by the impostor; heard inside {heard[0][:2]}, outside {heard[1][:2]}", "nobody hears it")


def scenario_works(scenario, world):
    """What must still work: callers, DNS, loopback between containers; the sidecar dead and hung; the rules written anew."""
    scenario.require(world.capture().returncode == 0, "the rules are written", "they are")
    serve = """
import socket, socketserver, threading, json, sys, time
class T(socketserver.BaseRequestHandler):
    def handle(self):
        while got := self.request.recv(99): self.request.sendall(b"POD " + got)
class S(socketserver.ThreadingTCPServer): address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
threading.Thread(target=S(("::", 8080), T).serve_forever, daemon=True).start()
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(("::", 8080))
print("ready", flush=True)
while True:
    got, a = u.recvfrom(99); u.sendto(b"POD " + got, a)
"""
    server = world.popen("server", world.container("unprivileged", world.python, "-c", serve), stdout=subprocess.PIPE)
    server.stdout.readline()
    ask = """
import json, socket, struct, sys, time
found = {}
def attempt(name, f):
    began = time.time()
    try: found[name] = [f(), round(time.time() - began, 3)]
    except OSError as e: found[name] = [type(e).__name__, round(time.time() - began, 3)]
def tcp(host, port, say=b"\\1", wait=2):
    s = socket.create_connection((host, port), wait); s.sendall(say); return s.recv(99).decode("latin-1")
def udp(host, port, say=b"x", wait=2):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(wait)
    s.connect((host, port)); s.send(say); return s.recv(99).decode("latin-1")
def ping(host):
    six = ":" in host
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1); s.settimeout(2)
    body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1)
    total = sum(struct.unpack("!4H", body)); total = (total & 0xffff) + (total >> 16)
    s.sendto(body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:], (host, 0)); return "echo" if s.recv(99) else ""
def dns(host, over):
    q = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\\x07allowed\\x04test\\0" + struct.pack("!HH", 1, 1)
    got = udp(host, 53, q) if over == "udp" else tcp(host, 53, struct.pack("!H", len(q)) + q)[2:]
    return "answer" if got[7] == "\\x01" else repr(got)
for name, words in json.loads(sys.argv[1]).items():
    attempt(name, lambda: globals()[words[0]](*words[1:]))
print(json.dumps(found))
"""

    def asked(where, what):
        ran = subprocess.run(list(map(str, [*where, world.python, "-c", ask, json.dumps(what)])), capture_output=True, text=True, timeout=60)
        return json.loads(ran.stdout) if ran.returncode == 0 else {"failed": [ran.stderr[-500:], 0]}

    callers = {}
    for family, host in POD.items():
        callers |= {f"{kind} {family}": [kind, host, 8080] for kind in ("tcp", "udp")}
        callers |= {f"closed {kind} {family}": [kind, host, 8081] for kind in ("tcp", "udp")} | {f"ping {family}": ["ping", host]}
    found = asked(world.outside.enter, callers)
    good = all(
        text.startswith("POD") if name[0] in "tu" else text == "ConnectionRefusedError" and took < 0.5 if name[0] == "c" else text == "echo"
        for name, (text, took) in found.items()
    )
    scenario.require(good and len(found) == 10, f"callers from outside: {found}", "answered; refused at once at closed ports; echoes")

    local = {f"{kind} {host}": [kind, host, 8080] for kind in ("tcp", "udp") for host in ("127.0.0.1", "::1", *POD.values())}
    found = asked(world.container("root"), local)
    scenario.require(all(text.startswith("POD") for text, _ in found.values()) and len(found) == 8, f"between containers: {sorted(found)}", "all answered")

    resolvers = {f"{over} {host}": ["dns", host, over] for over in ("udp", "tcp") for host in (*GATEWAY.values(), "169.254.20.10")}
    found = asked(world.container("unprivileged"), resolvers)
    scenario.require(all(text == "answer" for text, _ in found.values()) and len(found) == 6, f"DNS: {found}", "answers, from a node-local resolver too")

    away = {f"{family}": ["tcp", OUTSIDE[family], 443] for family in (4, 6)}
    dead = asked(world.container("unprivileged"), away)
    scenario.require(all(text == "ConnectionRefusedError" for text, _ in dead.values()), f"the sidecar is dead: {dead}", "refused")
    scenario.in_time(all(took < 0.2 for _, took in dead.values()), f"the sidecar is dead: {dead}", "within 0.2 s")
    sidecar = world.sidecar(NOTHING)
    denied = asked(world.container("unprivileged"), away)
    scenario.require(all(text in ("ConnectionResetError", "") for text, _ in denied.values()), f"the sidecar denies: {denied}", "reset")
    scenario.in_time(all(took < 0.5 for _, took in denied.values()), f"the sidecar denies: {denied}", "within 0.5 s")
    scrape = subprocess.run([*world.outside.enter, "curl", "-s", f"http://{POD[4]}:{PORTS['metrics']}/metrics"], capture_output=True, text=True)
    counted = [line for line in scrape.stdout.splitlines() if line.startswith("toolweir_egress_connections_total") and not line.endswith(" 0")]
    scenario.require(len(counted) == 1 and counted[0].endswith(" 2"), f"scraped from outside: {counted}", "2 denied connections")
    pid = world.inner(sidecar)
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
    began = time.time()
    hung = asked(world.container("unprivileged"), away)
    arrived = [one for one in world.packets(began, time.time()) if not inevitable(one, world)]
    subprocess.run(["kill", "-CONT", str(pid)], check=True)
    scenario.require(
        all(text == "TimeoutError" and took > 1.9 for text, took in hung.values()) and not arrived,
        f"the sidecar hangs: {hung}; arrived {len(arrived)}",
        "accepted, and waits; 0",
    )
    lives_on(scenario, world)
    world.stop(sidecar)


def lives_on(scenario, world):
    """Connections of callers and of the sidecar go on when the rules are written anew."""
    talk = """
import json, socket, sys
s = socket.create_connection(tuple(json.loads(sys.argv[1])), 3)
for line in sys.stdin:
    s.sendall(b"again"); print(s.recv(99), flush=True)
"""
    ways = {
        "caller": [*world.outside.enter, world.python, "-c", talk, json.dumps([POD[4], 8080])],
        "caller by IPv6": [*world.outside.enter, world.python, "-c", talk, json.dumps([POD[6], 8080])],
        "sidecar": world.container("sidecar", world.python, "-c", talk, json.dumps([OUTSIDE[4], 7000])),
        "sidecar by IPv6": world.container("sidecar", world.python, "-c", talk, json.dumps([OUTSIDE[6], 7000])),
    }
    running = {name: world.popen("talk", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for name, command in ways.items()}

    def answers():
        found = {}
        for name, process in running.items():
            process.stdin.write("\n")
            process.stdin.flush()
            found[name] = process.stdout.readline().strip()
        return found

    before = answers()
    again = world.capture()
    after = answers()
    scenario.require(
        again.returncode == 0 and all(before.values()) and before == after, f"the rules written anew: {after} {again.stderr[-200:]}", f"as before: {before}"
    )
