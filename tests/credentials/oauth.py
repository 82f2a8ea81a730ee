"""OAuth servers, and what stands in front of them: it writes down each request for a token, and can be slow, hang or fail."""

import http.client
import http.server
import json
import os
import threading
import time
import urllib.parse
from pathlib import Path

from agent import request
from world import HERE, Broken, free_port, listens, tail, wait_until


class Keycloak:
    """Keycloak with one realm and one client, whose tokens are for `audience` where it asks for the scope `mcp`."""

    REALM = "weir"

    def __init__(self, stage, home, audience, id, secret):
        self.stage, self.audience, self.id, self.secret = stage, audience, id, secret
        self.port = free_port()
        self.dir = stage.dir / "keycloak"
        # Its folder is shared by all runs; what it writes is not.
        self.dir.mkdir()
        for part in ("bin", "conf", "lib", "providers", "themes", "version.txt"):
            (self.dir / part).symlink_to(Path(home) / part)
        (self.dir / "data/import").mkdir(parents=True)
        (self.dir / "data/import/realm.json").write_text(json.dumps(self._realm()))
        command = [
            "java",
            *self._java(),
            "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
            "start",
            "--optimized",
            "--import-realm",
        ]
        command += [
            "--http-enabled=true",
            f"--hostname=http://127.0.0.1:{self.port}",
            "--http-host=127.0.0.1",
            f"--http-port={self.port}",
        ]
        command += ["--cache=local", "--log-level=warn"]
        self.process = stage.start("keycloak", command)

    def _java(self):
        lib = self.dir / "lib"
        memory = ["-Xms64m", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-Djava.util.logging.manager=org.jboss.logmanager.LogManager"]
        home = [f"-Dkc.home.dir={self.dir}", f"-Djboss.server.config.dir={self.dir}/conf"]
        return [*memory, *home, "-Dquarkus-log-max-startup-records=10000", "-cp", lib / "quarkus-run.jar"]

    def _realm(self):
        mapper = {"name": "audience", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper"}
        mapper["config"] = {"access.token.claim": "true", "included.custom.audience": self.audience}
        scope = {
            "name": "mcp",
            "protocol": "openid-connect",
            "attributes": {"include.in.token.scope": "true"},
            "protocolMappers": [mapper],
        }
        client = {"clientId": self.id, "secret": self.secret, "publicClient": False, "serviceAccountsEnabled": True}
        client |= {"standardFlowEnabled": False, "optionalClientScopes": ["mcp"], "attributes": {"access.token.lifespan": "300"}}
        return {"realm": self.REALM, "enabled": True, "sslRequired": "none", "clientScopes": [scope], "clients": [client]}

    def wait(self):
        def up():
            if self.process.poll() is not None:
                raise Broken(f"Keycloak ended: {tail(self.stage.dir / 'keycloak.log')}")
            return request("GET", f"{self.issuer}/.well-known/openid-configuration", timeout=5).status == 200

        wait_until("Keycloak serves its realm", up, 120, 0.2)
        return self

    @property
    def issuer(self):
        return f"http://127.0.0.1:{self.port}/realms/{self.REALM}"

    @property
    def token_url(self):
        return f"{self.issuer}/protocol/openid-connect/token"

    @property
    def jwks(self):
        return f"{self.issuer}/protocol/openid-connect/certs"


def wait_for(stage, process, name, what, port):
    """Waits until a process of this name listens."""

    def up():
        if process.poll() is not None:
            raise Broken(f"{what} ended: {tail(stage.dir / f'{name}.log')}")
        return listens(port)

    wait_until(f"{what} listens", up, 30)


class Oidc:
    """oidc-provider of npm: client credentials for a resource."""

    def __init__(self, stage, packages, resource, clients, seconds=300, name="oidc"):
        self.port = free_port()
        settings = stage.dir / f"{name}.json"
        listed = [{"id": id, "secret": secret} for id, secret in clients.items()]
        settings.write_text(json.dumps({"clients": listed, "resource": resource, "scope": "mcp other", "seconds": seconds}))
        environment = os.environ | {"NODE_PACKAGES": str(packages)}
        process = stage.start(name, ["node", HERE / "oidc.mjs", self.port, settings], env=environment)
        wait_for(stage, process, name, "oidc-provider", self.port)
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.token_url, self.jwks = f"{self.issuer}/token", f"{self.issuer}/jwks"


class Exchange:
    """The token service of exchange/, an RFC 8693 that takes the tokens of an issuer for `subject_audience`."""

    def __init__(self, stage, binary, issuer, subject_audience, clients, audiences, scopes, seconds=300):
        self.port = free_port()
        settings = {"Clients": clients, "Audiences": audiences, "Scopes": scopes, "Seconds": seconds}
        settings |= {"SubjectIssuer": issuer.url, "SubjectAudience": subject_audience, "SubjectJwks": issuer.jwks}
        file = stage.dir / "exchange.json"
        file.write_text(json.dumps(settings))
        process = stage.start("exchange", [binary, self.port, file])
        wait_for(stage, process, "exchange", "the token service", self.port)
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.token_url, self.jwks = f"{self.issuer}/oauth/token", f"{self.issuer}/keys"


class Front:
    """Passes requests for tokens on, one by one as they come, and writes them down. `mode`: `pass`, `hang`, an HTTP status, or a text
    that is the answer. `delay`: how long an answer takes at least."""

    def __init__(self, token_url, delay=0.0, trap=False):
        self.target = urllib.parse.urlsplit(token_url)
        self.mode, self.delay, self.lock = "pass", delay, threading.Lock()
        # Of each request: when it came and was answered, its headers and form, the status and the answer.
        self.log, self.over = [], threading.Event()
        # Where a redirect leads.
        self.trap = Front(token_url, trap=True) if not trap else None
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                front.answer(self)

            def log_message(self, *_):
                pass

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_):
                pass

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}{self.target.path}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler):
        entry = {"began": time.monotonic(), "headers": dict(handler.headers.items()), "passed": self.mode == "pass"}
        with self.lock:
            self.log.append(entry)
        text = handler.rfile.read(int(handler.headers["Content-Length"]))
        entry["form"] = dict(urllib.parse.parse_qsl(text.decode()))
        mode = self.mode
        if mode == "hang":
            # Until it is over, or the client hangs up.
            self.hold(handler.connection)
            entry["ended"], handler.close_connection = time.monotonic(), True
            return
        status, kind, body = self._forward(handler, text) if mode == "pass" else (mode, "application/json", b"{}")
        if isinstance(mode, str) and mode != "pass":
            status, body = 200, mode.encode()
        if (rest := entry["began"] + self.delay - time.monotonic()) > 0:
            time.sleep(rest)
        entry |= {"ended": time.monotonic(), "status": status, "body": body.decode("utf-8", "replace")}
        handler.send_response(status)
        if status == 307:
            handler.send_header("Location", self.trap.url)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def hold(self, connection):
        connection.settimeout(0.1)
        while not self.over.is_set():
            try:
                if not connection.recv(1024):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def _forward(self, handler, text):
        headers = {
            name: value for name, value in handler.headers.items() if name.lower() not in ("connection", "content-length", "host")
        }
        connection = http.client.HTTPConnection(self.target.netloc, timeout=20)
        try:
            connection.request("POST", self.target.path, text, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", "application/json"), answer.read()
        except OSError as error:
            return 502, "text/plain", str(error).encode()
        finally:
            connection.close()

    def tokens(self):
        """All tokens that were given."""
        return [json.loads(entry["body"])["access_token"] for entry in self.log if entry["passed"] and entry.get("status") == 200]

    def most_at_once(self):
        """How many requests were in progress at the same time, at most."""
        ends = [(entry["began"], 1) for entry in self.log] + [(entry.get("ended", float("inf")), -1) for entry in self.log]
        most = now = 0
        for _, change in sorted(ends):
            now += change
            most = max(most, now)
        return most

    def close(self):
        if self.trap:
            self.trap.close()
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
