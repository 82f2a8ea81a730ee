#!/usr/bin/env bash
# Formatting, clippy with the workspace's lints, and the dependencies' licenses, sources and bans.
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

DENY=0.20.2

cargo fmt --all --check
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
echo "fmt and clippy: clean"

if ! stamp "$CACHE/cargo-deny" "$DENY"; then
	cargo install --quiet --locked --root "$CACHE/cargo-deny" "cargo-deny@$DENY"
	echo "$DENY" >"$CACHE/cargo-deny/.made-from"
fi
# Advisories need the database's network: `make advisories`, where there is one.
"$CACHE/cargo-deny/bin/cargo-deny" --locked check licenses bans sources
