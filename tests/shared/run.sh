#!/usr/bin/env bash
# Limits that hold across pods, proven with real redis-servers: the rows are those of rows.py, each judged by the MCP
# server's own log. ROWS="1 4" runs these alone (row 0, the control, takes a sidecar without a store); SMOKE=1 shortens;
# SHARED_SECONDS is how long rows 0 to 2 put load on. What the processes said is in target/test-shared/row-N.

. "$(dirname "$0")/../bench/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need python3 "apt-get install python3"
need openssl "apt-get install openssl"
ensure_redis

# The checker of logs is itself checked first: a log with one arrival too many must be found.
python3 "$here/arrivals.py"
bench=$(bench)
binary=${SIDECAR:-$(sidecar)}
mkdir -p "$TARGET/test-shared"
# shellcheck disable=SC2086 # ROWS is a list
exec python3 "$here/rows.py" --sidecar "$binary" --bench "$bench" --dir "$TARGET/test-shared" ${ROWS-}
