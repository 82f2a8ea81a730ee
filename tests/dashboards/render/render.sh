#!/usr/bin/env bash
# Draws both dashboards with the data of a Prometheus.
#
#   render.sh PROMETHEUS FOLDER RANGE_SECONDS [RATE_SECONDS [END]]
#
# writes dashboard-denials.png, dashboard-denials-top.png and dashboard-fleet.png to FOLDER. The panels are those of Perses, since no
# package registry has Grafana.
. "$(dirname "$0")/../../lib.sh"
. "$ROOT/tests/dashboards/lib.sh"

[ $# -ge 3 ] || fail "usage: render.sh PROMETHEUS FOLDER RANGE_SECONDS [RATE_SECONDS [END]]"
url=$1 to=$2 range=$3 rate=${4:-20} end=${5:-$(date +%s)}
here=$DASHBOARDS/render
need chromium "apt-get install chromium fonts-dejavu-core"
python=$(dashboards_python)
# The peer dependencies of Perses contradict each other.
dir=$(node_env perses --legacy-peer-deps \
	@perses-dev/{core,components,dashboards,plugin-system,explore}@0.52.0 @perses-dev/prometheus-plugin@0.53.4 \
	@perses-dev/timeseries-chart-plugin@0.10.2 @perses-dev/stat-chart-plugin@0.10.0 @perses-dev/table-plugin@0.8.1 \
	react@18 react-dom@18 @mui/material@6 @emotion/react@11 @emotion/styled@11 @tanstack/react-query@4 @hookform/resolvers@3 \
	date-fns@4 date-fns-tz@3 echarts@5.5.0 lodash@4 use-resize-observer@9 react-hook-form@7.51.3 immer@10 react-router-dom@6 \
	use-query-params@2 esbuild@0.25 playwright-core@1)
cp "$here/app.jsx" "$dir/app.jsx"
# A single copy of each package, or React contexts do not work.
(cd "$dir" && node_modules/.bin/esbuild app.jsx --bundle --format=esm --target=es2022 --outfile=app.js --log-level=error --minify \
	--loader:.woff=dataurl --loader:.woff2=dataurl --loader:.svg=dataurl --define:process.env.NODE_ENV='"production"' --define:global=globalThis \
	--alias:@tanstack/react-query=./node_modules/@tanstack/react-query)
mkdir -p "$to"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$here/plain.py" "$work/boards.json" "$end" "$range" "$rate"
node "$here/draw.mjs" "$dir/node_modules" "$(command -v chromium)" "$url" "$to" "$work/boards.json"
