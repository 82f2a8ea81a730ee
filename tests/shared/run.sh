#!/usr/bin/env bash
# Tests limits across pods with real redis-servers (scenarios.py). The log of the MCP server decides whether a limit held.
# ONLY="1 4": run these scenarios only; scenario 0 is the control, a sidecar without a store. SMOKE=1: shorter. SHARED_SECONDS: the
# seconds of load in scenarios 0 to 2. The logs of the processes are in target/test-shared/scenario-N.

. "$(dirname "$0")/../bench/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need python3 "apt-get install python3"
need openssl "apt-get install openssl"
ensure_redis

# First, the check of the log itself: it must find one arrival too many.
python3 "$here/arrivals.py"
bench=$(bench)
binary=${SIDECAR:-$(sidecar)}
mkdir -p "$TARGET/test-shared"
# shellcheck disable=SC2086 # ONLY is a list
exec python3 "$here/scenarios.py" --sidecar "$binary" --bench "$bench" --dir "$TARGET/test-shared" ${ONLY-}
