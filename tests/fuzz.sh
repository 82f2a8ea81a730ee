#!/usr/bin/env bash
# Fuzzes each parser of untrusted bytes (sidecar/fuzz), one target after the other.
# FUZZ_SECONDS: how long each target runs; the default is 300. FUZZ_TARGETS: the targets to run; the default is all.
# New inputs go to a temporary folder. The seeds in git do not change; sidecar/tests/corpus.rs replays them without a fuzzer.

. "$(dirname "$0")/lib.sh"
need cargo "https://rustup.rs"
need c++ "apt-get install g++"
seconds=${FUZZ_SECONDS:-300}
read -ra targets <<<"${FUZZ_TARGETS:-request sse list policy import stream store challenge answers credential capture classes}"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_SECONDS is '$seconds'; write a number of seconds"

fuzz=$ROOT/sidecar/fuzz
export CARGO_TARGET_DIR=$CACHE/fuzz-target
tool=$(cargo_tool cargo-fuzz 0.13.2)
# Every toolchain has the sanitizer, but the compiler's flag for it is not stable.
PATH=$tool:$PATH RUSTC_BOOTSTRAP=1 nice -n 10 cargo fuzz build --fuzz-dir "$fuzz" --sanitizer address >&2
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
printf '%-9s %11s %8s %9s %6s %6s\n' target runs seconds runs/s seeds found
for target in "${targets[@]}"; do
	[ -x "$built/$target" ] || fail "there is no target '$target'"
	mapfile -t from < <(seeds "$target")
	artifacts=$fuzz/artifacts/$target
	mkdir -p "$work/$target" "$artifacts"
	since=$EPOCHREALTIME code=0
	start "$logs/$target.log" nice -n 10 "$built/$target" "$work/$target" "${from[@]}" \
		-dict="$fuzz/dictionaries/$target.dict" -artifact_prefix="$artifacts/" -max_total_time="$seconds" \
		-timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1
	wait "${STARTED[-1]}" || code=$?
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target.log")
	awk -v since="$since" -v now="$EPOCHREALTIME" -v runs="${runs:-0}" -v target="$target" \
		-v seeds="$(find "${from[@]}" -type f | wc -l)" -v found="$(find "$work/$target" -type f | wc -l)" \
		'BEGIN { s = now - since; printf "%-9s %11d %8.0f %9.0f %6d %6d\n", target, runs, s, runs / s, seeds, found }'
	if [ "$code" = 0 ] && [ "${runs:-0}" -gt 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		grep -m1 -A5 -E 'panicked at|ERROR: ' "$logs/$target.log" | cut -c1-300 | sed 's/^/    /' || tail -5 "$logs/$target.log"
		found=$(sed -n 's/.*Test unit written to //p' "$logs/$target.log" | head -1)
		echo "    input: ${found:-none was written}; log: $logs/$target.log"
	fi
done
summary fuzz
