#!/usr/bin/env bash
# Shows Toolweir on Kubernetes: a node, the chart, a policy, an agent and an MCP server, and what each of them says. If KUBECONFIG is
# set, it uses that cluster. KEEP=1 leaves everything running, to look around; otherwise everything is removed at the end.
. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/cluster/cluster.sh"
. "$ROOT/tests/demo/lib.sh"

here=$CLUSTER/demo made=
work=$(mktemp -d)
finish() {
	local code=$?
	trap - EXIT
	stop_all
	case $code in 0 | 130) ;; *) [ ! "$made" ] || trouble >&2 ;; esac
	rm -rf "$work"
	if [ "${KEEP-}" != 1 ] && [ ! "$NODE_STARTED" ] && [ "$made" ]; then
		kubectl delete namespace agents tools --ignore-not-found --timeout=120s >/dev/null || code=1
		helm uninstall toolweir -n toolweir-system --ignore-not-found --wait >/dev/null || code=1
		kubectl delete namespace toolweir-system --ignore-not-found --timeout=120s >/dev/null || code=1
		kubectl delete crd mcppolicies.toolweir.dev mcpclusterpolicies.toolweir.dev mcptoolpins.toolweir.dev mcpapprovals.toolweir.dev --ignore-not-found >/dev/null || code=1
	fi
	cluster_down || code=1
	exit "$code"
}
trap finish EXIT
# trouble: prints the last messages of the pods, which usually have the cause of a failure.
trouble() {
	kubectl get pods,mcppolicies -A || true
	kubectl -n agents get events || true
	kubectl -n toolweir-system logs -l app.kubernetes.io/component=operator --tail=15 --prefix || true
	kubectl -n agents logs social-agent --all-containers --tail=15 --prefix || true
}

echo "Building the images and starting a node (the first time takes a few minutes) ..."
cluster_up operator sidecar agent
for namespace in agents tools toolweir-system; do
	! kubectl get namespace "$namespace" >/dev/null 2>&1 || fail "the cluster already has a namespace $namespace; the demo creates its own"
done
made=1

step "The cluster"
show kubectl get nodes

step "The operator"
printf '   $ helm install toolweir charts/toolweir -n toolweir-system --create-namespace --wait -f tests/cluster/values.yaml\n'
helm install toolweir "$ROOT/charts/toolweir" -n toolweir-system --create-namespace --wait --timeout 180s -f "$CLUSTER/values.yaml" >"$work/notes"
sed -n '/^NAME:/,/^REVISION:/p' "$work/notes" | indent
show kubectl -n toolweir-system get pods

step "An MCP server, and a namespace for agents that opts in"
show kubectl create namespace tools
show kubectl create namespace agents
show kubectl label namespace agents toolweir.dev/inject=enabled
kubectl apply -f "$here/server.yaml" | indent
kubectl -n tools wait --for=condition=Ready pod/just-facebook --timeout=90s | indent

step "A policy"
indent <"$here/policy.yaml"
printf '\n   $ kubectl apply -f policy.yaml\n'
kubectl apply -f "$here/policy.yaml" | indent

step "An agent: a pod that does not mention Toolweir"
grep -v '^#' "$here/agent.yaml" | indent
printf '\n   $ kubectl apply -f agent.yaml\n'
kubectl apply -f "$here/agent.yaml" | indent
kubectl -n agents wait --for=condition=Ready pod/social-agent --timeout=90s | indent
show kubectl -n agents get pod social-agent -o 'custom-columns=POD:.metadata.name,CONTAINERS:.spec.initContainers[*].name,AND:.spec.containers[*].name'

step "The status of the policy"
kubectl -n agents wait --for=condition=Programmed mcppolicy/facebook --timeout=30s >/dev/null
show kubectl -n agents get mcppolicies
expect "sidecars that enforce the policy" 1/1 "$(kubectl -n agents get mcppolicy facebook -o 'jsonpath={.status.sidecars}')"

step "What the agent saw"
for _ in $(seq 240); do
	kubectl -n agents logs social-agent -c agent >"$work/agent"
	! grep -q '^delete_post' "$work/agent" || break
	sleep 0.25
done
sleep 1
show kubectl -n agents logs social-agent -c agent
kubectl -n agents logs social-agent -c agent | grep -qF '30 delivered, 5 denied' || fail "the agent's log does not say 30 delivered, 5 denied"

step "What the server's own log says"
kubectl -n tools logs just-facebook >"$work/delivered"
delivered() { grep -c "\"tool\": \"$1\"" "$work/delivered" || true; }
printf '   send_dm_to_user: %s delivered\n   delete_post:     %s delivered\n' "$(delivered send_dm_to_user)" "$(delivered delete_post)"
expect "direct messages that the server got" 30 "$(delivered send_dm_to_user)"
expect "deletions that the server got" 0 "$(delivered delete_post)"

step "What the sidecar's metrics say"
kubectl get --raw /api/v1/namespaces/agents/pods/social-agent:15020/proxy/metrics >"$work/metrics"
grep -E '^toolweir_(tool_calls_total|policy_info|policy_connected)' "$work/metrics" | indent
calls() { awk -v decision="decision=\"$1\"" '/^toolweir_tool_calls_total/ && index($0, decision) { sum += $NF } END { print sum + 0 }' "$work/metrics"; }
expect "allowed in the metrics" 30 "$(calls allowed)"
expect "denied in the metrics" 6 "$(calls denied)"

step "A bad policy"
printf '   $ sed s/30/0/ policy.yaml | kubectl apply -f -\n'
sed 's/max: 30/max: 0/' "$here/policy.yaml" | kubectl apply -f - >"$work/bad" 2>&1 && fail "a limit of 0 was accepted"
indent <"$work/bad"

printf '\n%sAgent, server, metrics and status agree: 30 delivered, 5 over the limit, nothing deleted.%s\n' "$bold" "$plain"
