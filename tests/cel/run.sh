#!/usr/bin/env bash
# Evaluates the expressions in expressions.json with cel-go, the CEL engine of Kubernetes, and compares the results with cel-go.json. The
# tests of toolweir-engine use that file as the reference. `tests/cel/run.sh --write` updates it.
. "$(dirname "$0")/../lib.sh"
need go "https://go.dev/dl (Go 1.26 or later)"

here=$ROOT/tests/cel
answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
(cd "$here/go" && go vet . && go run . ../expressions.json) >"$answers"
if [ "${1:-}" = --write ]; then cp "$answers" "$here/cel-go.json"; fi
diff -u "$here/cel-go.json" "$answers" || fail "cel-go gives other results; tests/cel/run.sh --write updates cel-go.json"
echo "$(wc -l <"$answers") expressions: the results of cel-go equal cel-go.json"
