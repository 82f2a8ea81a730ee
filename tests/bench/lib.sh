# shellcheck shell=bash disable=SC2034
# Shared by the benchmarks. It sources ../lib.sh.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# bench: builds the benchmark program and prints its path. BENCH=BINARY: use this program instead.
bench() {
	if [ "${BENCH-}" ]; then echo "$BENCH"; return; fi
	need cargo "https://rustup.rs"
	cargo build --quiet --release --locked --manifest-path "$ROOT/tests/bench/Cargo.toml" -p toolweir-bench >&2 || return
	echo "$TARGET/release/toolweir-bench"
}

# work_dir: creates a temporary folder and prints its path. It is in memory if there is room, so that no disk is measured.
work_dir() {
	local base=${TMPDIR:-/tmp}
	[ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 2000000 ] 2>/dev/null && base=/dev/shm
	mktemp -d "$base/toolweir-bench.XXXXXX"
}

# policy_of URL LIMIT [FIELD]: prints a policy for the tool of the upstream at URL. FIELD is one more of the server.
policy_of() {
	cat <<-END
		apiVersion: toolweir.dev/v1alpha1
		kind: MCPPolicy
		metadata: {name: bench, namespace: bench}
		spec:
		  podSelector: {}
		  servers:
		  - name: bench
		    url: $1
		    tools:
		    - name: send_message
		      limits: [$2]
	END
	[ $# -lt 3 ] || echo "    $3"
}

# policy UPSTREAM_PORT LIMIT: the same for an upstream of this machine.
policy() { policy_of "http://127.0.0.1:$1/mcp" "$2"; }

# start_sidecar BINARY DIR UPSTREAM_PORT LIMIT AUDIT_LOG: starts the sidecar with one limit, as start_sidecar_with does.
start_sidecar() {
	policy "$3" "$4" >"$2/policy.yaml"
	start_sidecar_with "$1" "$2" "$5"
}

# start_sidecar_with BINARY DIR AUDIT_LOG: starts the sidecar with DIR/policy.yaml and logs to DIR/sidecar.log. Sets SIDECAR_URL,
# SIDECAR_METRICS (a port) and SIDECAR_PID.
start_sidecar_with() {
	local port metrics admin
	port=$(free_port) metrics=$(free_port) admin=$(free_port)
	# shellcheck disable=SC2016 # $0 and $@ are the inner shell's
	start "$2/sidecar.log" bash -c 'exec "$@" >"$0"' "$3" "$1" run --policy "$2/policy.yaml" \
		--listen "127.0.0.1:$port" --metrics-listen "127.0.0.1:$metrics" --admin-listen "127.0.0.1:$admin"
	SIDECAR_URL=http://127.0.0.1:$port/bench SIDECAR_METRICS=$metrics SIDECAR_PID=${STARTED[-1]}
	(wait_port "$port" 10 "the sidecar") || { cat "$2/sidecar.log" >&2; exit 1; }
}

# nginx_binary: prints the path of the installed nginx, or of the one in Debian's package, unpacked in the cache.
nginx_binary() {
	PATH=$PATH:/usr/sbin command -v nginx && return
	local dir=$CACHE/nginx
	if [ ! -x "$dir/usr/sbin/nginx" ]; then
		mkdir -p "$dir"
		(cd "$dir" && apt-get -qq download nginx && dpkg -x nginx_*.deb .) >&2 || fail "needs 'nginx'; install it with: apt-get install nginx-light"
	fi
	"$dir/usr/sbin/nginx" -v 2>/dev/null || fail "nginx from $dir does not run; install it with: apt-get install nginx-light"
	echo "$dir/usr/sbin/nginx"
}

# nginx_stream_module: prints the path of nginx's module for connections that are not HTTP, installed or unpacked as nginx is.
nginx_stream_module() {
	local file=usr/lib/nginx/modules/ngx_stream_module.so dir=$CACHE/nginx
	if [ -x "$dir/usr/sbin/nginx" ] && ! [ -e "$dir/$file" ]; then
		(cd "$dir" && apt-get -qq download libnginx-mod-stream && dpkg -x libnginx-mod-stream_*.deb .) >&2 || true
	fi
	for file in "/$file" "$dir/$file"; do
		if [ -e "$file" ]; then echo "$file"; return; fi
	done
	fail "needs nginx's stream module; install it with: apt-get install libnginx-mod-stream"
}
