# Shared by the checks of the chart that need a real API server and no node. Source it after tests/lib.sh.

BIN=$CACHE/node/bin

# An API server without its etcd takes minutes to end in good order, and nothing of it is kept.
stop_apiserver() {
	[ ${#STARTED[@]} = 0 ] || kill -KILL "${STARTED[@]}" 2>/dev/null || true
	stop_all
}
trap stop_apiserver EXIT

# start_apiserver OUT: starts etcd and an API server with RBAC, whose files are in OUT, until the script ends. Sets API, its URL, and writes
# OUT/token, that of a user who may do everything.
start_apiserver() {
	local out=$1 program client peer api token
	for program in etcd kube-apiserver helm; do
		[ -x "$BIN/$program" ] || fail "needs '$program'; build it with: tests/cluster/node.sh build"
	done
	mkdir -p "$out/pki"
	client=$(free_port) peer=$(free_port) api=$(free_port)
	openssl genrsa -out "$out/pki/sa.key" 2048 2>/dev/null
	(umask 077; token=$(openssl rand -hex 16); echo "$token" >"$out/token"; echo "$token,admin,admin,system:masters" >"$out/tokens.csv")
	start "$out/etcd.log" "$BIN/etcd" --data-dir "$out/etcd" --listen-client-urls "http://127.0.0.1:$client" \
		--advertise-client-urls "http://127.0.0.1:$client" --listen-peer-urls "http://127.0.0.1:$peer" \
		--initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer"
	start "$out/apiserver.log" "$BIN/kube-apiserver" --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 \
		--secure-port "$api" --cert-dir "$out/pki" --service-account-issuer https://kubernetes.default.svc \
		--service-account-signing-key-file "$out/pki/sa.key" --service-account-key-file "$out/pki/sa.key" \
		--token-auth-file "$out/tokens.csv" --authorization-mode RBAC --allow-privileged --disable-admission-plugins ServiceAccount \
		--service-cluster-ip-range 10.96.0.0/16
	# shellcheck disable=SC2034 # for the script that sources this
	API=https://127.0.0.1:$api
}
