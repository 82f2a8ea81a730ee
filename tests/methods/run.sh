#!/usr/bin/env bash
# Sends every request and notification of MCP, of 2024-11-05 to 2026-07-28 and in both directions, through the sidecar: over
# HTTP/1.1, HTTP/2, HTTP+SSE and stdio. Allowed, it passes byte for byte; denied, it does not reach the other side, and its sender
# is told. The methods are those that the SDKs know: a new one fails until tests/methods/table.py has a row for it.
#
#   run.sh                            runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="table stdio" run.sh         runs these scenarios only
#
# SIDECAR=BINARY: this program instead of building one; TOOLS_ALONE=1: it is one that decides calls of tools alone. The logs of the
# processes are in target/test-methods/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need node "apt-get install nodejs npm (Node 20 or later)"

python=$(python_env credentials mcp==2.3.0 h2==4.4.1 hypercorn==0.18.0)/bin/python
npm=$(node_env methods @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0 @modelcontextprotocol/server@2.4.0)
# Node looks for packages next to the script.
cp "$here/typescript.mjs" "$npm"
binary=${SIDECAR:-$(sidecar)}
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$here/scenarios.py" --sidecar "$binary" --npm "$npm" --dir "$TARGET/test-methods" \
	${TOOLS_ALONE:+--tools-alone} -- ${ONLY-}
