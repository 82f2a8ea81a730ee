#!/usr/bin/env bash
# Shows Toolweir in a minute, without Kubernetes: an MCP server, what its tools can do, the policy that this suggests, and an agent with
# the sidecar in between. It prints what agent, server, metrics and audit log say about the same 36 calls, has a person approve one more, and fails if a number is wrong.
# Needs Rust and Python 3. SIDECAR=BINARY, TOOLWEIR=BINARY: these programs instead of building them.

. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/demo/lib.sh"

here=$ROOT/tests/demo
work=$(mktemp -d)
finish() {
	local code=$?
	stop_all
	# After a failure, the last lines of the logs usually have the cause.
	case $code in 0 | 130) ;; *) tail -v -n 5 "$work"/*.err >&2 ;; esac
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT

# entries NAMES: prints a suggested policy with the entries of these tools alone, and dots for the others.
entries() {
	awk -v names="$1" '
		function flush() {
			if (wanted) printf "%s", block
			else if (named && !dots) print "    ..."
			dots = !wanted; block = ""; named = 0
		}
		!listed { print; listed = /^    tools:/; next }
		/^    #/ && named { flush() }
		{ block = block $0 "\n" }
		/^    - name:/ { named = 1; wanted = $3 ~ "^(" names ")$" }
		END { flush() }'
}

# sees_tools COUNT: waits until the agent sees so many tools, by a policy that the sidecar is about to read.
sees_tools() {
	local sees
	for _ in 1 2 3 4 5; do
		sees=$(agent "$facebook" list)
		[ "$sees" != "$1" ] || break
	done
	expect "tools that the agent sees" "$1" "$sees"
	printf '\n   tools that the agent sees now: %s\n\n' "$sees"
}

# port PREFERRED: prints the port of the documentation, or another one if it is taken.
port() { if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then free_port; else echo "$1"; fi; }

echo "Building Toolweir and fetching the MCP SDK (the first time takes a few minutes) ..."
sidecar=${SIDECAR:-$(sidecar)}
toolweir=${TOOLWEIR:-$(toolweir)}
python=$(python_env demo mcp==2.3.0)/bin/python
agent() { "$python" "$here/agent.py" "$@"; }

step "An MCP server: a Facebook page"
server_port=$(free_port)
server=http://127.0.0.1:$server_port/mcp
start "$work/server.err" "$python" "$here/just_facebook.py" "$server_port" "$work/delivered.jsonl"
wait_port "$server_port" 30 "just_facebook.py"
offered=$(agent "$server" list)
echo "It listens on $server and offers $offered tools, delete_post among them." | indent
[ "$offered" -ge 30 ] || fail "the server offers $offered tools"

step "What its tools can do"
shown="get_page_posts|send_dm_to_user|delete_post"
printf '   $ toolweir tools %s\n' "$server"
"$toolweir" tools "$server" >"$work/tools"
grep -E "^(TOOL|$shown) " "$work/tools" | indent
echo "... and $((offered - 3)) others." | indent
expect "tools in the table" "$offered" "$(($(wc -l <"$work/tools") - 1))"

step "A policy: what Toolweir suggests"
printf '   $ toolweir suggest %s --server facebook >policy.yaml\n   $ cat policy.yaml\n' "$server"
"$toolweir" suggest "$server" --server facebook >"$work/policy.yaml"
entries "$shown" <"$work/policy.yaml" | indent
printf '   $ toolweir-sidecar check policy.yaml\n'
"$sidecar" check "$work/policy.yaml" | indent

step "The sidecar, with this policy"
proxy_port=$(port 15001) metrics_port=$(port 15020) admin_port=$(port 15000)
flags="--listen 127.0.0.1:$proxy_port --metrics-listen 127.0.0.1:$metrics_port --admin-listen 127.0.0.1:$admin_port"
# You are the user of sidecar and agent here.
asked="--approvals-socket approvals.sock --approvals-allow-same-user"
printf '   $ toolweir-sidecar run --policy policy.yaml %s \\\n       %s\n' "$flags" "$asked"
flags="$flags ${asked/approvals.sock/$work/approvals.sock}"
# The audit log is stdout; the sidecar's own log is stderr.
# shellcheck disable=SC2086,SC2016
start "$work/sidecar.err" bash -c 'exec "${@:2}" >"$1"' - "$work/audit.jsonl" "$sidecar" run --policy "$work/policy.yaml" $flags
metrics=http://127.0.0.1:$metrics_port
get() { "$python" -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=5).read().decode())' "$1"; }
wait_port "$proxy_port" 10 "the sidecar"
wait_port "$metrics_port" 10 "the sidecar's metrics"
get "$metrics/readyz" >/dev/null || fail "the sidecar is not ready"

facebook=http://127.0.0.1:$proxy_port/facebook
step "An agent, at $facebook"
shown_tools=$(grep -c '^      limits:' "$work/policy.yaml")
agent "$facebook" "$shown_tools" >"$work/agent.out" || { indent <"$work/agent.out"; exit 1; }
indent <"$work/agent.out"

# The README shows the first lines of this. What is left until a place comes free may differ.
head -4 "$work/agent.out" | sed -E 's/again in [0-9]+ s/again in 61 s/' | while IFS= read -r line; do
	grep -qxF "   $line" "$ROOT/README.md" || fail "README.md does not have: $line"
done

step "What the server's own log says"
delivered() { grep -c "\"tool\": \"$1\"" "$work/delivered.jsonl" || true; }
printf '   send_dm_to_user: %s delivered\n   delete_post:     %s delivered\n' "$(delivered send_dm_to_user)" "$(delivered delete_post)"
expect "direct messages that the server got" 30 "$(delivered send_dm_to_user)"
expect "deletions that the server got" 0 "$(delivered delete_post)"
expect "calls that the server got" 30 "$(wc -l <"$work/delivered.jsonl")"

step "What $metrics/metrics says"
get "$metrics/metrics" >"$work/metrics"
grep '^toolweir_tool_calls_total{.* [1-9]' "$work/metrics" | indent || fail "no toolweir_tool_calls_total among the metrics"
# calls LABEL...: prints the sum of the series that have all of these labels.
calls() {
	local label series
	series=$(grep '^toolweir_tool_calls_total{' "$work/metrics")
	for label in "$@"; do series=$(grep -F "$label" <<<"$series" || true); done
	awk '{sum += $NF} END {print sum + 0}' <<<"$series"
}
expect "allowed in the metrics" 30 "$(calls 'tool="send_dm_to_user"' 'decision="allowed"')"
expect "denied in the metrics" 5 "$(calls 'tool="send_dm_to_user"' 'decision="denied"' 'reason="rate_limit"')"
expect "delete_post in the metrics" 1 "$(calls 'tool="delete_post"' 'decision="denied"' 'reason="denied"')"
expect "all calls in the metrics" 36 "$(calls)"

step "What the audit log says: one line for each call; here the first that passed and the first that did not"
decided() { grep -E "\"decision\": ?\"$1\"" "$work/audit.jsonl" || true; }
decided allowed | sed -n 1p | indent
echo
decided denied | sed -n 1p | indent
expect "allowed in the audit log" 30 "$(decided allowed | wc -l)"
expect "denied in the audit log" 6 "$(decided denied | wc -l)"

step "A call that a person must approve: delete_post"
entry="      approval: {message: People delete posts., show: [args.post_id]}"
sed "/name: delete_post\$/,/reason:/ {/action: Deny/d; s/^ *reason: .*/$entry/}" "$work/policy.yaml" >"$work/asking"
mv "$work/asking" "$work/policy.yaml"
grep -A1 'name: delete_post$' "$work/policy.yaml" | indent
sees_tools $((shown_tools + 1))
printf '   The agent calls delete_post, and waits.\n\n   $ toolweir-sidecar approvals --socket approvals.sock\n'
agent "$facebook" delete 104255_1 >"$work/deleted" 2>&1 &
STARTED+=($!)
approvals() { "$sidecar" approvals --socket "$work/approvals.sock" "$@"; }
request=
for _ in {1..100}; do
	approvals >"$work/waiting" 2>/dev/null
	request=$(awk 'NR == 2 {print $1}' "$work/waiting")
	[ -z "$request" ] || break
	sleep 0.1
