#!/usr/bin/env bash
# The end-to-end tests on a real cluster.
#
#   e2e.sh                 runs all scenarios and prints a summary; exit code 1 if one of them fails
#   e2e.sh SCENARIO...     runs these scenarios only
#   e2e.sh --list          lists the scenarios
#
# If KUBECONFIG is set, the tests use that cluster, and IMAGE_LOAD to load images into it; scenario `nodes` needs two nodes there, and
# something that enforces NetworkPolicies. Otherwise they start two nodes with node.sh and stop them at the end. KEEP=1: leave everything
# running. tests/cluster/e2e/settings.py has the durations. The results are in target/e2e, with the logs of the scenarios that failed. One
# that missed nothing but time has a second try, and the summary says so.
. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/cluster/cluster.sh"
export NODES=${NODES:-2} PYTHONDONTWRITEBYTECODE=1 E2E_OUT=$TARGET/e2e E2E_ROOT=$ROOT CACHE TARGET

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
cluster_up operator sidecar agent clients store
# kubectl finds its plugin, kubectl-toolweir, here.
export PATH=$TARGET/images:$PATH
# There is nothing to clean up on a node that goes down with the tests, or with KEEP=1.
if [ "$NODE_STARTED" ] || [ "${KEEP-}" = 1 ]; then export E2E_CLEAN=0; fi
"${suite[@]}" "$@"
