#!/usr/bin/env bash
# Runs all stages and prints a summary. Each stage installs its packages into the cache folder, or says which tool to install. No stage is
# skipped. `tests/run.sh STAGE...` runs these stages only.
. "$(dirname "$0")/lib.sh"

ALL=(lint unit build cel classes demo tools pins methods sdk operations conformance shared credentials capture intercept fuzz-smoke cluster bounds approvals hammer memory start scrape replay bench-smoke chart dashboards e2e)
STAGES=("$@")
[ $# -gt 0 ] || STAGES=("${ALL[@]}")
# CI checks the code out anew each time. What does not change in between, the dependencies above all, stays compiled.
[ "${CI-}" != true ] || export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
LOGS=$CACHE/test-logs
mkdir -p "$LOGS"

# build_programs: builds what later stages run. Link-time optimisation keeps one core busy; what goes into images is built beside it.
build_programs() {
	local images
	"$ROOT/tests/cluster/images.sh" binaries operator sidecar >/dev/null &
	images=$!
	STARTED+=("$images")
	# Both are waited for, and both must have been built: here, a command that fails ends nothing by itself.
	local code=0
	sidecar >/dev/null || code=1
	wait "$images" || code=1
	return $code
}

# chosen STAGE: succeeds if it is to run.
chosen() { [[ " ${STAGES[*]} " == *" $1 "* ]]; }

# A stage that mostly waits, and those that run beside it if both are to run.
declare -A BESIDE=([shared]="credentials capture intercept")

# run_beside STAGE...: runs stages one after the other; writes what became of each to a file beside its log.
run_beside() {
	local name began result
	for name in "$@"; do echo "failed 0" >"$LOGS/$name.result"; done
	for name in "$@"; do
		began=$SECONDS result=failed
		if (stage "$name") >"$LOGS/$name.log" 2>&1; then result=passed; fi
		echo "$result $((SECONDS - began))" >"$LOGS/$name.result"
	done
}

# build_ahead: builds what the stages fuzz-smoke and cluster need, on what others leave of the processors. These stages wait for it, and
# build what is missing. Stages that measure come behind them: this would disturb them.
build_ahead() {
	chrt --idle --pid 0 "$BASHPID"
	! chosen fuzz-smoke || "$ROOT/tests/fuzz.sh" build
	! chosen cluster || "$ROOT/tests/cluster/node.sh" build
}

stage() {
	case $1 in
	lint) "$ROOT/tests/lint.sh" ;;
	unit) "$ROOT/tests/unit.sh" ;;
	build) build_programs ;;
	cel) "$ROOT/tests/cel/run.sh" ;;
	classes) "$ROOT/tests/classes/run.sh" ;;
	demo) "$ROOT/tests/demo/run.sh" ;;
	tools) "$ROOT/tests/tools/run.sh" ;;
	pins) "$ROOT/tests/pins/run.sh" ;;
	approvals) "$ROOT/tests/approvals/run.sh" ;;
	methods) "$ROOT/tests/methods/run.sh" ;;
	sdk) "$ROOT/tests/sdk/run.sh" ;;
	operations) "$ROOT/tests/operations/run.sh" ;;
	conformance) "$ROOT/tests/conformance/run.sh" ;;
	hammer) "$ROOT/tests/bench/hammer.sh" ;;
	# Half as long as by hand: a window is a second.
	shared) SHARED_SECONDS=${SHARED_SECONDS:-30} "$ROOT/tests/shared/run.sh" ;;
	credentials) "$ROOT/tests/credentials/run.sh" ;;
	capture) "$ROOT/tests/capture/run.sh" ;;
	intercept) "$ROOT/tests/intercept/run.sh" ;;
	memory) "$ROOT/tests/bench/memory.sh" ;;
	start) "$ROOT/tests/bench/start.sh" ;;
	scrape) "$ROOT/tests/bench/scrape.sh" ;;
	replay) "$ROOT/tests/replay/run.sh" ;;
	bounds) "$ROOT/tests/bounds/run.sh" ;;
	bench-smoke) SMOKE=1 "$ROOT/tests/bench/run.sh" && SMOKE=1 "$ROOT/tests/bench/capture.sh" && SMOKE=1 "$ROOT/tests/bench/intercept.sh" && SMOKE=1 "$ROOT/tests/bench/lists.sh" && SMOKE=1 "$ROOT/tests/bench/asks.sh" ;;
	cluster) "$ROOT/tests/cluster/node.sh" build ;;
	chart) "$ROOT/tests/chart/run.sh" ;;
	dashboards) "$ROOT/tests/dashboards/run.sh" ;;
	e2e) "$ROOT/tests/cluster/e2e.sh" ;;
	dashboards-live) "$ROOT/tests/dashboards/live.sh" ;;
	# `make fuzz` runs all targets. The stage unit replays the corpora of all of them.
	fuzz-smoke) FUZZ_TARGETS=${FUZZ_TARGETS:-request list policy import stream store credential capture approvals} FUZZ_SECONDS=${FUZZ_SECONDS:-20} "$ROOT/tests/fuzz.sh" ;;
	*) fail "there is no stage $1; the stages are ${ALL[*]} dashboards-live" ;;
	esac
}

need cargo "https://rustup.rs (Rust 1.95 or later)"
need python3 "apt-get install python3 python3-venv"
need npm "apt-get install nodejs npm (Node 20 or later)"
need go "https://go.dev/dl (Go 1.26 or later); it builds the cluster"
need cc "apt-get install build-essential"
need chrt "apt-get install util-linux"

# told NAME RESULT SECONDS: takes a stage into the summary.
passed=0 failed=0 summary=
told() {
	local how=$2
	if [ "$2" = passed ]; then passed=$((passed + 1)); else failed=$((failed + 1)) how="FAILED   $LOGS/$1.log"; fi
	summary+=$(printf '  %-14s %5d s   %s' "$1" "$3" "$how")$'\n'
}

ran=" "
for name in "${STAGES[@]}"; do
	[[ $ran != *" $name "* ]] || continue
	beside=()
	for other in ${BESIDE[$name]-}; do
		if chosen "$other"; then beside+=("$other") ran+="$other "; fi
	done
	printf '\n==== %s\n' "$name"
	[ ${#beside[@]} -eq 0 ] || start /dev/null run_beside "${beside[@]}"
	began=$SECONDS result=failed
	# In a subshell, so that `exit` ends only the stage.
	if (stage "$name") 2>&1 | tee "$LOGS/$name.log"; then result=passed; fi
	told "$name" "$result" $((SECONDS - began))
	if [ ${#beside[@]} -gt 0 ]; then
		wait "${STARTED[-1]}" || true
		for other in "${beside[@]}"; do
			printf '\n==== %s, beside %s\n' "$other" "$name"
			cat "$LOGS/$other.log"
			read -r result seconds <"$LOGS/$other.result"
			told "$other" "$result" "$seconds"
		done
	fi
	[ "$name" != build ] || start "$LOGS/ahead.log" build_ahead
done

printf '\n==== summary\n%s\n%d passed, %d failed\n' "$summary" "$passed" "$failed"
[ "$failed" -eq 0 ]
