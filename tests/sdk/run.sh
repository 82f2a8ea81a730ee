#!/usr/bin/env bash
# Runs real MCP clients and agent frameworks against real MCP servers, through the sidecar. Every client takes the same steps (steps.py)
# at every server. Each has its own server name in the policy, so its limits start fresh.
# `run.sh --direct` leaves out the sidecar and the steps that test it. What fails then is not the fault of the sidecar.
# ONLY="gosdk java": run these clients only. SIDECAR=BINARY: use this program instead of building one.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
direct=
case ${1-} in --direct) direct=--direct ;; "") ;; *) fail "usage: $0 [--direct]" ;; esac
need node "apt-get install nodejs npm (Node 20 or later)"
need go "https://go.dev/dl (Go 1.26 or later)"
need java "apt-get install default-jdk-headless (Java 17 or later)"
need javac "apt-get install default-jdk-headless (Java 17 or later)"
need mvn "apt-get install maven"
need timeout "apt-get install coreutils"

# No telemetry from tests.
export MCP_USE_ANONYMIZED_TELEMETRY=false HAYSTACK_TELEMETRY_ENABLED=False OPENAI_AGENTS_DISABLE_TRACING=1

# One environment for all clients that use the same version of the SDK.
mcp1=$(python_env sdk-mcp1 mcp==1.30.0 langchain-mcp-adapters==0.3.2 mcp-use==1.7.1 mcp-haystack==2.1.1 \
	smolagents[mcp]==1.26.0 openai-agents==0.24.0 google-adk==2.13.0)
