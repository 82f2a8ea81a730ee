# Shared by the tests of dashboards: their Python environment, and Prometheus. Source it after tests/lib.sh.

DASHBOARDS=$ROOT/tests/dashboards
export PYTHONDONTWRITEBYTECODE=1

dashboards_python() { echo "$(python_env dashboards 'grafana-foundation-sdk==1769699998!10.1.0' promql-parser==0.11.0 pyyaml==6.0.4)/bin/python"; }

# prometheus_bin: prints the folder of prometheus and promtool. If the machine has none, it unpacks Debian's package into the cache.
prometheus_bin() {
	local dir=$CACHE/prometheus work
	if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
		dirname "$(command -v promtool)"
		return
	fi
	if ! [ -x "$dir/promtool" ]; then
		need apt-get "Prometheus 2.42 or later: https://prometheus.io/download"
		need dpkg "Prometheus 2.42 or later: https://prometheus.io/download"
		work=$(mktemp -d "$CACHE/prometheus.XXXXXX")
		# apt warns that its own user cannot write to the folder, and goes on.
		(cd "$work" && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2
		dpkg -x "$work"/prometheus_*.deb "$work/root"
		mkdir -p "$dir"
		mv "$work"/root/usr/bin/{prometheus,promtool} "$dir/"
		rm -rf "$work"
	fi
	echo "$dir"
}

# prometheus_kubernetes_bin: the same, built from the Go module, since Debian's package cannot discover targets in Kubernetes.
prometheus_kubernetes_bin() {
	local dir=$CACHE/prometheus-kubernetes version=v0.313.5 src
	if ! stamp "$dir" "$version"; then
		need go "https://go.dev/dl (Go 1.26 or later)"
		rm -rf "$dir" && mkdir -p "$dir"
		src=$(mktemp -d "$CACHE/prometheus.XXXXXX")
		echo "building Prometheus $version ..." >&2
		(
			cd "$src"
			printf 'module prometheus\n\ngo 1.26.0\n' >go.mod
			printf '//go:build tools\n\npackage tools\n\nimport (\n\t_ "github.com/prometheus/prometheus/cmd/prometheus"\n\t_ "github.com/prometheus/prometheus/cmd/promtool"\n)\n' >tools.go
			go get "github.com/prometheus/prometheus@$version"
			go mod tidy
			# Only one kind of service discovery.
			go build -trimpath -tags remove_all_sd,enable_kubernetes_sd -ldflags '-s -w' -o "$dir/" \
				github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool
		) >&2
		rm -rf "$src"
		echo "$version" >"$dir/.made-from"
	fi
	echo "$dir"
}
