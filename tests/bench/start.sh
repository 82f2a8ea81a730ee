#!/usr/bin/env bash
# What the sidecar adds to a pod's start: the size of its binary, at most 12 MiB, and the time from exec until it is
# ready, less than 50 ms in the median of 20.

. "$(dirname "$0")/lib.sh"

need strip "apt-get install binutils"
bench=$(bench)
binary=$(sidecar)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT

strip -o "$dir/toolweir-sidecar" "$binary"
size=$(stat -c %s "$dir/toolweir-sidecar")
holds=holds
((size <= 12 * 1024 * 1024)) || holds="does not hold"
echo "$holds: the stripped release binary has $((size / 1024)) KiB (<= 12288 KiB)"

listen=$(free_port) metrics=$(free_port) admin=$(free_port)
policy "$(free_port)" "{max: 100, window: minute}" >"$dir/policy.yaml"
"$bench" start --ready "127.0.0.1:$metrics" --times "${TIMES:-20}" -- "$dir/toolweir-sidecar" run --policy "$dir/policy.yaml" \
	--listen "127.0.0.1:$listen" --metrics-listen "127.0.0.1:$metrics" --admin-listen "127.0.0.1:$admin" \
	2>"$dir/sidecar.log" || { tail -n 5 "$dir/sidecar.log" >&2; exit 1; }
[ "$holds" = holds ]
