#!/usr/bin/env bash
# Tests dashboards and alerts on a real cluster. A Prometheus finds sidecars and operators through the Kubernetes API, and agents make
# calls. Then every query of every panel, and every metric that an alert uses, must return something.
#
# If KUBECONFIG is set, it uses that cluster; this machine must be able to reach its pods. Otherwise it uses the node of
# tests/cluster/node.sh. LIVE_SECONDS: how long agents make calls. PICTURES=1: draw both dashboards into docs/img. KEEP=1: leave
# everything running.
. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/cluster/cluster.sh"
. "$ROOT/tests/dashboards/lib.sh"

SECONDS_OF_CALLS=${LIVE_SECONDS:-150} DETAIL=1
here=$DASHBOARDS/live out=$TARGET/live made=
rm -rf "$out" && mkdir -p "$out"
finish() {
	local code=$?
	trap - EXIT
	[ "$code" = 0 ] || [ "$code" = 130 ] || [ ! "$made" ] || trouble >&2
	if [ "${KEEP-}" = 1 ] && [ "$made" ]; then
		echo "Prometheus is left running: $url, process ${STARTED[*]}"
		STARTED=()
	fi
	stop_all
	if [ "${KEEP-}" != 1 ] && [ ! "$NODE_STARTED" ] && [ "$made" ]; then
		kubectl delete namespace agents research tools --ignore-not-found --timeout=120s >/dev/null || code=1
		kubectl delete clusterrole,clusterrolebinding toolweir-test-prometheus --ignore-not-found >/dev/null || code=1
		helm uninstall toolweir -n toolweir-system --ignore-not-found --wait >/dev/null || code=1
		kubectl delete namespace toolweir-system --ignore-not-found --timeout=120s >/dev/null || code=1
		kubectl delete crd mcppolicies.toolweir.dev mcpclusterpolicies.toolweir.dev mcptoolpins.toolweir.dev --ignore-not-found >/dev/null || code=1
	fi
	cluster_down || code=1
	exit "$code"
}
trap finish EXIT
trouble() {
	kubectl get pods,mcppolicies,mcpclusterpolicies -A || true
	kubectl -n toolweir-system logs -l app.kubernetes.io/component=operator --tail=15 --prefix || true
	tail -5 "$out/prometheus.log" || true
}

python=$(dashboards_python)
prometheus=$(prometheus_kubernetes_bin)
cluster_up operator sidecar agent store
for namespace in agents research tools toolweir-system; do
	! kubectl get namespace "$namespace" >/dev/null 2>&1 || fail "the cluster already has a namespace $namespace; this test creates its own"
done
made=1 url=

echo "The operator, servers, policies, agents ..."
# The chart's own store, with this machine's redis-server under the names of Valkey. The node has no storage class.
helm install toolweir "$ROOT/charts/toolweir" -n toolweir-system --create-namespace --wait --timeout 180s -f "$CLUSTER/values.yaml" \
	--set sharedStore.embedded=true,sharedStore.store.persistence.enabled=false,sharedStore.budgetMilliseconds=1000 \
	--set sharedStore.store.image.repository=localhost/toolweir-store,sharedStore.store.image.pullPolicy=Never \
	--set-string "sharedStore.store.image.tag=${IMAGE_TAG:-e2e}" >/dev/null
for namespace in agents research tools; do kubectl create namespace "$namespace" >/dev/null; done
kubectl apply -f "$here/server.yaml" -f "$here/reader.yaml" >/dev/null
# This pod is older than the label of its namespace, so it has no sidecar.
kubectl -n agents run too-old --image=localhost/toolweir-agent:e2e --image-pull-policy=Never --labels=app=social-agent -- /opt/agent/wait.py >/dev/null
kubectl label namespace agents research toolweir.dev/inject=enabled >/dev/null
kubectl -n tools wait --for=condition=Ready pod/just-facebook pod/login --timeout=90s >/dev/null
kubectl apply -f "$here/policies.yaml" >/dev/null
# Only the webhook can refuse this policy, so its metrics have a refusal.
! sed 's/< 200/</' "$here/policies.yaml" | kubectl apply -f - >/dev/null 2>&1 || fail "a condition that does not compile was accepted"

