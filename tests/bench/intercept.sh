#!/usr/bin/env bash
# Measures what it costs that the sidecar opens TLS of a captured agent (`tls: Intercept`), with a pod and what is outside it in two
# network namespaces. Both ways lead through the sidecar to one server, to which it has TLS: the agent's own https:// URL, and the
# sidecar's URL in clear text, with which the first is compared. In one run:
#   - CPU time of the sidecar and latency of a call on an open connection;
#   - the same of a new connection with one call, with a full handshake and with one that resumes a session;
#   - 100 new connections at once;
#   - the memory of 64 and 256 idle connections, each in a fresh sidecar;
#   - the start of a sidecar that makes an authority and writes what agents trust, and of one that finds both.
# What is compared alternates in short blocks. Prints a table, and whether the targets are met. It needs root and NET_ADMIN.
#
#   BLOCKS=20 CALLS=2000 CONNECTS=200       blocks of calls and of connections
#   IDLE="64 256" TIMES=20                  idle connections; starts
#   BENCH_STRICT=1                          exit code 1 if a target is missed
#   SMOKE=1                                 a few seconds: tests that the benchmark works
#   SIDECAR=BINARY BENCH=BINARY             use these programs instead of release builds

. "$(dirname "$0")/pod.sh"

if [ "${SMOKE:-0}" = 1 ]; then
	: "${BLOCKS:=3}" "${CALLS:=200}" "${CONNECTS:=20}" "${IDLE:=64}" "${TIMES:=3}"
fi
: "${BLOCKS:=20}" "${CALLS:=2000}" "${CONNECTS:=200}" "${IDLE:=64 256}" "${TIMES:=20}"

NAME=mcp.bench.example
PLAIN=http://127.0.0.1:15001/bench TLS=https://$NAME:8443/mcp
make_pod "$NAME"
start "$dir/upstream.log" ip netns exec "$OUTSIDE" "$bench" upstream --listen "$SERVER:8443" --tls "$NAME" --certificate "$dir/server.pem"
wait_inside "$OUTSIDE" "$SERVER" 8443 "$dir/upstream.log"
policy_of "$TLS" "{max: 1000000000, window: minute}" "tls: Intercept" >"$dir/policy.yaml"
for folder in agents state; do install -d -o "$SIDECAR_UID" -g "$SIDECAR_GID" "$dir/$folder"; done
flags=(--upstream-ca "$dir/server.pem")
intercepting=("${flags[@]}" --agent-ca-dir "$dir/agents" --state-dir "$dir/state")
trusted=$dir/agents/ca-bundle.pem

versions
start_captured "${intercepting[@]}"
pod "$bench" intercept --plain "$PLAIN" --tls "$TLS" --trusted "$trusted" --pid "$sidecar_pid" \
	--blocks "$BLOCKS" --calls "$CALLS" --connects "$CONNECTS" >"$dir/measured.json"
audited $((2 * BLOCKS * CALLS + 3 * BLOCKS * CONNECTS)) '"tool":"send_message"'

# restart FLAG...: a fresh sidecar, whose memory no earlier connection has shaped.
restart() {
	kill "$sidecar_pid" && wait "$sidecar_pid" 2>/dev/null || true
	start_captured "$@"
}
for count in $IDLE; do
	restart "${intercepting[@]}"
	pod "$bench" intercept-idle --url "$PLAIN" --pid "$sidecar_pid" --connections "$count"
	restart "${intercepting[@]}"
	pod "$bench" intercept-idle --url "$TLS" --trusted "$trusted" --pid "$sidecar_pid" --connections "$count"
done >"$dir/idle.jsonl"
kill "$sidecar_pid" && wait "$sidecar_pid" 2>/dev/null || true

# starts WHAT SCRIPT FLAG...: prints how long a sidecar takes until it is ready, after a script that runs in the time that is measured.
# It is outside the pod, in which its rules would not let the benchmark ask for /readyz.
starts() {
	local told
	told=$(outside "$bench" start --ready 127.0.0.1:15020 --times "$TIMES" -- sh -c "$2"' exec "$0" "$@"' "$dir/toolweir-sidecar" run \
		--policy "$dir/policy.yaml" --capture-port 15002 "${@:3}" 2>"$dir/start.log") || [ "$told" ] || { tail -5 "$dir/start.log" >&2; exit 1; }
	echo "$1: $told"
}
{
	starts "start without certificates for agents" "rm -f $dir/none;" "${flags[@]}"
	starts "start that makes and writes them" "rm -f $dir/agents/* $dir/state/*;" "${intercepting[@]}"
	starts "start that finds them" "rm -f $dir/none;" "${intercepting[@]}"
} >"$dir/starts"

python3 - "$dir" "${BENCH_STRICT:-0}" <<'END'
import json, sys
folder, strict = sys.argv[1:]
measured = json.load(open(f"{folder}/measured.json"))
missed = 0
def row(what, plain, tls, difference, bar="", met=True):
    global missed
    missed += not met
    print(f"| {what} | {plain} | {tls} | {difference} | {bar and bar + (': met' if met else ': **missed**')} |")
print("\n| what | clear text | TLS opened | difference | target |\n| --- | ---: | ---: | ---: | --- |")
plain, tls = measured["calls"]
for at, what in (("cpu", "call on an open connection, CPU µs of the sidecar"), ("p50", "the same, latency, p50 µs")):
    ratio = tls[at] / plain[at]
    row(what, f"{plain[at]:.1f}", f"{tls[at]:.1f}", f"{ratio:.2f}", "at most 1.3", ratio <= 1.3)
plain, full, resumed = measured["connects"]
added = full["cpu"] - plain["cpu"]
row("new connection with a call, CPU µs of the sidecar", f"{plain['cpu']:.0f}", f"{full['cpu']:.0f}", f"{added:+.0f} µs", "at most 2000 µs more", added <= 2000)
row("the same with a resumed session", f"{plain['cpu']:.0f}", f"{resumed['cpu']:.0f}", f"{resumed['cpu'] - plain['cpu']:+.0f} µs")
for way, what in ((full, "new connection, connect to answer, p50 µs"), (resumed, "the same with a resumed session, p50 µs")):
    row(what, f"{plain['p50']:.0f}", f"{way['p50']:.0f}", f"{way['p50'] - plain['p50']:+.0f} µs")
plain, tls = measured["at_once"]
row("100 new connections at once, until the last answer, p50 ms", *(f"{way['p50'] / 1000:.1f}" for way in (plain, tls)), f"{(tls['p50'] - plain['p50']) / 1000:+.1f} ms")
row("the same, CPU µs of the sidecar for each", *(f"{way['cpu']:.0f}" for way in (plain, tls)), f"{tls['cpu'] - plain['cpu']:+.0f} µs")
idle = [json.loads(line) for line in open(f"{folder}/idle.jsonl")]
for plain, tls in zip(idle[::2], idle[1::2]):
    grown = [(one["rss_kib_with"] - one["rss_kib"]) / one["connections"] for one in (plain, tls)]
    row(f"{plain['connections']} idle connections, resident KiB for each", *(f"{each:.1f}" for each in grown), f"{grown[1] - grown[0]:+.1f} KiB")
print()
starts = open(f"{folder}/starts").read()
print(starts, end="")
missed += starts.count("does not hold")
sys.exit(strict == "1" and missed > 0)
END
