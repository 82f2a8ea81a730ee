"""What a scenario is made of: folders of keys and tokens, certificates, an issuer of tokens, MCP servers, the sidecar."""

import datetime
import http.client
import http.server
import ipaddress
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))
from processes import Broken, Sidecar, Stage, free_port, printed_summary, tail, wait_until, with_second_try  # noqa: E402, F401

TOOL = "send_message"
# What the agent shows of its own accord. No server may ever see it.
JUNK = "agents-own"


def listens(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


class Keys:
    """A folder of keys: as the kubelet writes a Secret (the keys lead to `..data`, which leads to a folder with a time in its name), or
    plain files."""

    def __init__(self, folder, kubelet=True):
        self.dir, self.kubelet, self.now = folder, kubelet, {}
        folder.mkdir(parents=True)
        self.number = 0

    def put(self, keys):
        """These keys alone, from now on."""
        keys = {name: text.encode() if isinstance(text, str) else text for name, text in keys.items()}
        if self.kubelet:
            self._swap(keys)
        else:
            for name, text in keys.items():
                (self.dir / name).write_bytes(text)
            for name in self.now.keys() - keys.keys():
                (self.dir / name).unlink()
        self.now = keys

    def set(self, name, text):
        """One key's text; without text, it disappears."""
        keys = {key: old for key, old in self.now.items() if key != name}
        self.put(keys if text is None else keys | {name: text})

    def _swap(self, keys):
        # As k8s.io/kubernetes/pkg/volume/util.AtomicWriter does it.
        self.number += 1
        stamp = datetime.datetime.now(datetime.UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
        fresh = self.dir / f"{stamp}{self.number:09d}"
        fresh.mkdir()
        for name, text in keys.items():
            (fresh / name).write_bytes(text)
            (fresh / name).chmod(0o644)
        data, temporary = self.dir / "..data", self.dir / "..data_tmp"
        old = self.dir / os.readlink(data) if data.is_symlink() else None
        temporary.symlink_to(fresh.name)
        temporary.rename(data)
        for name in keys:
            if not (self.dir / name).is_symlink():
                (self.dir / name).symlink_to(Path("..data") / name)
        for name in self.now.keys() - keys.keys():
            (self.dir / name).unlink()
        if old:
            shutil.rmtree(old)


class Authority:
    """An authority of certificates, with an intermediate one that signs those of clients."""

    def __init__(self, name="authority"):
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.name, self.key.public_key(), self.name, self.key, ca=True)
        self.between_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} between")])
        self.between_key = ec.generate_private_key(ec.SECP256R1())
        self.between = self._sign(self.between_name, self.between_key.public_key(), self.name, self.key, ca=True)

    def pem(self):
        return pem(self.certificate)

    def server(self):
        """A certificate of 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return pem(self._sign(name, key.public_key(), self.name, self.key, more=[names, usage])), pem(key)

    def mutual_tls(self, folder):
        """Writes a certificate of a server, its key, and the authority of clients, which is this one, to a folder: the settings of a
        server that wants mutual TLS."""
        paths = {"client_ca": folder / "ca.crt", "certificate": folder / "server.crt", "key": folder / "server.key"}
        for path, text in zip(paths.values(), (self.pem(), *self.server()), strict=True):
            path.write_text(text)
        return {setting: str(path) for setting, path in paths.items()}

    def client(self, name):
        """A certificate with the one of the intermediate authority after it, its key, and its serial number in hexadecimal."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        made = self._sign(subject, key.public_key(), self.between_name, self.between_key, more=[usage])
        number = f"{made.serial_number:X}"
        return pem(made) + pem(self.between), pem(key), number.zfill(len(number) + len(number) % 2)

    def _sign(self, subject, public, issuer, key, ca=False, more=()):
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
        made = made.not_valid_after(now + datetime.timedelta(hours=2))
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        for extension in more:
            made = made.add_extension(extension, critical=False)
        return made.sign(key, hashes.SHA256())


def pem(what):
    if isinstance(what, x509.Certificate):
        return what.public_bytes(serialization.Encoding.PEM).decode()
    form = serialization.PrivateFormat.PKCS8
    return what.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


