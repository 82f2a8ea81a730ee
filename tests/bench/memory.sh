#!/usr/bin/env bash
# What the sidecar needs of memory: 100 000 calls on 64 connections with 1 000 live counters, in at most 12 MiB and
# without growing over the second half. The first bar does not hold today (docs/performance.md): it is told, and only more
# than what was measured then (18.2 MiB, with room for other machines: 20 MiB) fails.

. "$(dirname "$0")/lib.sh"

bench=$(bench)
binary=$(sidecar)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT

upstream=$(free_port)
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream"
wait_port "$upstream" 10 "the upstream"
start_sidecar "$binary" "$dir" "$upstream" "{max: 1000000, window: hour, key: args.account}" "$dir/audit.log"
"$bench" memory --url "$SIDECAR_URL" --pid "$SIDECAR_PID" --calls "${CALLS:-100000}" --connections 64 --accounts 1000
