#!/usr/bin/env bash
# The chart, without a cluster: lint, renderings against golden files, what must hold of each rendering, what the schema
# refuses, the README and the CRDs. UPDATE_GOLDEN=1 writes the golden files and the README anew.

. "$(dirname "$0")/../lib.sh"
here=$ROOT/tests/chart chart=$ROOT/charts/toolweir

helm=$(command -v helm || true)
[ "$helm" ] || helm=$CACHE/node/bin/helm
[ -x "$helm" ] || fail "needs 'helm' (3 or 4); install it, or build it with: tests/cluster/node.sh build"
python=$(python_env chart pyyaml==6.0.4)/bin/python
export PYTHONDONTWRITEBYTECODE=1
# What the user of this machine has set up for Helm has no say here, and no cluster either.
for variable in $(compgen -e HELM_ || true); do unset "$variable"; done
unset KUBECONFIG

out=$TARGET/test-chart
rm -rf "$out" && mkdir -p "$out"
passed=0 failed=0
# check NAME COMMAND...: a line of the result; what the command said, if it failed.
check() {
	local said
	if said=$("${@:2}" 2>&1); then
		passed=$((passed + 1))
		printf 'ok    %s\n' "$1"
	else
		failed=$((failed + 1))
		printf 'FAIL  %s\n' "$1"
		head -40 <<<"$said" | sed 's/^/      /'
	fi
}

# The rendering as it is compared: of CRDs, dashboards and alerts the head alone, since the rest is compared with its source.
heads() {
	awk '/^---$/ { skip = 0; crd = 0; kind = "" } /^# Source: .*\/crds\.yaml$/ { crd = 1 } /^kind: / { kind = $2 } !skip { print }
		crd && /^spec:$/ { print "  # as in crds/generated"; skip = 1 }
		kind == "PrometheusRule" && /^spec:$/ { print "  # as in alerts.yaml"; skip = 1 }
		kind == "ConfigMap" && /^  toolweir-.*\.json: \|$/ { print "    # as in dashboards"; skip = 1 }' "$1"
}
# render VALUES RELEASE NAMESPACE MONITORING: with or without the CRDs of the Prometheus operator.
render() {
	local apis=()
	[ "$4" = off ] || apis=(--api-versions monitoring.coreos.com/v1)
	"$helm" template "$2" "$chart" -n "$3" -f "$here/values/$1.yaml" "${apis[@]}" >"$out/$1.yaml"
}
golden() {
	heads "$out/$1.yaml" >"$out/$1.golden.yaml"
	[ "${UPDATE_GOLDEN-}" != 1 ] || cp "$out/$1.golden.yaml" "$here/golden/$1.yaml"
	diff -u "$here/golden/$1.yaml" "$out/$1.golden.yaml"
}
rendered() { "$python" "$here/rendered.py" "$@"; }

while read -r values release namespace crds monitoring; do
	check "$values: lint" "$helm" lint --strict --quiet "$chart" -n "$namespace" -f "$here/values/$values.yaml"
	check "$values: renders" render "$values" "$release" "$namespace" "$monitoring"
	check "$values: is the golden file" golden "$values"
	check "$values: objects have names, labels, their namespace" rendered parses "$out/$values.yaml" "$namespace"
	check "$values: names, ports and selectors agree" rendered names "$out/$values.yaml" "$namespace"
	check "$values: config.yaml is of the operator's form" rendered configuration "$out/$values.yaml" "$namespace"
	check "$values: webhooks see who opted in, and nobody protected" rendered webhooks "$out/$values.yaml" "$namespace"
	check "$values: rights are those of rbac.txt" rendered rbac "$out/$values.yaml" "$namespace"
	check "$values: the shared store is reached with what is mounted" rendered store "$out/$values.yaml" "$namespace"
	check "$values: images are pinned" rendered images "$out/$values.yaml" "$namespace"
	check "$values: pods meet the restricted standard" rendered restricted "$out/$values.yaml" "$namespace"
	check "$values: CRDs ($crds)" rendered crds "$out/$values.yaml" "$namespace" "$crds"
	check "$values: monitoring ($monitoring)" rendered monitoring "$out/$values.yaml" "$namespace" "$monitoring"