mcp2=$(python_env sdk-mcp2 mcp==2.3.0 fastmcp==4.2.3 pydantic-ai-slim[mcp]==2.68.0 llama-index-tools-mcp==0.6.0)
npm=$(node_env sdk @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0 @ai-sdk/mcp@2.0.99 \
	@langchain/mcp-adapters@1.1.4 @langchain/core@1.4.0)
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)/node_modules/.bin/mcp-server-everything
# Node looks for packages next to the script.
cp "$here"/*.mjs "$npm"
programs=$TARGET/test-sdk-programs
mkdir -p "$programs"
(cd "$here/go" && go build -o "$programs/" ./gosdk ./mcpgo)
java=$CACHE/java-sdk
if ! stamp "$java" "$(cat "$here"/java/*)"; then
	rm -rf "$java"
	mvn --quiet --batch-mode -Dstyle.color=never --file "$here/java" dependency:copy-dependencies -DoutputDirectory="$java" >&2
	javac -nowarn -cp "$java/*" -d "$java" "$here/java/JavaSdk.java" 2>/dev/null || fail "javac cannot build JavaSdk.java"
	cat "$here"/java/* >"$java/.made-from"
fi
sidecar=; [ "$direct" ] || sidecar=${SIDECAR:-$(sidecar)}

# Both ways of the clients that have two ways to agree on a version. They speak every transport, the others HTTP.
sdks=(py1 py2-legacy py2-auto ts1 ts2-default ts2-auto)
frameworks=(langchain mcp-use haystack smolagents openai-agents google-adk fastmcp pydantic-ai llama-index
	gosdk mcpgo java aisdk langchainjs)
clients() { case $1 in *-http) echo "${sdks[*]} ${frameworks[*]}" ;; *) echo "${sdks[*]}" ;; esac }
servers=(everything-http everything-sse fastmcp-http everything-stdio fastmcp-stdio)
client() {
	case $1 in
	py1) set -- "$mcp1/bin/python" "$here/py1.py" "${@:2}" ;;
	py2-*) set -- env MCP_MODE="${1#*-}" "$mcp2/bin/python" "$here/py2.py" "${@:2}" ;;
	fastmcp | pydantic-ai | llama-index) set -- env FRAMEWORK="$1" "$mcp2/bin/python" "$here/frameworks.py" "${@:2}" ;;
	gosdk | mcpgo) set -- env DRIVER="[\"$programs/$1\"]" "$mcp2/bin/python" "$here/driver.py" "${@:2}" ;;
	java)
		set -- env DRIVER="[\"java\", \"-XX:TieredStopAtLevel=1\", \"-cp\", \"$java:$java/*\", \"JavaSdk\"]" \
			"$mcp2/bin/python" "$here/driver.py" "${@:2}"
		;;
	ts2-*) set -- env MCP_MODE="${1#*-}" node "$npm/ts2.mjs" "${@:2}" ;;
	ts1 | aisdk | langchainjs) set -- node "$npm/$1.mjs" "${@:2}" ;;
	*) set -- env FRAMEWORK="$1" "$mcp1/bin/python" "$here/frameworks.py" "${@:2}" ;;
	esac
	timeout 180 "$@"
}

# What a client hands over says which steps fit it: some call only what a list shows.
listed() {
	case $1 in
	langchain | haystack | smolagents | google-adk | llama-index | aisdk | langchainjs) echo --listed ;;
	esac
}

# The version that must be agreed on; some clients know the era of 2026-07-28 and use it where the server does.
protocol() {
	case $1 in
	*-auto-fastmcp-* | fastmcp-fastmcp-* | pydantic-ai-fastmcp-* | gosdk-fastmcp-* | mcpgo-fastmcp-* | aisdk-fastmcp-*) echo 2026-07-28 ;;
	*) echo 2025-11-25 ;;
	esac
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
		for client in $(clients "$server"); do
			cat <<-END
				  - name: $client-$server
				    ${url[$server]:+url: ${url[$server]}}
				    defaultActions: {prompts: Allow, resources: Allow, requests: Allow, other: Allow}
				    tools:
				    - name: ${tools[0]}
				      validations:
				      - expression: "!has(args.message) || args.message != 'forbidden'"
				        message: This word is for people.
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
# serve NAME PATH PORT COMMAND...: starts a server; behind a forwarder that hangs up when it is asked to, but not with --direct.
serve() {
	local name=$1 path=$2 behind=$3; shift 3
	start "$logs/$name.log" "$@"
	wait_port "$behind" 30 "$name"
	url[$name]=http://127.0.0.1:$behind$path
	[ ! "$direct" ] || return 0
	port && start "$logs/$name-hangup.log" "$mcp2/bin/python" "$here/hangup.py" "$port" "$behind"
	wait_port "$port" 30 "the forwarder of $name"
	url[$name]=http://127.0.0.1:$port$path
}
# Frameworks that read one page of a list must get the first one that has a tool.
pages=; [ "$direct" ] || pages=2
port && serve everything-http /mcp "$port" env PORT="$port" "$everything" streamableHttp
port && serve everything-sse /sse "$port" env PORT="$port" "$everything" sse
port && serve fastmcp-http /mcp "$port" "$mcp2/bin/python" "$here/fastmcp_server.py" http "$port" $pages
command[everything-stdio]="\"$everything\", \"stdio\""
command[fastmcp-stdio]="\"$mcp2/bin/python\", \"$here/fastmcp_server.py\", \"stdio\""

if [ ! "$direct" ]; then
	policy everything-http everything-sse fastmcp-http >"$logs/policy.yaml"
	# A policy for stdio has no url.
	policy everything-stdio fastmcp-stdio >"$logs/policy-stdio.yaml"
	port && listen=127.0.0.1:$port
	start "$logs/sidecar.log" "$sidecar" run --policy "$logs/policy.yaml" --listen "$listen" --max-body 32768 \
		--metrics-listen "127.0.0.1:$(free_port)" --admin-listen "127.0.0.1:$(free_port)"
	wait_port "$port" 10 "the sidecar ($logs/sidecar.log)"
fi

# run_client CLIENT SERVER: runs the steps of one client at one server.
run_client() {
	local client=$1 server=$2 name=$1-$2 transport=${2##*-} flags=$direct target steps checks good bad since
	flags+=" $(listed "$client")"
	if [ ! "$direct" ]; then
		flags+=" --refused"
		# Over stdio, a server that hangs up has ended.
		[ "$transport" = stdio ] || flags+=" --failed"
	fi
	tools "$server"
	# shellcheck disable=SC2086
	steps=$("$mcp2/bin/python" "$here/steps.py" $flags "${tools[@]}" tests/sdk)
	checks=$(($(grep -o '"what"' <<<"$steps" | wc -l) + 1))
	case $transport$direct in
	stdio)
		target="[\"$sidecar\", \"stdio\", \"--max-body\", \"32768\", \"--policy\", \"$logs/policy-stdio.yaml\","
		target+=" \"--server\", \"$name\", \"--\", ${command[$server]}]"
		;;
	stdio*) target="[${command[$server]}]" ;;
	*--direct) target=${url[$server]} ;;
	*) target=http://$listen/$name ;;
	esac
	since=$EPOCHREALTIME
	client "$client" "$target" "$transport" "$(protocol "$name")" "$steps" >"$logs/$name.out" 2>"$logs/$name.err" ||
		echo "FAIL exit code $?" >>"$logs/$name.out"
	# Steps that a client did not reach count as failed.
	good=$(grep -c '^ok ' "$logs/$name.out" || true)
	bad=$((checks - good))
	if grep -q '^FAIL ' "$logs/$name.out" && [ "$bad" = 0 ]; then bad=1; fi
	printf '%-13s %-17s %7d %7d %8.1f\n' "$client" "$server" "$good" "$bad" \
		"$(awk "BEGIN {print $EPOCHREALTIME - $since}")" >"$logs/$name.result"
	grep '^FAIL ' "$logs/$name.out" | sed 's/^/    /' >>"$logs/$name.result" || true
}

runs=()
for server in "${servers[@]}"; do
	for client in $(clients "$server"); do
		case " ${ONLY-$client} " in *" $client "*) runs+=("$client $server") ;; esac
	done
done
# A client waits most of the time, so more of them run at once than there are processors.
jobs=$(($(nproc) + 1)) running=0
for run in "${runs[@]}"; do
	if [ "$running" = "$jobs" ]; then wait -n || true; else running=$((running + 1)); fi
	# shellcheck disable=SC2086
	(trap - EXIT; run_client $run) &
done
printf '%-13s %-17s %7s %7s %8s\n' client server passed failed seconds
for run in "${runs[@]}"; do
	name=${run/ /-}
	until [ -s "$logs/$name.result" ]; do sleep 0.1; done
	cat "$logs/$name.result"
	read -r _ _ good bad _ <"$logs/$name.result"
	passed=$((passed + good)) failed=$((failed + bad))
done
[ "$failed" = 0 ] || echo "logs: $logs"
summary sdk
