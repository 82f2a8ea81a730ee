"""tests/demo/just_facebook.py for other pods: it listens on every address, and what it was sent is a line of its stdout.

    serve.py [HOST]     HOST: `::` for IPv6 alone
"""

import runpy
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

run, host = MCPServer.run, "".join(sys.argv[1:]) or "0.0.0.0"
MCPServer.run = lambda self, transport, **options: run(self, transport, **{**options, "host": host})
sys.argv[1:] = ["8000", "/dev/stdout"]
runpy.run_path(str(Path(__file__).with_name("just_facebook.py")), run_name="__main__")
