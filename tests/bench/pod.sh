# shellcheck shell=bash disable=SC2034
# Shared by the benchmarks of captured pods: a pod and what is outside it, in two network namespaces. It sources lib.sh, and needs root
# and NET_ADMIN. Sets `bench` and `dir`, a folder with the sidecar that its user can read.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ "$(id -u)" = 0 ] || fail "needs root, for network namespaces"
need ip "apt-get install iproute2"
need setpriv "apt-get install util-linux"
need python3 "apt-get install python3"

SIDECAR_UID=61501 SIDECAR_GID=61502
POD=toolweir-bench-pod-$$ OUTSIDE=toolweir-bench-out-$$
SERVER=10.77.0.10 RESOLVER=10.77.0.53

bench=$(bench)
sidecar=${SIDECAR:-$(sidecar)}
# Readable by the sidecar's user, unlike root's folders.
dir=$(mktemp -d "${TMPDIR:-/tmp}/toolweir-bench.XXXXXX")
clean() {
	stop_all
	ip netns del "$POD" 2>/dev/null || true
	ip netns del "$OUTSIDE" 2>/dev/null || true
	rm -rf "$dir" "/etc/netns/$POD"
}
trap clean EXIT
chmod 755 "$dir"
cp "$sidecar" "$dir/toolweir-sidecar"

pod() { ip netns exec "$POD" "$@"; }
outside() { ip netns exec "$OUTSIDE" "$@"; }
as_sidecar=(ip netns exec "$POD" setpriv --reuid "$SIDECAR_UID" --regid "$SIDECAR_GID" --clear-groups)

# wait_inside NAMESPACE ADDRESS PORT LOG: waits until something listens there.
wait_inside() {
	local i
	for ((i = 0; i < 200; i++)); do
		ip netns exec "$1" bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null && return
		sleep 0.05
	done
	tail -20 "$4" >&2
	fail "nothing listens on $2:$3"
}

# make_pod NAME: creates the namespaces and the wire between them, starts a resolver outside that knows this name of SERVER, and writes
# the rules of capture in the pod.
make_pod() {
	local address namespace
	ip netns add "$OUTSIDE"
	ip netns add "$POD"
	ip -n "$POD" link add eth0 type veth peer name eth0 netns "$OUTSIDE"
	ip -n "$POD" addr add 10.77.0.2/24 dev eth0
	for address in 10.77.0.1 "$SERVER" "$RESOLVER"; do ip -n "$OUTSIDE" addr add "$address/24" dev eth0; done
	for namespace in "$POD" "$OUTSIDE"; do
		ip -n "$namespace" link set lo up
		ip -n "$namespace" link set eth0 up
	done
	ip -n "$POD" route add default via 10.77.0.1
	mkdir -p "/etc/netns/$POD"
	printf 'search bench.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n' "$RESOLVER" >"/etc/netns/$POD/resolv.conf"
	start "$dir/resolver.log" ip netns exec "$OUTSIDE" python3 -c '
import socket, struct, sys
here, name, address = sys.argv[1:]
known = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((here, 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\0", 12) + 1
    asked, kind = query[12:end].lower(), query[end:end + 2]
    # That there is none may be remembered, as an answer of the cluster DNS may (RFC 2308, section 5).
    answer, none = b"", b"\0" + struct.pack(">HHIH", 6, 1, 30, 22) + b"\0\0" + struct.pack(">5I", 1, 7200, 1800, 86400, 30)
    if asked == known and kind == b"\0\1":
        answer = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 3600, 4) + socket.inet_aton(address)
    head = struct.pack(">HHHHH", 0x8180 if asked == known else 0x8183, 1, bool(answer), not answer, 0)
    server.sendto(query[:2] + head + query[12:end + 4] + (answer or none), client)
' "$RESOLVER" "$1" "$SERVER"
	pod "$dir/toolweir-sidecar" capture --uid "$SIDECAR_UID" --gid "$SIDECAR_GID" >"$dir/capture.log" 2>&1 || {
		cat "$dir/capture.log" >&2
		fail "the rules cannot be written"
	}
}

# start_captured FLAG...: starts the sidecar in the pod with DIR/policy.yaml, and sets `sidecar_pid`. Its audit log is DIR/audit.log.
start_captured() {
	start "$dir/sidecar.log" bash -c 'exec "$@" >>"$0"' "$dir/audit.log" "${as_sidecar[@]}" "$dir/toolweir-sidecar" run \
		--policy "$dir/policy.yaml" --capture-port 15002 "$@"
	sidecar_pid=${STARTED[-1]}
	wait_inside "$POD" 127.0.0.1 15001 "$dir/sidecar.log"
}

# versions: prints the machine and the sidecar.
versions() {
	echo "$(date -u +%F), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r)"
	echo "toolweir-sidecar at $(git -C "$ROOT" describe --always --dirty)"
}

# audited COUNT PATTERN: fails if the audit log does not get as many lines with the pattern: what is measured went through the sidecar.
# It waits for them, since the sidecar gathers lines before it writes them.
audited() {
	local i
	for ((i = 0; i < 100; i++)); do
		[ "$(grep -c "$2" "$dir/audit.log")" -lt "$1" ] || return 0
		sleep 0.05
	done
	fail "fewer than $1 lines of the audit log have $2"
}
