#!/usr/bin/env bash
# Formatting, clippy with the workspace's lints, and the dependencies' licenses, sources and bans.
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

DENY=0.20.2

if ! stamp "$CACHE/cargo-deny" "$DENY"; then
	cargo install --quiet --locked --root "$CACHE/cargo-deny" "cargo-deny@$DENY"
	echo "$DENY" >"$CACHE/cargo-deny/.made-from"
fi
if [ "${1:-}" = advisories ]; then
	# Needs the network of the advisory database, which not every machine has.
	exec "$CACHE/cargo-deny/bin/cargo-deny" --locked check advisories
fi

cargo fmt --all --check
cargo clippy --quiet --locked --workspace --all-targets --features toolweir-crds/kube -- -D warnings
echo "fmt and clippy: clean"

"$CACHE/cargo-deny/bin/cargo-deny" --locked check licenses bans sources
