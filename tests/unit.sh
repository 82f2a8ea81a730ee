#!/usr/bin/env bash
# Runs unit, property and in-process integration tests. The tests of the shared store run a real redis-server. Arguments go to cargo test.

. "$(dirname "$0")/lib.sh"
ensure_redis
exec cargo test --no-fail-fast --locked --workspace --features toolweir-crds/kube --manifest-path "$ROOT/Cargo.toml" "$@"
