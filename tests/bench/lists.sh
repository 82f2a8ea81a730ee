#!/usr/bin/env bash
# Measures what pins and classes add to a tools/list: 200 tools of 2 KiB each through two sidecars in turn, in short blocks. One has a policy
# that names tools, the other the same policy with pins and an entry by class. Both show the same tools.
#
#   lists.sh                        both are the same program
#   BASELINE=BINARY lists.sh        the one without pins is this one, such as a release that knew none
#
# SIDECAR=BINARY, TOOLWEIR=BINARY: use these programs instead of building them. BLOCKS (20), LISTS (200), TOOLS (200), BYTES (2048).
# BENCH_STRICT=1: exit code 1 if the target is missed: at most 1 ms more in the median.

. "$(dirname "$0")/lib.sh"

need python3 "apt-get install python3"
BLOCKS=${BLOCKS:-20} LISTS=${LISTS:-200} TOOLS=${TOOLS:-200} BYTES=${BYTES:-2048}
if [ "${SMOKE-}" = 1 ]; then BLOCKS=2 LISTS=10; fi
bench=$(bench)
binary=${SIDECAR:-$(sidecar)}
toolweir=${TOOLWEIR:-$(toolweir)}
for file in "$binary" "${BASELINE:-$binary}"; do [ -x "$file" ] || fail "there is no program $file"; done
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT
upstream=$(free_port)
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream" --tools "$TOOLS" --tool-bytes "$BYTES"
wait_port "$upstream" 10 "the upstream"

mkdir "$dir/plain" "$dir/pinned"
plain=$(policy "$upstream" "{max: 1000000, window: hour}"; echo "    - name: get_*")
echo "$plain" >"$dir/plain/policy.yaml"
{
	printf '%s\n    - {class: Destructive, action: Deny}\n    pins: {name: bench}\n---\n' "$plain"
	"$toolweir" pin --server bench --name bench -n bench "http://127.0.0.1:$upstream/mcp"
} >"$dir/pinned/policy.yaml"
start_sidecar_with "${BASELINE:-$binary}" "$dir/plain" "$dir/plain/audit.log"
base=$SIDECAR_URL
start_sidecar_with "$binary" "$dir/pinned" "$dir/pinned/audit.log"
"$bench" alternate --base "$base" --other "$SIDECAR_URL" --list $((TOOLS - (TOOLS - 1) / 2)) --blocks "$BLOCKS" --calls "$LISTS" >"$dir/lists.json"
# What was measured did look at the definitions.
metrics=$(curl -sf "http://127.0.0.1:$SIDECAR_METRICS/metrics")
grep -q '^toolweir_tools_drifted{server="bench"} 0$' <<<"$metrics" || fail "the sidecar with pins does not compare: $(grep toolweir_tools_drifted <<<"$metrics")"
python3 - "$dir/lists.json" "$TOOLS" "$BYTES" "${BENCH_STRICT:-0}" <<'END'
import json
import sys

measured, (tools, size, strict) = json.load(open(sys.argv[1])), map(int, sys.argv[2:])
added, holds = measured["added"], measured["added"] <= 1000
print(f"a tools/list of {tools} tools of {size} bytes, median of {measured['blocks']} blocks of {measured['calls']}:")
print(f"  by names {measured['base']:.0f} µs; with pins and classes {measured['other']:.0f} µs")
print(f"{'ok' if holds else 'MISSED'}: pins and classes add {added:.0f} µs ({measured['quarter']:.0f} to {measured['three_quarters']:.0f}; at most 1000)")
sys.exit(strict and not holds)
END
