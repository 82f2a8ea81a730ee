#!/usr/bin/env bash
# Unit, property and in-process integration tests. Those of the shared store run a real redis-server. Words are passed on.

. "$(dirname "$0")/lib.sh"
ensure_redis
exec cargo test --locked --workspace --features toolweir-crds/kube --manifest-path "$ROOT/Cargo.toml" "$@"
