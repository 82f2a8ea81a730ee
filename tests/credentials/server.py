"""MCP servers of the official Python SDK that each want a credential, in one process.

    server.py SETTINGS.json      settings: a list of {name, port, records, want, ...}

`want` says what a request must show:
    {"kind": "bearer", "token"}               the SDK's own check of bearer tokens
    {"kind": "header", "name", "value"}
    {"kind": "basic", "user", "password"}
    {"kind": "certificate"}                   TLS with a certificate of `client_ca`; also `certificate`, `key`
    {"kind": "jwt", "jwks", "issuer", "audience", "scope"}    the SDK's own check, with signature, issuer, audience and expiry by PyJWT;
                                              none of the tokens in `revoked`

    {"kind": "none"}                          takes all

`sse: true` serves the old HTTP+SSE transport, `stateful: true` sessions, `http2: true` HTTP/2 with TLS (by hypercorn).

Whatever a client sent is in RECORDS.jsonl, one line for each request with all headers, and in RECORDS.raw, all bytes of all connections
after TLS: trailers and what no parser keeps, too (not with HTTP/2).

`PUT /control` changes fields of `want` (`token`, `value` and the like may be lists), or has `refuse: N`: so many calls of a tool get a 401
though their credential is right.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import ssl
import sys
import time
from pathlib import Path

import hypercorn.asyncio
import jwt
import uvicorn
from hypercorn.config import Config
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="challenge-of-the-server", scope="mcp"'}


def fits(given, wanted):
    """Whether it is the text that is wanted, or one of those."""
    texts = wanted if isinstance(wanted, list) else [wanted]
    return any(secrets.compare_digest(given.encode("latin-1", "replace"), text.encode()) for text in texts)


class Tokens:
    """The SDK's TokenVerifier: a fixed token, or a JWT."""

    def __init__(self, want):
        self.want, self.keys = want, None

    async def verify_token(self, token):
        want = self.want
        if token in want.get("revoked", ()):
            return None
        if want["kind"] == "bearer":
            return AccessToken(token=token, client_id="sidecar", scopes=[]) if fits(token, want["token"]) else None
        # Another JWKS after a change; the client keeps the keys that it has fetched.
        if not self.keys or self.keys.uri != want["jwks"]:
            self.keys = jwt.PyJWKClient(want["jwks"], timeout=5)
        try:
            key = await asyncio.to_thread(self.keys.get_signing_key_from_jwt, token)
            options = {"require": ["exp", "iss", "aud"]}
            claims = jwt.decode(
                token, key, algorithms=["RS256"], issuer=want["issuer"], audience=want["audience"], options=options
            )
        except jwt.PyJWTError as error:
            print(f"refused: {type(error).__name__}: {error}", file=sys.stderr)
            return None
        audience = claims["aud"] if isinstance(claims["aud"], str) else want["audience"]
        scopes = claims.get("scope", "").split()
        return AccessToken(
            token=token, client_id=claims.get("azp", "-"), scopes=scopes, expires_at=claims["exp"], resource=audience
        )


class Shown(AuthenticationBackend):
    """Starlette's authentication, of a header or a user with a password."""

    def __init__(self, want):
        self.want = want

    async def authenticate(self, conn):
        want = self.want
        given = conn.headers.getlist(want["name"] if want["kind"] == "header" else "authorization")
        if len(given) != 1 or not (self.header(given[0]) if want["kind"] == "header" else self.basic(given[0])):
            raise AuthenticationError("the credential is missing or wrong")
        return AuthCredentials(["authenticated"]), SimpleUser("sidecar")

    def header(self, text):
        return fits(text, self.want["value"])

    def basic(self, text):
        scheme, _, encoded = text.partition(" ")
        try:
            user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return False
        return (
            scheme.lower() == "basic" and bool(colon) and fits(user, self.want["user"]) and fits(password, self.want["password"])
        )


def unauthorized(_, error):
    return JSONResponse({"error": str(error)}, 401, CHALLENGE)


