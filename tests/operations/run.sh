#!/usr/bin/env bash
# Runs real SDKs as clients and servers that use every operation of MCP: sampling, elicitation, roots, prompts, completion, resources and their
# subscriptions, logging, tasks. Every client takes the same steps (steps.py) directly, and through the sidecar with policies that allow all, or
# deny what is tested (expected.py).
#
#   run.sh                          runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="stdio tasks" run.sh       runs these scenarios only
#   run.sh --direct                 leaves out the sidecar. What fails then is not the fault of the sidecar.
#
# SIDECAR=BINARY: this program instead of building one. What each client said, and the logs, are in target/test-operations/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need node "apt-get install nodejs npm (Node 20 or later)"

mcp1=$(python_env clients mcp==1.30.0)/bin/python
mcp2=$(python_env demo mcp==2.3.0)/bin/python
tasks=$(python_env modern-tasks mcp==2.3.0 "fastmcp[tasks]==4.1.4")/bin/python
npm=$(node_env operations @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0 @modelcontextprotocol/server@2.4.0 \
	@modelcontextprotocol/node@2.1.2)
# Node looks for packages next to the script.
cp "$here"/*.mjs "$npm"
programs=(--mcp1 "$mcp1" --mcp2 "$mcp2" --tasks "$tasks" --npm "$npm" --dir "$TARGET/test-operations")
case ${1-} in
--direct) ;;
"") programs+=(--sidecar "${SIDECAR:-$(sidecar)}") ;;
*) fail "usage: $0 [--direct]" ;;
esac
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/scenarios.py" "${programs[@]}" -- ${ONLY-}
