#!/usr/bin/env bash
# Tests capture in network namespaces of this machine: the rules that `toolweir-sidecar capture` writes, every way out that a pod could
# try, and what must still work. What arrives at a recorder outside the pod decides. Needs root.
#
#   run.sh                        runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="rules ways" run.sh      runs these scenarios only
#
# SIDECAR=BINARY: the sidecar. The logs of the processes are in target/test-capture/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need_namespaces
need python3 "apt-get install python3"
# Containers run as other users, to whom a Python below a home folder is closed.
python=$(PATH=/usr/bin:/usr/local/bin:$PATH command -v python3)
binary=${SIDECAR:-$(sidecar)}
mkdir -p "$TARGET/test-capture"
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$here/scenarios.py" --sidecar "$binary" --python "$python" --dir "$TARGET/test-capture" ${ONLY-}
