#!/usr/bin/env bash
# Tests dashboards and alerts without a cluster: the generator, the lint rules, every query against sample metrics, and the types of
# Grafana. UPDATE_GOLDEN=1 rewrites the dashboards. live.sh tests them with a cluster.

. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/dashboards/lib.sh"

python=$(dashboards_python)
prometheus=$(prometheus_bin)
out=$TARGET/test-dashboards
rm -rf "$out" && mkdir -p "$out"

[ "${UPDATE_GOLDEN-}" != 1 ] || "$python" "$ROOT/charts/dashboards/generate.py"
check "the dashboards are up to date with charts/dashboards" "$python" "$ROOT/charts/dashboards/generate.py" --check
for rule in $("$python" "$DASHBOARDS/lint.py" --list); do check "lint: $rule" "$python" "$DASHBOARDS/lint.py" "$rule"; done
check "the lint finds faults" "$python" "$DASHBOARDS/lint_test.py"

cp "$ROOT/charts/toolweir/alerts.yaml" "$DASHBOARDS/alerts_test.yaml" "$out/"
check "promtool check rules" "$prometheus/promtool" check rules --lint-fatal "$out/alerts.yaml"
check "promtool test rules" "$prometheus/promtool" test rules "$out/alerts_test.yaml"

# Every query, against an hour of sample metrics.
end=$(date +%s) port=$(free_port)
"$python" "$DASHBOARDS/sample.py" "$end" >"$out/sample.om"
"$prometheus/promtool" tsdb create-blocks-from openmetrics "$out/sample.om" "$out/data" >"$out/blocks.log"
echo 'global: {}' >"$out/empty.yaml"
start "$out/prometheus.log" "$prometheus/prometheus" --config.file "$out/empty.yaml" --storage.tsdb.path "$out/data" \
	--storage.tsdb.retention.time 1d --web.listen-address "127.0.0.1:$port"
wait_port "$port" 20 prometheus
for i in $(seq 100); do ! curl -sf "http://127.0.0.1:$port/-/ready" >/dev/null || break; sleep 0.1; done
url=http://127.0.0.1:$port
check "every query shows something" "$python" "$DASHBOARDS/ask.py" "$url" --end "$end"
check "every query shows something for one namespace" "$python" "$DASHBOARDS/ask.py" "$url" --end "$end" --set namespace=research
check "calls that ended before the first scrape count" "$python" "$DASHBOARDS/born.py" "$url" "$end"

types() {
	local dir
	dir=$(node_env grafana-schema @grafana/schema@13.2.3 typescript@5.9.3) || return
	"$python" "$DASHBOARDS/typed.py" "$dir/check"
	(cd "$dir" && node_modules/.bin/tsc --noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext --target es2022 check/*.ts)
}
check "the JSON has the types of @grafana/schema" types

[ "$failed" = 0 ] || echo "files: $out"
summary dashboards
