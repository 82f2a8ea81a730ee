"""tests/demo/just_facebook.py for other pods: it listens on every address, and what it was sent is a line of its stdout."""

import runpy
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

run = MCPServer.run
MCPServer.run = lambda self, transport, **options: run(self, transport, **{**options, "host": "0.0.0.0"})
sys.argv[1:] = ["8000", "/dev/stdout"]
runpy.run_path(str(Path(__file__).with_name("just_facebook.py")), run_name="__main__")
