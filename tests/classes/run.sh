#!/usr/bin/env bash
# Measures the classes of tools (toolweir-classes) against the annotations of a public catalogue. HALF: develop, unseen or all; the default is
# all. UPDATE_GOLDEN=1 writes docs/classes.md anew.
# The rules were written on the develop half. Whoever changes them looks at that half alone; the other shows what the rules are worth.
. "$(dirname "$0")/../lib.sh"
need cargo "https://rustup.rs"
need go "https://go.dev/dl (Go 1.26 or later)"
here=$ROOT/tests/classes
export HALF=${HALF:-all} UPDATE_GOLDEN=${UPDATE_GOLDEN:-}
[[ $HALF =~ ^(develop|unseen|all)$ ]] || fail "HALF is '$HALF'; write develop, unseen or all"

cargo build --quiet --locked -p toolweir-classes --example classify
export CLASSIFY=$TARGET/debug/examples/classify

check "the catalogue: the measured matrix" python3 "$here/catalogue.py" "$ROOT/docs/classes.md"
python3 "$here/catalogue.py" --print
summary classes
