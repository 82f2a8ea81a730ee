#!/usr/bin/env bash
# Real MCP clients against real MCP servers, through the sidecar. Every client takes the same steps (steps.py) at every server,
# under a server name of its own in the policy, so that its limits start fresh.
# `run.sh --direct` goes without a sidecar and leaves out what only it does: what fails then is no fault of the sidecar.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
direct=
case ${1-} in --direct) direct=--direct ;; "") ;; *) fail "usage: $0 [--direct]" ;; esac
need node "apt-get install nodejs npm (Node 20 or later)"
need timeout "apt-get install coreutils"

py1=$(python_env mcp1 mcp==1.30.0)
py2=$(python_env mcp2 mcp==2.3.0)
fastmcp=$(python_env fastmcp fastmcp==4.2.3)
ts1=$(node_env sdk1 @modelcontextprotocol/sdk@1.32.2)
ts2=$(node_env client2 @modelcontextprotocol/client@2.4.0)
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)/node_modules/.bin/mcp-server-everything
# Node looks for packages from where a script lies.
cp "$here"/{checks,ts1}.mjs "$ts1" && cp "$here"/{checks,ts2}.mjs "$ts2"
sidecar=; [ "$direct" ] || sidecar=$(sidecar)

# Both ways of the clients that have two ways to agree on a version.
clients=(py1 py2-legacy py2-auto ts1 ts2-default ts2-auto)
servers=(everything-http everything-sse fastmcp-http everything-stdio fastmcp-stdio)
client() {
	case $1 in
	py1) set -- "$py1/bin/python" "$here/py1.py" "${@:2}" ;;
	py2-*) set -- env MCP_MODE="${1#*-}" "$py2/bin/python" "$here/py2.py" "${@:2}" ;;
	ts1) set -- node "$ts1/ts1.mjs" "${@:2}" ;;
	ts2-*) set -- env MCP_MODE="${1#*-}" node "$ts2/ts2.mjs" "${@:2}" ;;
	esac
	timeout 120 "$@"
}

# Tools of a server: one that echoes, one that sums, what that one says of 2 and 3, one to deny, one to leave unlisted.
tools() {
	case $1 in
	everything-*) tools=(echo get-sum "The sum of 2 and 3 is 5." toggle-simulated-logging toggle-subscriber-updates) ;;
	fastmcp-*) tools=(echo add 5 delete_everything read_secret) ;;
	esac
}

# policy SERVER...: a policy with an entry of its own for each client at these servers.
policy() {
	cat <<-END
		apiVersion: toolweir.dev/v1alpha1
		kind: MCPPolicy
		metadata: {name: sdk, namespace: tests}
		spec:
		  podSelector: {}
		  servers:
	END
	for server in "$@"; do
		tools "$server"
		for client in "${clients[@]}"; do
			cat <<-END
				  - name: $client-$server
				    ${url[$server]:+url: ${url[$server]}}
				    tools:
				    - name: ${tools[0]}
				    - name: ${tools[1]}
				      limits:
				      - {max: 3, window: minute}
				    - name: ${tools[3]}
				      action: Deny
				      reason: Ask the platform team.
			END
		done
	done
}

logs=$TARGET/test-sdk
rm -rf "$logs" && mkdir -p "$logs"
declare -A url command
port() { port=$(free_port); }
port && start "$logs/everything-http.log" env PORT="$port" "$everything" streamableHttp
url[everything-http]=http://127.0.0.1:$port/mcp && wait_port "$port" 30 "server-everything"
port && start "$logs/everything-sse.log" env PORT="$port" "$everything" sse
url[everything-sse]=http://127.0.0.1:$port/sse && wait_port "$port" 30 "server-everything"
port && start "$logs/fastmcp-http.log" "$fastmcp/bin/python" "$here/fastmcp_server.py" http "$port"
url[fastmcp-http]=http://127.0.0.1:$port/mcp && wait_port "$port" 30 "the FastMCP server"
command[everything-stdio]="\"$everything\", \"stdio\""
command[fastmcp-stdio]="\"$fastmcp/bin/python\", \"$here/fastmcp_server.py\", \"stdio\""

if [ ! "$direct" ]; then
	policy everything-http everything-sse fastmcp-http >"$logs/policy.yaml"
	# For stdio there is no url to give.
	policy everything-stdio fastmcp-stdio >"$logs/policy-stdio.yaml"
	port && listen=127.0.0.1:$port
	start "$logs/sidecar.log" "$sidecar" run --policy "$logs/policy.yaml" --listen "$listen" \
		--metrics-listen "127.0.0.1:$(free_port)" --admin-listen "127.0.0.1:$(free_port)"
	wait_port "$port" 10 "the sidecar ($logs/sidecar.log)"
fi

passed=0 failed=0
printf '%-12s %-17s %-11s %7s %7s %8s\n' client server protocol passed failed seconds
for server in "${servers[@]}"; do
	tools "$server"
	steps=$("$py2/bin/python" "$here/steps.py" $direct "${tools[@]}" tests/sdk)
	checks=$(($(grep -o '"what"' <<<"$steps" | wc -l) + 1))
	for client in "${clients[@]}"; do
		name=$client-$server
		protocol=2025-11-25
		case $name in *-auto-fastmcp-*) protocol=2026-07-28 ;; esac
		transport=${server##*-}
		case $transport$direct in
		stdio)
			target="[\"$sidecar\", \"stdio\", \"--policy\", \"$logs/policy-stdio.yaml\","
			target+=" \"--server\", \"$name\", \"--\", ${command[$server]}]"
			;;
		stdio*) target="[${command[$server]}]" ;;
		*--direct) target=${url[$server]} ;;
		*) target=http://$listen/$name ;;
		esac
		since=$EPOCHREALTIME
		client "$client" "$target" "$transport" "$protocol" "$steps" >"$logs/$name.out" 2>"$logs/$name.err" ||
			echo "FAIL exit code $?" >>"$logs/$name.out"
		# What a client did not live to say counts as failed.
		good=$(grep -c '^ok ' "$logs/$name.out" || true)
		bad=$((checks - good))
		if grep -q '^FAIL ' "$logs/$name.out" && [ "$bad" = 0 ]; then bad=1; fi
		passed=$((passed + good)) failed=$((failed + bad))
		printf '%-12s %-17s %-11s %7d %7d %8.1f\n' "$client" "$server" "$protocol" "$good" "$bad" \
			"$(awk "BEGIN {print $EPOCHREALTIME - $since}")"
		grep '^FAIL ' "$logs/$name.out" | sed 's/^/    /' || true
	done
done
[ "$failed" = 0 ] || echo "logs: $logs"
echo "sdk: $passed passed, $failed failed"
[ "$failed" = 0 ]
