#!/usr/bin/env bash
# Checks formatting, clippy, the API documentation, the structure of the code, CONTRIBUTING.md, the links between pages, and the licenses,
# sources and bans of dependencies. `lint.sh advisories` checks dependencies for known vulnerabilities.
. "$(dirname "$0")/lib.sh"
cd "$ROOT"
need cargo "https://rustup.rs"
need python3 "apt-get install python3"
export PYTHONDONTWRITEBYTECODE=1

deny=$(cargo_tool cargo-deny 0.20.2)/cargo-deny
if [ "${1:-}" = advisories ]; then
	# This needs the network of the advisory database, which not every machine has.
	exec "$deny" --locked check advisories
fi

cargo fmt --all --check
cargo clippy --quiet --locked --workspace --all-targets --features toolweir-crds/kube -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --document-private-items --workspace
echo "fmt, clippy and rustdoc: clean"

python3 tests/lint/structure_test.py
python3 tests/lint/structure.py
python3 tests/lint/contributing.py
python3 tests/lint/links.py

"$deny" --locked check licenses bans sources
