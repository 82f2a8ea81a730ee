#!/usr/bin/env bash
# 8 tasks call as fast as they can for a minute, with one limit of 200 calls a second. The server's log must show at most 200 calls in
# any second, wherever it begins, and that the limit was nearly used up.

. "$(dirname "$0")/lib.sh"

bench=$(bench)
binary=$(sidecar)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT

upstream=$(free_port)
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream" --arrivals "$dir/arrivals"
wait_port "$upstream" 10 "the upstream"
# No audit log for millions of denials.
start_sidecar "$binary" "$dir" "$upstream" "{max: 200, window: second}" /dev/null
# With nice, the callers cannot keep sidecar and server from running. Otherwise calls arrive in a different rhythm than the one in which
# they were allowed.
nice -n 10 "$bench" hammer --url "$SIDECAR_URL" --connections 8 --seconds "${HAMMER_SECONDS:-60}" --max 200 --window-ms 1000 \
	--arrivals "$dir/arrivals"
