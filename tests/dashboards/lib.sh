# What the tests of dashboards share: the environment of their Python, and Prometheus. Source it after tests/lib.sh.

DASHBOARDS=$ROOT/tests/dashboards
export PYTHONDONTWRITEBYTECODE=1

dashboards_python() { echo "$(python_env dashboards 'grafana-foundation-sdk==1769699998!10.1.0' promql-parser==0.11.0 pyyaml==6.0.4)/bin/python"; }

# prometheus_bin: prints the folder with prometheus and promtool: those of the machine, else Debian's package, unpacked and not installed.
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
		# The folder is root's, and apt's own user cannot write there; it says so and goes on.
		(cd "$work" && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2
		dpkg -x "$work"/prometheus_*.deb "$work/root"
		mkdir -p "$dir"
		mv "$work"/root/usr/bin/{prometheus,promtool} "$dir/"
		rm -rf "$work"
	fi
	echo "$dir"
}

# prometheus_kubernetes_bin: the same, of the Go module: Debian's package cannot find anything through the Kubernetes API.
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
			# Of the ways to find targets only this one.
			go build -trimpath -tags remove_all_sd,enable_kubernetes_sd -ldflags '-s -w' -o "$dir/" \
				github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool
		) >&2
		rm -rf "$src"
		echo "$version" >"$dir/.made-from"
	fi
	echo "$dir"
}
