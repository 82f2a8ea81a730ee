#!/usr/bin/env bash
# The end-to-end suite on a real cluster: every row of the table is measured and held against its bar.
#
#   e2e.sh            all rows, and a summary; exit 1 when a bar does not hold
#   e2e.sh ROW...     these alone
#   e2e.sh --list     their names
#
# With KUBECONFIG it uses that cluster (and IMAGE_LOAD to get images into it); otherwise it starts the node of node.sh and stops it
# in the end. KEEP=1 leaves what was started. How long the long rows take: see tests/cluster/e2e/settings.py. Results are in
# target/e2e; so is, of each row that fails, what the cluster said.
. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/cluster/cluster.sh"
export PYTHONDONTWRITEBYTECODE=1 E2E_OUT=$TARGET/e2e E2E_ROOT=$ROOT CACHE TARGET

need python3 "apt-get install python3 python3-venv"
python=$(python_env e2e h2==4.4.1)/bin/python
suite=("$python" "$CLUSTER/e2e")
if [ "${1-}" = --list ]; then exec "${suite[@]}" --list; fi
"${suite[@]}" --check "$@"

finish() {
	local code=$?
	trap - EXIT
	stop_all
	cluster_down || code=1
	exit "$code"
}
trap finish EXIT

need openssl "apt-get install openssl"
cluster_up
# Where kubectl finds its plugin, kubectl-toolweir.
export PATH=$TARGET/images:$PATH
# A node that goes down with the suite needs no cleaning, and what is to be kept none either.
if [ "$NODE_STARTED" ] || [ "${KEEP-}" = 1 ]; then export E2E_CLEAN=0; fi
"${suite[@]}" "$@"
