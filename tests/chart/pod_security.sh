#!/usr/bin/env bash
# Holds the chart's ValidatingAdmissionPolicy against the fixtures of k8s.io/pod-security-admission, in a real API server: what the Pod
# Security Standard `restricted` refuses, the policy refuses, with and without the init container of capture.

. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/chart/apiserver.sh"
here=$ROOT/tests/chart

command -v go >/dev/null || fail "needs 'go' 1.26 or later for the fixtures; install it from https://go.dev/dl"
python=$(python_env chart pyyaml==6.0.4)/bin/python
export PYTHONDONTWRITEBYTECODE=1

out=$TARGET/test-pod-security
rm -rf "$out" && mkdir -p "$out"
start_apiserver "$out"

# The fixtures have the version of the API server.
version=v0.$("$BIN/kube-apiserver" --version | sed -E 's/.* v1\.([0-9.]+).*/\1/')
fixtures=$(cd "$out" && go mod download -json "k8s.io/pod-security-admission@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/test/testdata
[ -d "$fixtures" ] || fail "k8s.io/pod-security-admission@$version has no fixtures"

"$BIN/helm" template toolweir "$ROOT/charts/toolweir" -n toolweir-system --set sidecar.ports.admin=16000 >"$out/chart.yaml"
"$python" "$here/pod_security.py" "$API" "$out/token" "$out/chart.yaml" "$fixtures" "$ROOT/operator/tests/pods"