echo "Prometheus ..."
umask 077
kubectl -n tools create token prometheus --duration=24h >"$out/token"
api=$(kubectl config view --raw --minify -o 'jsonpath={.clusters[0].cluster.server}')
ca=$(kubectl config view --raw --minify --flatten -o 'jsonpath={.clusters[0].cluster.certificate-authority-data}')
base64 -d <<<"$ca" >"$out/ca.crt"
port=$(free_port) url=http://127.0.0.1:$port
"$python" "$DASHBOARDS/live.py" config "$out/prometheus.yaml" "$api" "$out/token" "$out/ca.crt"
check "promtool check config" "$prometheus/promtool" check config "$out/prometheus.yaml"
check "promtool check rules" "$prometheus/promtool" check rules --lint-fatal "$ROOT/charts/toolweir/alerts.yaml"
# No HTTP proxy between this machine and the pods.
start "$out/prometheus.log" env -u HTTP_PROXY -u HTTPS_PROXY -u http_proxy -u https_proxy "$prometheus/prometheus" \
	--config.file "$out/prometheus.yaml" --storage.tsdb.path "$out/data" --web.listen-address "127.0.0.1:$port"
wait_port "$port" 30 prometheus

kubectl apply -f "$here/agents.yaml" >/dev/null
kubectl -n agents rollout status deployment/social-agent --timeout=120s >/dev/null
kubectl -n research rollout status statefulset/research-agent --timeout=120s >/dev/null
echo "$SECONDS_OF_CALLS s of calls ..."
# Dry runs are reviewed too, so the metrics of admission have values.
reviews() {
	kubectl -n agents run reviewed --image=nobody --dry-run=server >/dev/null
	kubectl -n agents run reviewed --image=nobody --labels=toolweir.dev/inject=disabled --dry-run=server >/dev/null
	kubectl apply --dry-run=server -f "$here/policies.yaml" >/dev/null
	! sed 's/< 200/</' "$here/policies.yaml" | kubectl apply --dry-run=server -f - >/dev/null 2>&1 || fail "a condition that does not compile was accepted"
}
end=$((SECONDS + SECONDS_OF_CALLS))
while [ $SECONDS -lt $end ]; do
	reviews
	sleep 5
done

# The pod too-old is not a target, since it has no sidecar. The Job's pod is one: its agent waits after its last call.
check "every target is up" "$python" "$DASHBOARDS/live.py" targets "$url" 4
metrics() { kubectl get --raw "/api/v1/namespaces/$1/pods/$2:$3/proxy/metrics"; }
sidecar_metrics() { metrics agents "$(kubectl -n agents get pods -l app=social-agent,pod-template-hash -o 'jsonpath={.items[0].metadata.name}')" 15020 | "$prometheus/promtool" check metrics; }
operator_metrics() { metrics toolweir-system "$(kubectl -n toolweir-system get pods -l app.kubernetes.io/component=operator -o 'jsonpath={.items[0].metadata.name}')" 8080 | "$prometheus/promtool" check metrics; }
check "promtool check metrics: sidecar" sidecar_metrics
check "promtool check metrics: operator" operator_metrics
check "every query shows something" "$python" "$DASHBOARDS/ask.py" "$url" --range $((SECONDS_OF_CALLS + 60)) --rate 20 --cluster
check "alerts" "$python" "$DASHBOARDS/live.py" alerts "$url"
if [ "${PICTURES-}" = 1 ]; then check "pictures" "$DASHBOARDS/render/render.sh" "$url" "$ROOT/docs/img" "$SECONDS_OF_CALLS" 20; fi

summary live