class Issuer:
    """Issues tokens as an API server does for service accounts, and serves the keys by which they are verified."""

    def __init__(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        body = json.dumps({"keys": [public | {"kid": "pods", "use": "sig", "alg": "RS256"}]}).encode()

        class Jwks(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Jwks)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.jwks = f"{self.url}/openid/v1/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, audience, seconds=3600, account="agents:bench", **claims):
        namespace, _, name = account.partition(":")
        now = int(time.time())
        pod = {"namespace": namespace, "serviceaccount": {"name": name}, "pod": {"name": "bench-0"}}
        body = {"aud": [audience], "exp": now + seconds, "iat": now, "nbf": now, "iss": self.url, "jti": str(uuid.uuid4())}
        body |= {"sub": f"system:serviceaccount:{account}", "kubernetes.io": pod} | claims
        return jwt.encode(body, self.key, "RS256", {"kid": "pods"})

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Server:
    """An MCP server of server.py, and what it has received."""

    def __init__(self, settings):
        self.settings, self.name, self.port = settings, settings["name"], settings["port"]
        scheme = "https" if settings.get("certificate") else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}/{'sse' if settings.get('sse') else 'mcp'}"

    def requests(self):
        """All requests so far, as the server saw them."""
        file = Path(f"{self.settings['records']}.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def calls(self):
        return [request for request in self.requests() if request["tool"]]

    def delivered(self):
        return [request for request in self.calls() if request["status"] < 300]

    def raw(self):
        """All bytes that it received."""
        return Path(f"{self.settings['records']}.raw").read_bytes()

    def saw(self, text):
        """Whether this text reached it in any way."""
        return text.encode() in self.raw() or any(text in json.dumps(request) for request in self.requests())

    def control(self, **told):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("PUT", "/control", json.dumps(told))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise Broken(f"{self.name}: /control: {answer.status}")


def headers_of(request, name):
    """All values of a header in a recorded request."""
    return [value for header, value in request["headers"] if header == name.lower()]


def servers(stage, wants, label="servers", **common):
    """Starts MCP servers in one process; `wants` are {name: settings with `want`}."""
    listed = []
    for name, settings in wants.items():
        records = str(stage.dir / f"{name}.received")
        listed.append({"name": name, "port": free_port(), "records": records} | common | settings)
    file = stage.dir / f"{label}.json"
    file.write_text(json.dumps(listed, indent=2))
    process = stage.start(label, [sys.executable, HERE / "server.py", file])
    made = {settings["name"]: Server(settings) for settings in listed}

    def up(server):
        if process.poll() is not None:
            raise Broken(f"{label} ended: {tail(stage.dir / f'{label}.log')}")
        return listens(server.port)

    for server in made.values():
        wait_until(f"{server.name} listens", lambda server=server: up(server), 30)
    return made


def governed(name, url, credential, limit=30):
    """A server of a policy, with a limit of so many calls a minute."""
    tool = {"name": TOOL} | ({"limits": [{"max": limit, "window": "minute"}]} if limit else {})
    return {"name": name, "url": url, "tools": [tool]} | ({"credential": credential} if credential else {})


def policy(name, listed):
    metadata = {"name": name, "namespace": "bench"}
    spec = {"podSelector": {}, "servers": listed}
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": metadata, "spec": spec}


class Governor(Sidecar):
    """A sidecar with a folder of policies, of keys and of tokens."""

    def __init__(self, stage, name, policies, keys=None, tokens=None, flags=(), environment=None):
        self.stage, self.name = stage, name
        self.log, self.audit = stage.dir / f"{name}.log", stage.dir / f"{name}.audit"
        self.mcp_config = stage.dir / f"{name}.mcp.json"
        folder = stage.dir / f"{name}.policies"
        folder.mkdir()
        for document in policies:
            # JSON is YAML.
            (folder / f"{document['metadata']['name']}.yaml").write_text(json.dumps(document, indent=2) + "\n")
        self.port, self.metrics_port, self.admin_port = free_port(), free_port(), free_port()
        command = [stage.sidecar_binary, "run", "--policy", folder, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--metrics-listen", f"127.0.0.1:{self.metrics_port}", "--admin-listen", f"127.0.0.1:{self.admin_port}"]
        command += ["--mcp-config", self.mcp_config]
        command += ["--credentials-dir", keys.dir] if keys else []
        command += ["--audience-tokens-dir", tokens.dir] if tokens else []
        with open(self.audit, "ab") as lines:
            more = {"env": os.environ | environment} if environment else {}
            self.process = stage.start(name, [*command, *flags], stdout=lines, **more)
        wait_until(f"{name} is ready", self._ready)

    def ready(self):
        return self._get(self.metrics_port, "/readyz")[0]

    def metrics(self):
        return self._get(self.metrics_port, "/metrics")[1]
