"""What a hostile client of a captured pod tries on the sidecar itself: its bounds, and servers that are governed, called past their policies."""

import subprocess

from network import PORTS

NAMES = {"bank.test": ["10.99.0.7"]}
# Everything public passes, and a range of the cluster.
POLICY = """
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: edges}
spec:
  servers:
  - {name: tools, url: "http://tools.test:9000/mcp", tools: [{name: ok}]}
  - {name: bank, url: "http://bank.test:9000/mcp", tools: [{name: ok}]}
  - {name: secure, url: "https://203.0.113.20/mcp", tools: [{name: ok}]}
  egress:
    default: Allow
    allow: [{cidrs: [10.99.0.0/16], ports: [9000]}]
"""
CLIENT = r"""
import socket, ssl, time
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\4\0" + bytes(4)

def connect(host, port):
    made = socket.create_connection((host, port), 5)
    made.settimeout(4)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made

def exchange(made, *parts):
    got = b""
    for part in parts:
        try:
            made.sendall(part)
            got += made.recv(4000)
        except OSError as error:
            got += repr(error).encode()
    return got

def post(lead="", host="10.99.0.7:9000"):
    # No sign of MCP in the head, and none of JSON.
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "hidden"}}'
    return f"{lead}POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
"""


def said(world, code):
    command = world.container("unprivileged", world.python, "-c", CLIENT + code)
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    return ran.stdout.strip() or ran.stderr.strip()[-300:]


def counted(world, reason):
    ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{PORTS['metrics']}/metrics', timeout=3).read().decode())"
    lines = world.inside.sh(world.python, "-c", ask).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("toolweir_egress_connections_total") and f'reason="{reason}"' in line)


def scenario_edges(scenario, world):
    scenario.require(world.capture().returncode == 0, "the rules are written", "they are")
    world.sidecar(POLICY)

    for pieces in ("[PREFACE + SETTINGS]", "[PREFACE[:16], PREFACE[16:] + SETTINGS]"):
        got = said(
            world,
            f"""
made = [connect("203.0.113.20", 9000) for _ in range(40)]
for piece in {pieces}:
    for one in made:
        one.sendall(piece)
    time.sleep(0.5)
served = 0
for one in made:
    try:
        served += bool(one.recv(100))
    except OSError:
        pass
print(served)
""",
        )
        scenario.require(got.isdigit() and 0 < int(got) <= 16, f"40 connections over HTTP/2, {pieces}: {got} are served", "from 1 to 16")

    # The address of a declared server of the cluster, with and without an answer of DNS.
    call = 'print(exchange(connect("10.99.0.7", 9000), post()))'
    got = said(world, call)
    scenario.require("OUTSIDE" not in got and " 403 " in got, f"a declared server by its address: {got[:60]}", "403")
    (world.dir / "failing").write_text("bank.test")
    # The resolver's answers are good for a second.
    got = said(world, f"time.sleep(2)\n{call}")
    scenario.require("OUTSIDE" not in got and " 403 " in got, f"the same while DNS fails: {got[:60]}", "403")
    (world.dir / "failing").unlink()

    got = said(world, 'print(exchange(connect("203.0.113.66", 3128), b"CONNECT tools.test:9000 HTTP/1.1\\r\\n\\r\\n", post(" ", "tools.test:9000")))')
    scenario.require("200 OK" not in got and "200 Connection" in got, f"what is not quite HTTP to a declared server, by CONNECT: {got[-80:]}", "a reset")

    got = said(
        world,
        """
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
made = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x" * 12)
try:
    made.do_handshake()
except ssl.SSLWantReadError:
    pass
print(exchange(connect("203.0.113.20", 443), outgoing.read().replace(b"x" * 12, b"203.0.113.20"))[:30])
""",
    )
    scenario.require("ConnectionReset" in got, f"TLS to a declared server with its address as the server name: {got[:60]}", "a reset")

    before = counted(world, "malformed")
    said(world, 'print(exchange(connect("203.0.113.66", 3128), b"CONNECT a.test:80 HTTP/1.1\\r\\nX: " + b"a" * 20000))')
    scenario.require(counted(world, "malformed") == before + 1, "a CONNECT without an end is counted", "as malformed")
