#!/usr/bin/env bash
# Tests approvals: agents with SDKs through the sidecar, over HTTP and stdio, and a person who decides with `toolweir-sidecar approvals`. What the
# MCP server got, its own log says. Needs root, for file systems that are full and for users who may not decide.
#
#   run.sh                        runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="clients once" run.sh    runs these scenarios only
#   SEED=1 ONLY=once run.sh       repeats a run of `once`, which prints its seed
#
# SIDECAR=BINARY, BENCH=BINARY: these programs instead of building them. The logs of the processes are in target/test-approvals/SCENARIO.

. "$(dirname "$0")/../bench/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need node "apt-get install nodejs npm (Node 20 or later)"
need unshare "apt-get install util-linux"
need setpriv "apt-get install util-linux"
need nsenter "apt-get install util-linux"
[ "$(id -u)" = 0 ] || fail "needs root, to mount file systems and to be several users"

mcp1=$(python_env clients mcp==1.30.0)/bin/python
mcp2=$(python_env demo mcp==2.3.0)/bin/python
npm=$(node_env clients @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0)
# Node looks for packages next to the script.
cp "$here/agent.mjs" "$npm"
binary=${SIDECAR:-$(sidecar)}
bench=$(bench)
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$mcp2" "$here/scenarios.py" --sidecar "$binary" --bench "$bench" --mcp1 "$mcp1" --mcp2 "$mcp2" --npm "$npm" \
	--dir "$TARGET/test-approvals" -- ${ONLY-}
