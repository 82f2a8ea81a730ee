#!/usr/bin/env bash
# Tests the chart without a cluster: lint, golden files, rules for each rendering, the schema, the README and the CRDs.
# UPDATE_GOLDEN=1 rewrites the golden files and the README.

. "$(dirname "$0")/../lib.sh"
here=$ROOT/tests/chart chart=$ROOT/charts/toolweir

helm=$(command -v helm || true)
[ "$helm" ] || helm=$CACHE/node/bin/helm
[ -x "$helm" ] || fail "needs 'helm' (3 or 4); install it, or build it with: tests/cluster/node.sh build"
python=$(python_env chart pyyaml==6.0.4)/bin/python
export PYTHONDONTWRITEBYTECODE=1
# Ignores the user's settings of Helm, and any cluster.
for variable in $(compgen -e HELM_ || true); do unset "$variable"; done
unset KUBECONFIG

out=$TARGET/test-chart
rm -rf "$out" && mkdir -p "$out"

# heads FILE: prints a rendering with only the heads of CRDs, dashboards and alerts. Other checks compare these with their sources.
heads() {
	awk '/^---$/ { skip = 0; crd = 0; kind = "" } /^# Source: .*\/crds\.yaml$/ { crd = 1 } /^kind: / { kind = $2 } !skip { print }
		crd && /^spec:$/ { print "  # as in crds/generated"; skip = 1 }
		kind == "PrometheusRule" && /^spec:$/ { print "  # as in alerts.yaml"; skip = 1 }
		kind == "ConfigMap" && /^  toolweir-.*\.json: \|$/ { print "    # as in dashboards"; skip = 1 }' "$1"
}
# render VALUES RELEASE NAMESPACE MONITORING: renders the chart, with or without the CRDs of the Prometheus operator.
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

while read -r values release namespace crds monitoring approvals; do
	check "$values: lint" "$helm" lint --strict --quiet "$chart" -n "$namespace" -f "$here/values/$values.yaml"
	check "$values: renders" render "$values" "$release" "$namespace" "$monitoring"
	check "$values: equals the golden file" golden "$values"
	check "$values: objects have names, labels, their namespace" rendered parses "$out/$values.yaml" "$namespace"
	check "$values: names, ports and selectors agree" rendered names "$out/$values.yaml" "$namespace"
	check "$values: config.yaml is valid for the operator" rendered configuration "$out/$values.yaml" "$namespace"
	check "$values: webhooks match opted-in namespaces and no protected ones" rendered webhooks "$out/$values.yaml" "$namespace"
	check "$values: rights equal rbac.txt" rendered rbac "$out/$values.yaml" "$namespace"
	check "$values: the shared store uses what is mounted" rendered store "$out/$values.yaml" "$namespace"
	check "$values: approvals ($approvals)" rendered approvals "$out/$values.yaml" "$namespace" "$approvals"
	check "$values: images are pinned" rendered images "$out/$values.yaml" "$namespace"
	check "$values: pods meet the restricted standard" rendered restricted "$out/$values.yaml" "$namespace"
	check "$values: CRDs ($crds)" rendered crds "$out/$values.yaml" "$namespace" "$crds"
	check "$values: monitoring ($monitoring)" rendered monitoring "$out/$values.yaml" "$namespace" "$monitoring"
done <<-END
	defaults        toolweir  toolweir-system  keep  off          on
	minimal         gate      mcp              keep  off          off
	no-crds         toolweir  toolweir-system  none  off          on
	everything      toolweir  toolweir-system  drop  on           on
	annotated       toolweir  toolweir-system  keep  annotations  on
	store           toolweir  toolweir-system  keep  off          on
	embedded        toolweir  toolweir-system  keep  off          on
	embedded-plain  gate      mcp              keep  off          on
END

# refused "FLAGS => MESSAGE": the chart refuses the flags with this message.
refused() {
	local flags said
	read -ra flags <<<"${1%% => *}"
	if said=$("$helm" template toolweir "$chart" "${flags[@]}" 2>&1 >/dev/null); then
		echo "it was accepted"
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
notes() { # notes VALUES TEXT...: NOTES.txt contains the texts
	local said words
	said=$("$helm" install toolweir "$chart" --dry-run=client -n toolweir-system -f "$here/values/$1.yaml" | sed '1,/^NOTES:/d')
	for words in "${@:2}"; do
		grep -qF -- "$words" <<<"$said" || { printf '"%s" is missing in:\n%s\n' "$words" "$said"; return 1; }
	done
}
package() {
	local archive listed file
	"$helm" package "$chart" -d "$out"
	archive=$(echo "$out"/toolweir-*.tgz)
	listed=$(tar -tzf "$archive")
	for file in Chart.yaml README.md values.yaml values.schema.json files/crds/mcppolicies.yaml files/crds/mcpclusterpolicies.yaml \
		files/crds/mcpapprovals.yaml alerts.yaml dashboards/toolweir-denials.json dashboards/toolweir-fleet.json; do
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
no_guard() { # where nothing can check who decides, nobody is asked
	"$helm" template toolweir "$chart" -n toolweir-system --kube-version 1.29.0 >"$out/old.yaml" && rendered approvals "$out/old.yaml" toolweir-system off &&
		rendered rbac "$out/old.yaml" toolweir-system
}
made_password() { # without a password, the chart makes a new one each time, and writes it to the Secret only
	local first second
	first=$("$helm" template toolweir "$chart" -n toolweir-system --set sharedStore.embedded=true)
	second=$("$helm" template toolweir "$chart" -n toolweir-system --set sharedStore.embedded=true)
	[ "$(diff <(echo "$first") <(echo "$second") | grep -c '^[<>]')" = 2 ] || { echo "more than the password differs"; return 1; }
	echo "$first" >"$out/made.yaml"
	rendered store "$out/made.yaml" toolweir-system && rendered parses "$out/made.yaml" toolweir-system
}
check "on Kubernetes 1.29, approvals are off" no_guard
check "the chart makes the password of its own store" made_password
check "the chart's store serves TLS only, and loads a new certificate without a restart" "$here/store.sh" "$out/embedded.yaml"
check "the policy for captured namespaces is as strict as the Pod Security Standard" "$here/pod_security.sh"
check "only who may decides about MCPApprovals, once, and nobody changes what is approved" "$here/approvals.sh"
check "every value is in the schema and has an effect" "$python" "$here/values.py" "$helm"
check "README.md is up to date with values.yaml" readme
check "the CRDs are copies of crds/generated" "$here/sync-crds.sh" --check
check "NOTES.txt shows the next commands" notes defaults "kubectl label namespace agents toolweir.dev/inject=enabled" \
	"kubectl apply -f -" "kubectl -n agents get mcppolicies" "helm test toolweir -n toolweir-system"
check "NOTES.txt warns about a single operator, and that nobody can be asked" notes minimal "There is one operator." "Approvals are off"
check "NOTES.txt warns that uninstalling removes the CRDs" notes everything "removes the CRDs"
check "the chart can be packaged" package
check "appVersion equals the version of the workspace" versions
check "Kubernetes 1.28 is refused, 1.29 is not" old_cluster

[ "$failed" = 0 ] || echo "renderings: $out"
summary chart
