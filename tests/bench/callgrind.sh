#!/usr/bin/env bash
# How many instructions of the sidecar one request takes, counted by valgrind: 10 000 requests, less the first 1 000, one worker, one
# connection of HTTP/1.1. They are counted in three parts, and the least of these is what it says: a part can have a reload or a
# scheduler's whim in it. Load and server run outside valgrind. It is a count, not a time: runs differ by less than 1 %.
#
#   callgrind.sh                    prints the count of each kind of request
#   BASELINE=BINARY callgrind.sh    counts with that sidecar too, and fails where this one takes over PERCENT (3) more
#
# SIDECAR=BINARY counts with that one instead of a release build; COUNT (9 000) and KINDS="allowed denied list" shorten. Counts of
# two toolchains or machines are not comparable, so none is recorded to compare with.

. "$(dirname "$0")/lib.sh"

need valgrind "apt-get install valgrind"
need callgrind_control "apt-get install valgrind"
COUNT=${COUNT:-9000} PERCENT=${PERCENT:-3} KINDS=${KINDS:-allowed denied list}
bench=$(bench)
binary=${SIDECAR:-$(sidecar)}
for file in "$binary" "${BASELINE:-$binary}"; do [ -x "$file" ] || fail "there is no program $file"; done
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT
upstream=$(free_port)
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream" --tools 20
wait_port "$upstream" 10 "the upstream"
{
	policy "$upstream" "{max: 1000000, window: hour}"
	echo "    - name: get_*"
} >"$dir/policy.yaml"

# count NAME BINARY: writes "KIND INSTRUCTIONS" lines for one request of each kind to DIR/NAME.
count() {
	local port metrics admin pid kind out=$dir/out-$1 dumps=0
	mkdir "$out"
	port=$(free_port) metrics=$(free_port) admin=$(free_port)
	start "$dir/$1.log" valgrind --tool=callgrind --callgrind-out-file="$out/dump" "$2" run --workers 1 --policy "$dir/policy.yaml" \
		--listen "127.0.0.1:$port" --metrics-listen "127.0.0.1:$metrics" --admin-listen "127.0.0.1:$admin"
	pid=${STARTED[-1]}
	(wait_port "$port" 60 "the sidecar under valgrind") || { tail -20 "$dir/$1.log" >&2; exit 1; }
	for kind in $KINDS; do
		"$bench" calls --url "http://127.0.0.1:$port/bench" --kind "$kind" --count 1000 >&2
		dump "$pid" "$out" $((dumps += 1)) >/dev/null
		for _ in 1 2 3; do
			"$bench" calls --url "http://127.0.0.1:$port/bench" --kind "$kind" --count $((COUNT / 3)) >&2
			dump "$pid" "$out" $((dumps += 1))
		done | sort -n | awk -v kind="$kind" -v count=$((COUNT / 3)) 'NR == 1 { printf "%s %.0f\n", kind, $1 / count }' >>"$dir/$1"
		dumps=$((dumps + 3))
	done
	kill "$pid" && wait "$pid" 2>/dev/null || true
}

# dump PID DIR NUMBER: prints how many instructions were counted since the last one.
dump() {
	local i file=$2/dump.$3
	callgrind_control --dump "$1" >"$2/control" 2>&1 || { cat "$2/control" >&2; fail "callgrind_control cannot reach the sidecar"; }
	for ((i = 0; i < 200; i++)); do
		if grep -qs '^totals:' "$file"; then sed -n 's/^totals: //p' "$file"; return; fi
		sleep 0.05
	done
	fail "valgrind wrote no $file: $(ls "$2" | tr '\n' ' ')"
}

# Side by side: each has a core.
if [ "${BASELINE-}" ]; then
	(trap - EXIT; STARTED=(); trap stop_all EXIT; count baseline "$BASELINE" 2>"$dir/baseline.err") &
	baseline=$!
fi
count sidecar "$binary"
if ! [ "${BASELINE-}" ]; then
	while read -r kind instructions; do printf '%-8s %8d instructions\n' "$kind" "$instructions"; done <"$dir/sidecar"
	exit
fi
wait "$baseline" || { cat "$dir/baseline.err" "$dir/baseline.log" >&2; fail "nothing was counted of $BASELINE"; }
join <(sort "$dir/sidecar") <(sort "$dir/baseline") | awk -v most="$PERCENT" '
	{
		more = 100 * ($2 / $3 - 1); over = more > most; failed = failed || over
		printf "%s: %-8s %8d instructions, %8d before: %+.2f %% (<= %+g %%)\n", over ? "does not hold" : "holds", $1, $2, $3, more, most
	}
	END { exit failed || NR == 0 }'
