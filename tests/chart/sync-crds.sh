#!/usr/bin/env bash
# Copies the CRDs from crds/generated into the chart. `sync-crds.sh --check` fails if they differ.
. "$(dirname "$0")/../lib.sh"

from=$ROOT/crds/generated to=$ROOT/charts/toolweir/files/crds
case ${1-} in
--check) diff -r "$from" "$to" || fail "the chart's CRDs differ from crds/generated; run tests/chart/sync-crds.sh" ;;
"")
	mkdir -p "$to"
	rm -f "$to"/*.yaml
	cp "$from"/*.yaml "$to"
	;;
*) fail "usage: $0 [--check]" ;;
esac