done <<-END
	defaults    toolweir  toolweir-system  keep  off
	minimal     gate      mcp              keep  off
	no-crds     toolweir  toolweir-system  none  off
	everything  toolweir  toolweir-system  drop  on
	annotated   toolweir  toolweir-system  keep  annotations
	store       toolweir  toolweir-system  keep  off
	embedded    toolweir  toolweir-system  keep  off
	embedded-plain  gate  mcp              keep  off
END

# refused "FLAGS => MESSAGE"
refused() {
	local flags said
	read -ra flags <<<"${1%% => *}"
	if said=$("$helm" template toolweir "$chart" "${flags[@]}" 2>&1 >/dev/null); then
		echo "it was taken"
		return 1
	fi
	grep -qF -- "${1#* => }" <<<"$said" || { echo "it said: $said"; return 1; }
}
while read -r line; do
	case $line in "" | "#"*) ;; *) check "refused: ${line%% => *}" refused "$line" ;; esac
done <"$here/refused.txt"

readme() {
	[ "${UPDATE_GOLDEN-}" != 1 ] || "$python" "$here/readme.py"
	"$python" "$here/readme.py" --check
}
notes() { # notes VALUES WORDS...
	local said words
	said=$("$helm" install toolweir "$chart" --dry-run=client -n toolweir-system -f "$here/values/$1.yaml" | sed '1,/^NOTES:/d')
	for words in "${@:2}"; do
		grep -qF -- "$words" <<<"$said" || { printf 'nothing of "%s" in:\n%s\n' "$words" "$said"; return 1; }
	done
}
package() {
	local archive listed file
	"$helm" package "$chart" -d "$out"
	archive=$(echo "$out"/toolweir-*.tgz)
	listed=$(tar -tzf "$archive")
	for file in Chart.yaml README.md values.yaml values.schema.json files/crds/mcppolicies.yaml files/crds/mcpclusterpolicies.yaml \
		alerts.yaml dashboards/toolweir-denials.json dashboards/toolweir-fleet.json; do
		grep -qx "toolweir/$file" <<<"$listed" || { echo "$archive has no $file"; return 1; }
	done
	"$helm" template toolweir "$archive" -n toolweir-system | diff - "$out/defaults.yaml"
}
versions() {
	local app
	app=$(sed -n 's/^appVersion: //p' "$chart/Chart.yaml")
	grep -qx "version = \"$app\"" "$ROOT/Cargo.toml" || { echo "appVersion is $app, and the workspace has another version"; return 1; }
}
old_cluster() {
	! "$helm" template toolweir "$chart" --kube-version 1.28.9 && "$helm" template toolweir "$chart" --kube-version 1.29.0-eks-1 >/dev/null
}
made_password() { # the chart makes one where none is given, another one each time, and in no place but the Secret
	local first second
	first=$("$helm" template toolweir "$chart" -n toolweir-system --set sharedStore.embedded=true)
	second=$("$helm" template toolweir "$chart" -n toolweir-system --set sharedStore.embedded=true)
	[ "$(diff <(echo "$first") <(echo "$second") | grep -c '^[<>]')" = 2 ] || { echo "more than the password differs"; return 1; }
	echo "$first" >"$out/made.yaml"
	rendered store "$out/made.yaml" toolweir-system && rendered parses "$out/made.yaml" toolweir-system
}
check "a store of the chart has a password that the chart makes" made_password
check "the chart's store serves TLS alone, and takes a new certificate without a restart" "$here/store.sh" "$out/embedded.yaml"
check "every value is in the schema, and makes a difference" "$python" "$here/values.py" "$helm"
check "README.md is what values.yaml says" readme
check "the CRDs are copies of crds/generated" "$here/sync-crds.sh" --check
check "NOTES.txt says the next commands" notes defaults "kubectl label namespace agents toolweir.dev/inject=enabled" \
	"kubectl apply -f -" "kubectl -n agents get mcppolicies" "helm test toolweir -n toolweir-system"
check "NOTES.txt warns of a single operator" notes minimal "There is one operator."
check "NOTES.txt warns of CRDs that go" notes everything "removes the CRDs"
check "it can be packaged" package
check "appVersion is the workspace's version" versions
check "Kubernetes 1.28 is refused, 1.29 is not" old_cluster

[ "$failed" = 0 ] || echo "renderings: $out"
echo "chart: $passed passed, $failed failed"
[ "$failed" = 0 ]