class Recorder:
    """Outermost: writes down every request and what became of it, answers /control, and refuses calls where it was told to."""

    def __init__(self, app, settings, tokens):
        self.app, self.want, self.tokens = app, settings["want"], tokens
        self.refuse, self.file = 0, open(f"{settings['records']}.jsonl", "a", buffering=1)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/control":
            return await self.control(scope, receive, send)
        began, body, status = time.time(), bytearray(), 0
        messages = []
        # An event stream's request has an empty body, which comes at once.
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            body += messages[-1].get("body", b"")
            if messages[-1]["type"] != "http.request":
                return None

        async def again():
            return messages.pop(0) if messages else await receive()

        async def answer(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.write(scope, began, body, status)
            await send(message)

        if tool_of(body) and self.refuse:
            self.refuse -= 1
            return await JSONResponse({"error": "invalid_token"}, 401, CHALLENGE)(scope, again, answer)
        return await self.app(scope, again, answer)

    async def control(self, scope, receive, send):
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        told = json.loads(body)
        self.refuse = told.pop("refuse", self.refuse)
        self.want.update(told)
        await JSONResponse({"refuse": self.refuse})(scope, receive, send)

    def write(self, scope, began, body, status):
        line = {
            "time": began,
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "certificate": CERTIFICATES.get(tuple(scope["client"])),
            "http": scope["http_version"],
            "tool": tool_of(body),
            "body": body.decode("utf-8", "replace"),
            "status": status,
        }
        self.file.write(json.dumps(line) + "\n")


def tool_of(body):
    if b'"tools/call"' not in body:
        return None
    message = json.loads(body)
    return message["params"]["name"] if message.get("method") == "tools/call" else None


# The serial number of the certificate that a client showed, by its address.
CERTIFICATES = {}


def tapped(file):
    """uvicorn's protocol, with a copy of all that arrives."""

    class Tapped(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.kept = bytearray()
            if shown := transport.get_extra_info("peercert"):
                CERTIFICATES[tuple(self.client)] = shown["serialNumber"]

        def data_received(self, data):
            # Whole requests, so that no text is split between two connections.
            self.kept += data
            super().data_received(data)

        def connection_lost(self, error):
            self.keep()
            super().connection_lost(error)

        def on_response_complete(self):
            self.keep()
            super().on_response_complete()

        def keep(self):
            file.write(bytes(self.kept))
            self.kept.clear()

    return Tapped


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


def app_of(settings):
    want = settings["want"]
    tokens, auth = None, None
    if want["kind"] in ("bearer", "jwt"):
        tokens = Tokens(want)
        scopes = [want["scope"]] if want.get("scope") else None
        resource = want.get("audience", "")
        # Where the audience is this server's URL, the SDK checks it once more.
        auth = AuthSettings(
            issuer_url=want.get("issuer", "https://issuer.invalid"),
            resource_server_url=resource if resource.startswith("http") else f"http://127.0.0.1:{settings['port']}/mcp",
            validate_token_resource=resource.startswith("http"),
            required_scopes=scopes,
        )
    mcp = MCPServer(settings["name"], token_verifier=tokens, auth=auth, log_level="WARNING")

    @mcp.tool()
    async def send_message(account: str = "-") -> str:
        """Sends a message."""
        return f"sent to {account}"

    if settings.get("sse"):
        app = mcp.sse_app()
    else:
        app = mcp.streamable_http_app(json_response=not settings.get("stateful"), stateless_http=not settings.get("stateful"))
    if want["kind"] in ("header", "basic"):
        app.add_middleware(AuthenticationMiddleware, backend=Shown(want), on_error=unauthorized)
    return Recorder(app, settings, tokens)


def server_of(settings):
    """Serves it until this process ends."""
    want = settings["want"]
    if settings.get("http2"):
        config = Config()
        config.bind, config.certfile, config.keyfile = [f"127.0.0.1:{settings['port']}"], settings["certificate"], settings["key"]
        config.alpn_protocols, config.loglevel = ["h2"], "WARNING"
        if want["kind"] == "certificate":
            config.ca_certs, config.verify_mode = settings["client_ca"], ssl.CERT_REQUIRED
        open(f"{settings['records']}.raw", "ab").close()
        return hypercorn.asyncio.serve(app_of(settings), config, mode="asgi", shutdown_trigger=asyncio.Event().wait)
    tls = {}
    if settings.get("certificate"):
        tls = {"ssl_certfile": settings["certificate"], "ssl_keyfile": settings["key"]}
    if want["kind"] == "certificate":
        tls |= {"ssl_ca_certs": settings["client_ca"], "ssl_cert_reqs": ssl.CERT_REQUIRED}
    raw = open(f"{settings['records']}.raw", "ab", buffering=0)
    protocol = tapped(raw) if settings.get("raw", True) else "h11"
    config = uvicorn.Config(
        app_of(settings),
        host="127.0.0.1",
        port=settings["port"],
        http=protocol,
        log_level="warning",
        timeout_graceful_shutdown=1,
        **tls,
    )
    return Server(config).serve()


async def main():
    await asyncio.gather(*(server_of(settings) for settings in json.loads(Path(sys.argv[1]).read_text())))


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
asyncio.run(main())
