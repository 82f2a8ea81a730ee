#!/usr/bin/env bash
# Attacks a sidecar with 64 MiB of memory and an operator with 256 MiB. Each scenario starts the program in a control group of that
# size, attacks it, and measures how an honest client fares meanwhile. Needs root and permission to create control groups.
#
#   run.sh                          runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="keys items" run.sh        runs these scenarios only
#
# SIDECAR=BINARY and OPERATOR=BINARY: programs to attack instead of those in the images. SIDECAR_MIB and OPERATOR_MIB: other memory
# limits, for example to see how much a program would take. The logs of the processes are in target/test-bounds/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need python3 "apt-get install python3"
if ! [ "${SIDECAR-}" ] || ! [ "${OPERATOR-}" ]; then folder=$("$ROOT/tests/cluster/images.sh" binaries operator sidecar); fi
mkdir -p "$TARGET/test-bounds"
ulimit -n "$(ulimit -Hn)"
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/scenarios.py" --dir "$TARGET/test-bounds" \
	--sidecar "${SIDECAR:-${folder-}/toolweir-sidecar}" --operator "${OPERATOR:-${folder-}/toolweir-operator}" \
	--sidecar-mib "${SIDECAR_MIB:-64}" --operator-mib "${OPERATOR_MIB:-256}" ${ONLY-}
