#!/usr/bin/env bash
# What strangers can make a sidecar of 64 MiB and an operator of 256 MiB hold and do: each row starts the program in a control
# group of that size, attacks it, and asks meanwhile as an honest client. It must run as root, where control groups can be made.
#
#   run.sh                          every row, and a summary; exit 1 when a bar does not hold
#   ROWS="keys items" run.sh        these alone
#
# SIDECAR=BINARY and OPERATOR=BINARY attack those instead of the programs that the images have; SIDECAR_MIB and OPERATOR_MIB are
# other limits, such as to see what a program would take. What the processes said is in target/test-bounds/ROW.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need python3 "apt-get install python3"
if ! [ "${SIDECAR-}" ] || ! [ "${OPERATOR-}" ]; then folder=$("$ROOT/tests/cluster/images.sh" binaries operator sidecar); fi
mkdir -p "$TARGET/test-bounds"
ulimit -n "$(ulimit -Hn)"
# shellcheck disable=SC2086 # ROWS is a list
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/rows.py" --dir "$TARGET/test-bounds" \
	--sidecar "${SIDECAR:-${folder-}/toolweir-sidecar}" --operator "${OPERATOR:-${folder-}/toolweir-operator}" \
	--sidecar-mib "${SIDECAR_MIB:-64}" --operator-mib "${OPERATOR_MIB:-256}" ${ROWS-}
