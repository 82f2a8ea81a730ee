#!/usr/bin/env bash
# Measures the classes of tools (toolweir-classes): against the annotations of a public catalogue, and against golden tables of the official
# servers. HALF: develop, unseen or all; the default is all. UPDATE_GOLDEN=1 writes docs/classes.md and golden/ anew.
# The rules were written on the develop half. Whoever changes them looks at that half alone; the other shows what the rules are worth.
. "$(dirname "$0")/../lib.sh"
need cargo "https://rustup.rs"
need go "https://go.dev/dl (Go 1.26 or later)"
here=$ROOT/tests/classes
export HALF=${HALF:-all} UPDATE_GOLDEN=${UPDATE_GOLDEN:-}
[[ $HALF =~ ^(develop|unseen|all)$ ]] || fail "HALF is '$HALF'; write develop, unseen or all"

cargo build --quiet --locked -p toolweir-classes --example classify
export CLASSIFY=$TARGET/debug/examples/classify

node=$(node_env servers @modelcontextprotocol/server-filesystem@2026.8.31 @modelcontextprotocol/server-memory@2026.8.31)/node_modules/.bin
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)/node_modules/.bin/mcp-server-everything
python=$(python_env servers mcp-server-git==2026.10.19 mcp-server-fetch==2026.10.24)/bin
demo=$(python_env demo mcp==2.3.0)/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

table() { python3 "$here/table.py" "$here/golden/$1.txt" "${@:2}"; }
export DETAIL=1 MEMORY_FILE_PATH=$work/memory.json
check "server-everything: the table" table everything "$everything" stdio
check "server-filesystem: the table" table filesystem "$node/mcp-server-filesystem" "$work"
check "server-memory: the table" table memory "$node/mcp-server-memory"
check "mcp-server-git: the table" table git "$python/mcp-server-git"
check "mcp-server-fetch: the table" table fetch "$python/mcp-server-fetch"
check "the Facebook demo: the table" table facebook --printed "$demo" "$here/facebook.py" "$ROOT/tests/demo/just_facebook.py" "$work/log"
check "the catalogue: the measured matrix" python3 "$here/catalogue.py" "$ROOT/docs/classes.md"
python3 "$here/catalogue.py" --print
summary classes
