#!/usr/bin/env bash
# Shows what changed between two releases of real servers, and holds it against tests/pins/golden.
#
#   releases.sh                       exit code 1 if something is not as it was agreed
#   UPDATE_GOLDEN=1 releases.sh       writes tests/pins/golden/*.drift.txt anew, if a person agrees
#
# TOOLWEIR=BINARY: this program instead of building it.

. "$(dirname "$0")/../lib.sh"
need node "apt-get install nodejs npm (Node 20 or later)"
here=$(cd "$(dirname "$0")" && pwd)

old=$(node_env servers-before @modelcontextprotocol/server-filesystem@2025.12.18 @modelcontextprotocol/server-everything@2026.1.14)
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)
servers=$(node_env servers @modelcontextprotocol/server-filesystem@2026.8.31 @modelcontextprotocol/server-memory@2026.8.31)
toolweir=${TOOLWEIR:-$(toolweir)}
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/releases.py" --toolweir "$toolweir" --dir "$TARGET/test-pins/releases" --old "$old/node_modules/.bin" \
	--new "$everything/node_modules/.bin" "$servers/node_modules/.bin"
