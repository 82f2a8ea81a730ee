#!/usr/bin/env bash
# Goes the way of docs/tools.md with real MCP servers: reads their tools, suggests a policy, and lets a client of the official SDK call them
# through the sidecar with that policy.
#
#   run.sh                            all servers; exit code 1 if a requirement is not met
#   ONLY="git fetch" run.sh           these servers only
#   UPDATE_GOLDEN=1 run.sh            writes the tables and policies in tests/tools/golden anew
#
# SIDECAR=BINARY, TOOLWEIR=BINARY: these programs instead of building them. The logs of the processes are in target/test-tools/SERVER.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need node "apt-get install nodejs npm (Node 20 or later)"
need git "apt-get install git"

python=$(python_env tools mcp==2.3.0 pyyaml==6.0.4)/bin/python
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)
npm=$(node_env servers @modelcontextprotocol/server-filesystem@2026.8.31 @modelcontextprotocol/server-memory@2026.8.31)
pypi=$(python_env servers mcp-server-git==2026.10.19 mcp-server-fetch==2026.10.24)
binary=${SIDECAR:-$(sidecar)}
toolweir=${TOOLWEIR:-$(toolweir)}
# Both find their servers by name, as a user who types `toolweir tools -- mcp-server-memory` does.
export PATH=$everything/node_modules/.bin:$npm/node_modules/.bin:$pypi/bin:$PATH
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$here/scenarios.py" --sidecar "$binary" --toolweir "$toolweir" --dir "$TARGET/test-tools" ${ONLY-}
