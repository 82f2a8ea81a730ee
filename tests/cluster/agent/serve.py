"""tests/demo/just_facebook.py for other pods: it listens on every address, and what it was sent is a line of its stdout.

    serve.py [HOST]     HOST: `::` for IPv6 alone

SERVE_TLS: a folder with tls.crt and tls.key; it then speaks HTTPS.
"""

import os
import runpy
import sys
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import MCPServer

if folder := os.environ.get("SERVE_TLS"):
    plain = uvicorn.Config.__init__

    def with_tls(self, *words, **options):
        plain(self, *words, **options, ssl_certfile=f"{folder}/tls.crt", ssl_keyfile=f"{folder}/tls.key")

    uvicorn.Config.__init__ = with_tls

run, host = MCPServer.run, "".join(sys.argv[1:]) or "0.0.0.0"
MCPServer.run = lambda self, transport, **options: run(self, transport, **{**options, "host": host})
sys.argv[1:] = ["8000", "/dev/stdout"]
runpy.run_path(str(Path(__file__).with_name("just_facebook.py")), run_name="__main__")
