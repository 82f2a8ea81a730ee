"""HTTPS servers in one process: MCP at /mcp, a page at /page. `server.py PORT FOLDER [ADDRESS...]`, on every address if none is given.

FOLDER has
    certificates/NAME.pem    what the server NAME shows, and its key; `default.pem` for clients that name no server. For other names there is
                             no server. A file is read for each handshake, so that it may come later
    requests                 written here: a line of JSON for each request
    handshakes               a line with the name of each server that a client asked for
    tools                    what tests/demo/just_facebook.py was told to do
    without-sessions         if it is there, a call needs no session, and its answer is JSON
"""

import asyncio
import json
import runpy
import ssl
import sys
from pathlib import Path

import hypercorn.asyncio
from hypercorn.config import Config
from mcp.server.mcpserver import MCPServer

PORT, DIR, ADDRESSES = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or ["::"]
DEMO = Path(__file__).resolve().parent.parent / "demo/just_facebook.py"
REQUESTS, HANDSHAKES = (open(DIR / name, "a", buffering=1) for name in ("requests", "handshakes"))


def context_of(name):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(DIR / f"certificates/{name}.pem")
    made.set_alpn_protocols(["h2", "http/1.1"])
    return made


def choose(connection, name, _):
    """The server that a client names, as a host of many has it."""
    print(name, file=HANDSHAKES)
    try:
        connection.context = context_of(name or "default")
    except OSError:
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


class Settings(Config):
    ssl_enabled = True

    def create_ssl_context(self):
        made = context_of("default")
        made.sni_callback = choose
        return made


class Pages:
    """A page that says what was asked, and by whom it was answered."""

    def __init__(self, mcp):
        self.mcp = mcp

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.mcp(scope, receive, send)
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        line = {"host": host, "method": scope["method"], "path": scope["path"], "http": scope["http_version"]}
        print(json.dumps(line), file=REQUESTS)
        if scope["path"] == "/mcp":
            return await self.mcp(scope, receive, send)
        while (await receive()).get("more_body"):
            pass
        page = f"OUTSIDE {scope['method']} {scope['path']} {host}\n".encode()
        head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(page))]
        await send({"type": "http.response.start", "status": 200 if scope["path"] == "/page" else 404, "headers": head})
        await send({"type": "http.response.body", "body": page})


def serve(mcp, _, **_options):
    # Any Host: the names are the certificates' affair.
    stateless = (DIR / "without-sessions").exists()
    app = mcp.streamable_http_app(host="0.0.0.0", stateless_http=stateless, json_response=stateless)
    settings = Settings()
    settings.bind = [f"[{one}]:{PORT}" if ":" in one else f"{one}:{PORT}" for one in ADDRESSES]
    settings.loglevel = "WARNING"

    async def run():
        shutdown = asyncio.Event()
        print("ready", flush=True)
        await hypercorn.asyncio.serve(Pages(app), settings, mode="asgi", shutdown_trigger=shutdown.wait)

    asyncio.run(run())


MCPServer.run = serve
sys.argv[1:] = [PORT, str(DIR / "tools")]
runpy.run_path(str(DEMO), run_name="__main__")
