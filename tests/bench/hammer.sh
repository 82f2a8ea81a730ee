#!/usr/bin/env bash
# 8 tasks hammer one limit of 200 calls a second for a minute. The server's own log then says whether any second, wherever
# it begins, had more, and whether the limit was used.

. "$(dirname "$0")/lib.sh"

bench=$(bench)
binary=$(sidecar)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT

upstream=$(free_port)
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream" --arrivals "$dir/arrivals"
wait_port "$upstream" 10 "the upstream"
# A line for each of millions of denials is not what is tested here.
start_sidecar "$binary" "$dir" "$upstream" "{max: 200, window: second}" /dev/null
# Nice: the callers would else keep the sidecar and the server from running for longer than the limiter has in hand, and
# then calls arrive in another rhythm than they were let through.
nice -n 10 "$bench" hammer --url "$SIDECAR_URL" --connections 8 --seconds "${HAMMER_SECONDS:-60}" --max 200 --window-ms 1000 \
	--arrivals "$dir/arrivals"
