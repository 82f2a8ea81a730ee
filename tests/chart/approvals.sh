#!/usr/bin/env bash
# Holds the chart's ValidatingAdmissionPolicy for MCPApprovals, and the role of approvers, against what people, agents and the operator try,
# in a real API server with the chart's CRDs and roles.

. "$(dirname "$0")/../lib.sh"
. "$ROOT/tests/chart/apiserver.sh"
python=$(python_env chart pyyaml==6.0.4)/bin/python
export PYTHONDONTWRITEBYTECODE=1

out=$TARGET/test-approvals
rm -rf "$out" && mkdir -p "$out"
start_apiserver "$out"
"$BIN/helm" template toolweir "$ROOT/charts/toolweir" -n toolweir-system >"$out/chart.yaml"
"$python" "$ROOT/tests/chart/approvals.py" "$API" "$out/token" "$out/chart.yaml"
