#!/usr/bin/env bash
# Measures what a server that asks for very much costs the calls of others: again and again it asks for 10,000 samplings, which the policy
# denies, before it answers a call. Meanwhile others call another server through the same sidecar.
#
#   asks.sh                         calls of both times, the answers that the asking server gets, and the sidecar's memory
#
# SIDECAR=BINARY: use this program instead of building one. ASKS (10000), ROUNDS (10). BENCH_STRICT=1: exit code 1 if a target is missed: the
# 99th percentile within 1.2 times of that before.

. "$(dirname "$0")/lib.sh"

need python3 "apt-get install python3"
ASKS=${ASKS:-10000} ROUNDS=${ROUNDS:-10}
if [ "${SMOKE-}" = 1 ]; then ROUNDS=2; fi
bench=$(bench)
binary=${SIDECAR:-$(sidecar)}
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT
calm=$(free_port)
start "$dir/calm.log" "$bench" upstream --listen "127.0.0.1:$calm"
wait_port "$calm" 10 "the upstream"
asking=$(free_port)
start "$dir/asking.log" "$bench" upstream --listen "127.0.0.1:$asking" --asks "$ASKS"
wait_port "$asking" 10 "the upstream that asks"
{
	policy "$calm" "{max: 1000000, window: hour}"
	cat <<-END
		  - name: asking
		    url: http://127.0.0.1:$asking/mcp
		    defaultAction: Allow
		    defaultActions: {requests: Deny}
	END
} >"$dir/policy.yaml"
start_sidecar_with "$binary" "$dir" "$dir/audit.log"
"$bench" asks --calm "$SIDECAR_URL" --asking "${SIDECAR_URL%/*}/asking" --rounds "$ROUNDS" >"$dir/asks.json"
curl -sf "http://127.0.0.1:$SIDECAR_METRICS/metrics" >"$dir/metrics"
python3 - "$dir/asks.json" "$dir/metrics" "$ASKS" "$ROUNDS" "$(awk '/^VmHWM/ { print $2 }' "/proc/$SIDECAR_PID/status")" "${BENCH_STRICT:-0}" <<'END'
import json
import re
import sys

measured, metrics = json.load(open(sys.argv[1])), open(sys.argv[2]).read()
asks, rounds, peak, strict = map(int, sys.argv[3:])


def total(metric, *labels):
    lines = (line for line in metrics.splitlines() if line.startswith(metric + "{") and all(label in line for label in labels))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


denied = total("toolweir_operations_total", 'operation="sampling/createMessage"', 'decision="denied"')
if denied != asks * rounds:
    sys.exit(f"{denied:.0f} requests were denied, not {asks * rounds}")
print(f"{rounds} times {asks} requests, each time in {measured['flood_ms']:.0f} ms; all denied")
for name in "before", "meanwhile":
    figures = measured[name]
    print(f"  {name}: {figures['calls']} calls, median {figures['p50']:.0f} µs, 99th percentile {figures['p99']:.0f} µs")
outcomes = sorted(re.findall(r'^toolweir_server_answers_total\{([^}]*)\} (\d+)$', metrics, re.M))
print("  answers: " + "; ".join(f"{labels} {count}" for labels, count in outcomes))
print(f"  memory of the sidecar at its most: {peak / 1024:.1f} MiB")
ratio = measured["meanwhile"]["p99"] / measured["before"]["p99"]
holds = ratio <= 1.2
print(f"{'ok' if holds else 'MISSED'}: the 99th percentile is {ratio:.2f} times that before (at most 1.2)")
sys.exit(strict and not holds)
END
