#!/usr/bin/env bash
# Counts the instructions that the sidecar needs for one request, with valgrind. There is one worker and one HTTP/1.1 connection. After
# 1,000 requests to warm up, 9,000 requests are counted in three parts, and the smallest count is reported, since a part can contain a
# reload or scheduling noise. The load and the server run outside valgrind. Counts of two runs differ by less than 1 %.
#
#   callgrind.sh                    prints the count for each kind of request; fails if a call with a credential needs over PERCENT (3)
#                                   more than one without, or one with pins and an entry by class over 2 %
#   BASELINE=BINARY callgrind.sh    also counts with that sidecar, and fails if this one needs over PERCENT (3) more
#
# SIDECAR=BINARY, TOOLWEIR=BINARY: use these programs instead of building them. COUNT (9000) and KINDS="allowed denied list" make it shorter. Counts of
# different toolchains or machines are not comparable, so no reference is recorded.

. "$(dirname "$0")/lib.sh"

need valgrind "apt-get install valgrind"
need callgrind_control "apt-get install valgrind"
COUNT=${COUNT:-9000} PERCENT=${PERCENT:-3} KINDS=${KINDS:-allowed denied list}
# An older sidecar may know no credentials, and no pins.
[ "${BASELINE-}" ] || [[ $KINDS != *allowed* ]] || KINDS+=" credential pinned"
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
	if [[ $KINDS == *credential* ]]; then
		cat <<-END
			  - name: vault
			    url: http://127.0.0.1:$upstream/mcp
			    credential:
			      bearer: {secretKey: token}
			    tools:
			    - name: send_message
			      limits: [{max: 1000000, window: hour}]
		END
	fi
	if [[ $KINDS == *pinned* ]]; then
		cat <<-END
			  - name: held
			    url: http://127.0.0.1:$upstream/mcp
			    pins: {name: held}
			    tools:
			    - name: send_message
			      limits: [{max: 1000000, window: hour}]
			    - {class: Destructive, action: Deny}
			---
		END
		"${TOOLWEIR:-$(toolweir)}" pin --server held --name held -n bench "http://127.0.0.1:$upstream/mcp"
	fi
} >"$dir/policy.yaml"
mkdir "$dir/keys"
echo 5a1f0c3e9b7d4a628f1e6c0d2b9a7354 >"$dir/keys/token"

# count NAME BINARY: writes "KIND INSTRUCTIONS" lines for one request of each kind to DIR/NAME.
count() {
	local port metrics admin pid kind out=$dir/out-$1 dumps=0 request server flags=()
	[[ $KINDS != *credential* ]] || flags=(--credentials-dir "$dir/keys")
	mkdir "$out"
	port=$(free_port) metrics=$(free_port) admin=$(free_port)
	start "$dir/$1.log" valgrind --tool=callgrind --callgrind-out-file="$out/dump" "$2" run --workers 1 --policy "$dir/policy.yaml" "${flags[@]}" \
		--listen "127.0.0.1:$port" --metrics-listen "127.0.0.1:$metrics" --admin-listen "127.0.0.1:$admin"
	pid=${STARTED[-1]}
	(wait_port "$port" 60 "the sidecar under valgrind") || { tail -20 "$dir/$1.log" >&2; exit 1; }
	for kind in $KINDS; do
		server=bench request=$kind
		[ "$kind" != credential ] || server=vault request=allowed
		[ "$kind" != pinned ] || server=held request=allowed
		"$bench" calls --url "http://127.0.0.1:$port/$server" --kind "$request" --count 1000 >&2
		dump "$pid" "$out" $((dumps += 1)) >/dev/null
		for _ in 1 2 3; do
			"$bench" calls --url "http://127.0.0.1:$port/$server" --kind "$request" --count $((COUNT / 3)) >&2
			dump "$pid" "$out" $((dumps += 1))
		done | sort -n | awk -v kind="$kind" -v count=$((COUNT / 3)) 'NR == 1 { printf "%s %.0f\n", kind, $1 / count }' >>"$dir/$1"
		dumps=$((dumps + 3))
	done
	kill "$pid" && wait "$pid" 2>/dev/null || true
}

# dump PID DIR NUMBER: prints the number of instructions since the last dump.
dump() {
	local i file=$2/dump.$3
	callgrind_control --dump "$1" >"$2/control" 2>&1 || { cat "$2/control" >&2; fail "callgrind_control cannot reach the sidecar"; }
	for ((i = 0; i < 200; i++)); do
		if grep -qs '^totals:' "$file"; then sed -n 's/^totals: //p' "$file"; return; fi
		sleep 0.05
	done
	fail "valgrind wrote no $file: $(ls "$2" | tr '\n' ' ')"
}

# Both run at once, each on its own core.
if [ "${BASELINE-}" ]; then
	(trap - EXIT; STARTED=(); trap stop_all EXIT; count baseline "$BASELINE" 2>"$dir/baseline.err") &
	baseline=$!
fi
count sidecar "$binary"
if ! [ "${BASELINE-}" ]; then
	awk -v most="$PERCENT" '
		{ printf "%-10s %8d instructions\n", $1, $2; counts[$1] = $2 }
		END {
			if (counts["credential"]) bar("a credential adds", counts["credential"], most)
			if (counts["pinned"]) bar("pins and an entry by class add", counts["pinned"], 2)
			exit failed
		}
		function bar(what, count, most,   more) {
			more = 100 * (count / counts["allowed"] - 1)
			printf "%s: %s %+.2f %% to a call (<= %+g %%)\n", (more > most) ? "FAILED" : "ok", what, more, most
			failed = failed || more > most
		}' "$dir/sidecar"
	exit
fi
wait "$baseline" || { cat "$dir/baseline.err" "$dir/baseline.log" >&2; fail "counting failed for $BASELINE"; }
join <(sort "$dir/sidecar") <(sort "$dir/baseline") | awk -v most="$PERCENT" '
	{
		more = 100 * ($2 / $3 - 1); over = more > most; failed = failed || over
		printf "%s: %-8s %8d instructions, %8d before: %+.2f %% (<= %+g %%)\n", over ? "FAILED" : "ok", $1, $2, $3, more, most
	}
	END { exit failed || NR == 0 }'
