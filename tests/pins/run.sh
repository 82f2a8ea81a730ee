#!/usr/bin/env bash
# Tests pins and classes with clients of the official SDK, through the sidecar, at a server that changes one part of a tool at a time: over
# Streamable HTTP with JSON and with events, HTTP+SSE and stdio. Then what changed between releases of real servers (releases.sh).
#
#   run.sh                            runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="stdio classes" run.sh       runs these scenarios only
#   UPDATE_GOLDEN=1 run.sh            writes the tables in tests/pins/golden anew
#
# SIDECAR=BINARY, TOOLWEIR=BINARY: these programs instead of building them. The logs of the processes are in target/test-pins/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)

python=$(python_env tools mcp==2.3.0 pyyaml==6.0.4)/bin/python
binary=${SIDECAR:-$(sidecar)}
toolweir=${TOOLWEIR:-$(toolweir)}
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 "$python" "$here/scenarios.py" --sidecar "$binary" --toolweir "$toolweir" --dir "$TARGET/test-pins" -- ${ONLY-}
[ "${ONLY-}" ] || TOOLWEIR=$toolweir exec "$here/releases.sh"
