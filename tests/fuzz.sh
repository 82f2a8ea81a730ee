#!/usr/bin/env bash
# Fuzzes each parser of untrusted bytes (sidecar/fuzz), a target on each core. `fuzz.sh build` only builds the targets.
# FUZZ_SECONDS: how long each target runs; the default is 300. FUZZ_TARGETS: the targets to run; the default is all.
# New inputs go to a temporary folder. The seeds in git do not change; sidecar/tests/corpus.rs replays them without a fuzzer.

. "$(dirname "$0")/lib.sh"
need cargo "https://rustup.rs"
need c++ "apt-get install g++"
seconds=${FUZZ_SECONDS:-300}
read -ra targets <<<"${FUZZ_TARGETS:-request sse list server_message policy import stream store challenge answers credential capture classes audit pins approvals}"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_SECONDS is '$seconds'; write a number of seconds"

fuzz=$ROOT/sidecar/fuzz
export CARGO_TARGET_DIR=$CACHE/fuzz-target
tool=$(cargo_tool cargo-fuzz 0.13.2)
# Every toolchain has the sanitizer, but the compiler's flag for it is not stable.
PATH=$tool:$PATH RUSTC_BOOTSTRAP=1 nice -n 10 cargo fuzz build --fuzz-dir "$fuzz" --sanitizer address >&2
[ "${1-}" != build ] || exit 0
built=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release

seeds() {
	echo "$fuzz/corpus/$1"
	[ "$1" != policy ] || printf '%s\n' "$ROOT"/crds/samples/{valid,invalid}
}

# These checks of the sanitizer are slow and find nothing in Rust.
export RUST_BACKTRACE=1 ASAN_OPTIONS=detect_stack_use_after_return=0:malloc_context_size=4
work=$(mktemp -d)
trap 'stop_all; rm -rf "$work"' EXIT
logs=$TARGET/test-fuzz
rm -rf "$logs" && mkdir -p "$logs"
printf '%-14s %11s %8s %9s %6s %6s\n' target runs seconds runs/s seeds found
# fuzz_target TARGET: fuzzes it, and writes its line of the table, and below it what failed.
fuzz_target() {
	local target=$1 from since=$EPOCHREALTIME code=0 runs found artifacts=$fuzz/artifacts/$1
	mapfile -t from < <(seeds "$target")
	mkdir -p "$work/$target" "$artifacts"
	nice -n 10 "$built/$target" "$work/$target" "${from[@]}" \
		-dict="$fuzz/dictionaries/$target.dict" -artifact_prefix="$artifacts/" -max_total_time="$seconds" \
		-timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 >"$logs/$target.log" 2>&1 </dev/null || code=$?
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target.log")
	awk -v since="$since" -v now="$EPOCHREALTIME" -v runs="${runs:-0}" -v target="$target" \
		-v seeds="$(find "${from[@]}" -type f | wc -l)" -v found="$(find "$work/$target" -type f | wc -l)" \
		'BEGIN { s = now - since; printf "%-14s %11d %8.0f %9.0f %6d %6d\n", target, runs, s, runs / s, seeds, found }'
	if [ "$code" = 0 ] && [ "${runs:-0}" -gt 0 ]; then return; fi
	grep -m1 -A5 -E 'panicked at|ERROR: ' "$logs/$target.log" | cut -c1-300 | sed 's/^/    /' || tail -5 "$logs/$target.log"
	found=$(sed -n 's/.*Test unit written to //p' "$logs/$target.log" | head -1)
	echo "    input: ${found:-none was written}; log: $logs/$target.log"
	return 1
}

# As many at once as there are cores: a target is one thread.
cores=$(nproc)
for ((at = 0; at < ${#targets[@]}; at += cores)); do
	together=("${targets[@]:at:cores}") STARTED=()
	for target in "${together[@]}"; do
		[ -x "$built/$target" ] || fail "there is no target '$target'"
		start "$work/$target.told" fuzz_target "$target"
	done
	for index in "${!together[@]}"; do
		if wait "${STARTED[index]}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
		cat "$work/${together[index]}.told"
	done
done
STARTED=()
summary fuzz
