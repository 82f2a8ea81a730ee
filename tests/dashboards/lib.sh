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
