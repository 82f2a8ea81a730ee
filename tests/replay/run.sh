#!/usr/bin/env bash
# Tests `toolweir-sidecar replay` with the release binary: a million lines in less than 10 s and 100 MiB, with and without arguments; and
# what the demo records, decided anew by the same policy, and with its limit halved.

. "$(dirname "$0")/../lib.sh"

here=$ROOT/tests/replay
need python3 "apt-get install python3"
sidecar=${SIDECAR:-$(sidecar)}
python=$(python_env demo mcp==2.3.0)/bin/python
work=$(mktemp -d)
trap 'stop_all; rm -rf "$work"' EXIT
export DETAIL=1

cat >"$work/million.yaml" <<'END'
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: facebook, namespace: default}
spec:
  servers:
  - name: facebook
    url: http://facebook.example/mcp
    tools:
    - name: send_dm_to_user
      validations: [{expression: "args.amount <= 50"}]
      limits: [{max: 30, window: minute}, {max: 5, window: minute, key: args.user}]
    - name: get_*
      limits: [{max: 1000, window: minute, scope: Session}, {max: 100000, window: hour, scope: Workload}]
    - name: "*"
      maxConcurrent: 4
END
million() {
	python3 "$here/make_log.py" 1000000 "$@" >"$work/million.log"
	python3 "$here/check.py" million "$sidecar" "$work/million.yaml" "$work/million.log"
	rm "$work/million.log"
}
check "a million lines with hashes of arguments" million
check "a million lines with arguments" million arguments

# record POLICY LOG: has the agent of the demo make its calls through a sidecar with a policy that PolicyLayer's file gives.
record() {
	local server_port proxy_port server
	server_port=$(free_port) proxy_port=$(free_port)
	server=http://127.0.0.1:$server_port/mcp
	start "$work/server.err" "$python" "$ROOT/tests/demo/just_facebook.py" "$server_port" "$work/delivered.jsonl"
	wait_port "$server_port" 30 "just_facebook.py"
	"$sidecar" import "$ROOT/tests/demo/policylayer.json" --server facebook --url "$server" >"$1" 2>"$work/import.err"
	local flags=(--listen "127.0.0.1:$proxy_port" --metrics-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0)
	# shellcheck disable=SC2016
	start "$work/sidecar.err" bash -c 'exec "${@:2}" >"$1"' - "$2" "$sidecar" run --policy "$1" "${flags[@]}"
	wait_port "$proxy_port" 10 "the sidecar"
	"$python" "$ROOT/tests/demo/agent.py" "http://127.0.0.1:$proxy_port/facebook" >"$work/agent.out"
	# The lines gather for 20 ms.
	local attempt
	for attempt in {1..50}; do [ "$(wc -l <"$2")" -ge 36 ] || sleep 0.1; done
	[ "$(wc -l <"$2")" = 36 ] || fail "the audit log has $(wc -l <"$2") lines, not 36, after $attempt looks"
}
record "$work/policy.yaml" "$work/audit.jsonl"
check "the calls of the demo" python3 "$here/check.py" demo "$sidecar" "$work/policy.yaml" "$work/audit.jsonl"

summary replay