done
indent <"$work/waiting"
[ -n "$request" ] || fail "no call waits for a person"
expect "deletions before a person has decided" 0 "$(delivered delete_post)"
printf '   $ toolweir-sidecar approvals --socket approvals.sock approve %s\n' "$request"
approvals approve "$request" >"$work/decided"
indent <"$work/decided"
# The README shows these lines, of another request.
cat "$work/waiting" "$work/decided" | sed -E 's/^(approved )?delete-post-[^ ;]*/\1delete-post-t2rwh6vd2f/; s/  [0-9]+s     9m[0-9]+s  /  0s     9m59s  /' | while IFS= read -r line; do
	grep -qxF "   $line" "$ROOT/README.md" || fail "README.md does not have: $line"
done
wait "${STARTED[-1]}" || fail "the agent's call failed: $(cat "$work/deleted")"
printf '\n   The call goes on, and the model reads: %s\n\n   The audit log has who approved it:\n' "$(tr -d ' \n' <"$work/deleted")"
step_of() { grep -F "\"event\":\"approval\",\"step\":\"$1\"" "$work/audit.jsonl" || true; }
step_of approved | indent
for it in requested approved used; do expect "steps '$it' in the audit log" 1 "$(step_of "$it" | wc -l)"; done
expect "deletions that the server got" 1 "$(delivered delete_post)"
expect "calls that the server got" 31 "$(wc -l <"$work/delivered.jsonl")"
expect "allowed in the audit log" 31 "$(decided allowed | wc -l)"
expect "denied in the audit log" 6 "$(decided denied | wc -l)"

step "Another policy, while the sidecar runs: PolicyLayer's file, imported"
cat "$here/policylayer.json" | indent
printf '\n   $ toolweir-sidecar import policylayer.json --server facebook --url %s >policy.yaml\n   $ cat policy.yaml\n' "$server"
"$sidecar" import "$here/policylayer.json" --server facebook --url "$server" >"$work/imported"
mv "$work/imported" "$work/policy.yaml"
indent <"$work/policy.yaml"
sees_tools 1

printf '%sAgent, server, metrics and audit log agree: 30 delivered, 5 over the limit, nothing deleted but what a person approved.%s\n' "$bold" "$plain"
