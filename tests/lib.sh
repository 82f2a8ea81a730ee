# Shared by the test scripts: folders, checks, tools and packages, and processes.
# Source it: `. "$(dirname "$0")/../lib.sh"`. It installs everything into the cache folder and nothing on the machine.

set -euo pipefail

ROOT=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
CACHE=${TOOLWEIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/toolweir}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost PYTHONUNBUFFERED=1

fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# need COMMAND HOW: fails and says how to install the command if it is missing. Nothing is skipped silently.
need() { command -v "$1" >/dev/null || fail "needs '$1'; install it with: $2"; }

# ensure COMMAND PACKAGE: installs the command with apt if it is missing, as root on Debian; else fails and says how to install it.
ensure() {
	if ! command -v "$1" >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		flock /tmp/toolweir-apt.lock sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2" >&2
	fi
	need "$1" "apt-get install $2"
}

# need_namespaces: fails without what stages in network namespaces need.
need_namespaces() {
	ensure ip iproute2
	ensure nft nftables
	need setpriv "apt-get install util-linux"
	need openssl "apt-get install openssl"
	need curl "apt-get install curl"
	[ "$(id -u)" = 0 ] || fail "needs root, for network namespaces"
}

# check NAME COMMAND...: runs a check, prints whether it passed, and counts it in `passed` or `failed`. If it fails, the end of its
# output follows. With DETAIL=1, the last line of the output of a check that passed is printed too.
passed=0 failed=0
check() {
	local output
	if output=$("${@:2}" 2>&1); then
		passed=$((passed + 1))
		printf 'ok    %s%s\n' "$1" "$([ "${DETAIL-}" != 1 ] || tail -1 <<<"$output" | sed '/./s/^/: /')"
	else
		failed=$((failed + 1))
		printf 'FAIL  %s\n' "$1"
		tail -60 <<<"$output" | sed 's/^/      /'
	fi
}

# summary NAME: prints the counts of the checks; fails if one of them failed.
summary() {
	echo "$1: $passed passed, $failed failed"
	[ "$failed" = 0 ]
}

# stamp DIR WORDS...: succeeds if DIR was made from exactly these words.
stamp() { local dir=$1; shift; [ "$(cat "$dir/.made-from" 2>/dev/null)" = "$*" ]; }

# python_env NAME REQUIREMENT...: prints the path of a virtual environment with these packages.
python_env() {
	local dir=$CACHE/python-$1; shift
	need python3 "apt-get install python3 python3-venv"
	if ! stamp "$dir" "$@"; then
		rm -rf "$dir"
		python3 -m venv "$dir" >&2
		"$dir/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
		echo "$*" >"$dir/.made-from"
	fi
	echo "$dir"
}

# node_env NAME PACKAGE...: prints the path of a folder whose node_modules has these packages.
node_env() {
	local dir=$CACHE/node-$1; shift
	need npm "apt-get install nodejs npm (Node 20 or later)"
	if ! stamp "$dir" "$@"; then
		rm -rf "$dir" && mkdir -p "$dir"
		(cd "$dir" && echo '{"private": true, "type": "module"}' >package.json && npm install --silent --no-audit --no-fund "$@" >&2)
		echo "$*" >"$dir/.made-from"
	fi
	echo "$dir"
}

# cargo_tool NAME VERSION: prints the path of the folder that holds this program of crates.io.
cargo_tool() {
	local dir=$CACHE/$1
	if ! stamp "$dir" "$2"; then
		need cargo "https://rustup.rs"
		cargo install --quiet --locked --root "$dir" "$1@$2" >&2
		echo "$2" >"$dir/.made-from"
	fi
	echo "$dir/bin"
}

# free_port: prints a TCP port of 127.0.0.1 that is free now.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start LOG COMMAND...: runs a command in the background and stops it when the script ends, for whatever reason.
STARTED=()
start() {
	local log=$1; shift
	"$@" >"$log" 2>&1 </dev/null &
	STARTED+=($!)
}
stop_all() {
	local pid
	for pid in "${STARTED[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${STARTED[@]}"; do wait "$pid" 2>/dev/null || true; done
	STARTED=()
}
trap stop_all EXIT
trap 'exit 130' INT TERM

# wait_port PORT SECONDS WHAT: waits until something listens on 127.0.0.1:PORT.
wait_port() {
	local i
	for ((i = 0; i < $2 * 20; i++)); do
		(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
		sleep 0.05
	done
	fail "$3 did not listen on port $1 within $2 s"
}

# sidecar: builds the release binary and prints its path.
sidecar() {
	need cargo "https://rustup.rs"
	cargo build --quiet --release --locked --manifest-path "$ROOT/Cargo.toml" -p toolweir-sidecar >&2 || return
	echo "$TARGET/release/toolweir-sidecar"
}

# toolweir: builds `kubectl toolweir` under the name that needs no kubectl, and prints its path. Its speed matters to no test, so it is the
# build of the unit tests.
toolweir() {
	need cargo "https://rustup.rs"
	cargo build --quiet --locked --manifest-path "$ROOT/Cargo.toml" -p toolweir-cli --bin toolweir >&2 || return
	echo "$TARGET/debug/toolweir"
}

# ensure_redis: makes redis-server and redis-cli available. If the machine does not have them, this unpacks Debian's packages into the
# cache folder and puts them on PATH.
ensure_redis() {
	command -v redis-server >/dev/null && command -v redis-cli >/dev/null && return
	local dir=$CACHE/redis packages=(redis-server redis-tools libjemalloc2 liblzf1 libatomic1)
	if ! [ -x "$dir/usr/bin/redis-server" ]; then
		need apt-get "your system's package of redis-server (7.0 or later)"
		rm -rf "$dir" "$dir.new" && mkdir -p "$dir.new/packages"
		(
			cd "$dir.new/packages"
			apt-get download "${packages[@]}" >/dev/null 2>&1 || { apt-get update -qq && apt-get download "${packages[@]}"; } >&2
			for package in *.deb; do dpkg -x "$package" ..; done
		) || fail "redis-server cannot be downloaded; install it with: apt-get install redis-server"
		mv "$dir.new" "$dir"
	fi
	export PATH=$dir/usr/bin:$PATH LD_LIBRARY_PATH=$dir/usr/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	redis-server --version >/dev/null || fail "the redis-server in $dir does not run; remove that folder, or apt-get install redis-server"
}
