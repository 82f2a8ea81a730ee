#!/usr/bin/env bash
# Holds the chart's ValidatingAdmissionPolicy against the fixtures of k8s.io/pod-security-admission, in a real API server: what the Pod
# Security Standard `restricted` refuses, the policy refuses, with and without the init container of capture.

. "$(dirname "$0")/../lib.sh"
here=$ROOT/tests/chart bin=$CACHE/node/bin

for program in etcd kube-apiserver helm; do
	[ -x "$bin/$program" ] || fail "needs '$program'; build it with: tests/cluster/node.sh build"
done
command -v go >/dev/null || fail "needs 'go' 1.26 or later for the fixtures; install it from https://go.dev/dl"
python=$(python_env chart pyyaml==6.0.4)/bin/python
export PYTHONDONTWRITEBYTECODE=1

out=$TARGET/test-pod-security
rm -rf "$out" && mkdir -p "$out/pki" && cd "$out"

# The fixtures have the version of the API server.
version=v0.$("$bin/kube-apiserver" --version | sed -E 's/.* v1\.([0-9.]+).*/\1/')
fixtures=$(cd "$out" && go mod download -json "k8s.io/pod-security-admission@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/test/testdata
[ -d "$fixtures" ] || fail "k8s.io/pod-security-admission@$version has no fixtures"

read -r client peer api < <("$python" -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))')
openssl genrsa -out pki/sa.key 2048 2>/dev/null
(umask 077; token=$(openssl rand -hex 16); echo "$token" >token; echo "$token,admin,admin,system:masters" >tokens.csv)

pids=()
# shellcheck disable=SC2317 # the trap calls it
stop() { [ ${#pids[@]} = 0 ] || { kill -KILL "${pids[@]}" 2>/dev/null; wait "${pids[@]}" 2>/dev/null || true; }; }
trap stop EXIT
"$bin/etcd" --data-dir "$out/etcd" --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
	--listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
	--initial-cluster "default=http://127.0.0.1:$peer" >etcd.log 2>&1 &
pids+=($!)
"$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 --secure-port "$api" --cert-dir "$out/pki" \
	--service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file pki/sa.key \
	--service-account-key-file pki/sa.key --token-auth-file tokens.csv --authorization-mode RBAC \
	--allow-privileged --disable-admission-plugins ServiceAccount --service-cluster-ip-range 10.96.0.0/16 >apiserver.log 2>&1 &
pids+=($!)

"$bin/helm" template toolweir "$ROOT/charts/toolweir" -n toolweir-system --set sidecar.ports.admin=16000 >chart.yaml
"$python" "$here/pod_security.py" "https://127.0.0.1:$api" "$out/token" "$out/chart.yaml" "$fixtures" "$ROOT/operator/tests/pods"
