#!/usr/bin/env bash
# A real one-node Kubernetes on this machine, built from package registries alone.
#
#   node.sh build             build kubectl, helm and the control plane (Go modules), install containerd, runc, CNI (apt)
#   node.sh up                start the node; prints the KUBECONFIG to export
#   node.sh load NAME TAR     import a docker/OCI archive as image NAME (there is no image registry)
#   node.sh down              delete every pod, stop everything that `up` started, remove its state
#
# State lives in $NODE_DIR (default /var/tmp/toolweir-node). Binaries live in the cache folder, $NODE_CACHE (default
# $TOOLWEIR_CACHE/node, else ~/.cache/toolweir/node), and survive `down`: the next run and CI build nothing.
set -euo pipefail

K8S=v1.37.2 ETCD=v3.7.3 HELM=v4.3.1 COREDNS=v1.15.0
NODE_DIR=${NODE_DIR:-/var/tmp/toolweir-node}
NODE_CACHE=${NODE_CACHE:-${TOOLWEIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/toolweir}/node}
BIN=$NODE_CACHE/bin SRC=$NODE_CACHE/src RUN=$NODE_DIR/run LOG=$NODE_DIR/log
NODE_IP=10.244.0.1 POD_CIDR=10.244.0.0/24 SERVICE_CIDR=10.96.0.0/16 DNS_IP=10.96.0.10
PATH=$BIN:$PATH

# ---- build ---------------------------------------------------------------------------------------------------------

# k8s.io/kubernetes replaces its staging modules with local folders, so it builds only from a module that
# replaces each with the published version v0.X.Y.
kubernetes_module() {
	mkdir -p "$SRC/kubernetes" && cd "$SRC/kubernetes"
	local gomod; gomod=$(go mod download -json "k8s.io/kubernetes@$K8S" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
	{
		printf 'module node\n\n'; grep -m1 '^go ' "$gomod"; grep -m1 '^godebug ' "$gomod"
		printf '\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$K8S"
		grep -oE 'k8s\.io/\S+ => \./staging' "$gomod" | while read -r module _; do
			printf '\t%s => %s v0%s\n' "$module" "$module" "${K8S#v1}"
		done
		printf ')\n'
	} >go.mod
	{
		printf '//go:build tools\n\npackage tools\n\nimport (\n'
		for c in "$@"; do printf '\t_ "k8s.io/kubernetes/cmd/%s/app"\n' "$c"; done
		printf '\t_ "k8s.io/kubectl/pkg/cmd"\n)\n'
	} >tools.go
	go mod tidy
}

# single_module NAME MODULE VERSION PACKAGE: one program of another Go module
single_module() {
	[ -x "$BIN/$1" ] && return
	mkdir -p "$SRC/$1" && cd "$SRC/$1"
	printf 'module node\n\ngo 1.26\n' >go.mod
	go get "$2@$3"
	go build -trimpath -ldflags '-s -w' -o "$BIN/$1" "$4"
}

build() {
	export CGO_ENABLED=0 DEBIAN_FRONTEND=noninteractive
	mkdir -p "$BIN"
	if ! command -v containerd >/dev/null || [ ! -x /usr/lib/cni/bridge ]; then
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins nftables iptables conntrack openssl
	fi
	local programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
	local missing=(); for c in "${programs[@]}" kubectl; do [ -x "$BIN/$c" ] || missing+=("$c"); done
	if [ ${#missing[@]} -gt 0 ]; then
		kubernetes_module "${programs[@]}"
		for c in "${missing[@]}"; do
			go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$K8S" -o "$BIN/$c" "k8s.io/kubernetes/cmd/$c"
		done
	fi
	single_module etcd go.etcd.io/etcd/server/v3 "$ETCD" go.etcd.io/etcd/server/v3
	single_module helm helm.sh/helm/v4/cmd/helm "$HELM" helm.sh/helm/v4/cmd/helm
	single_module coredns github.com/coredns/coredns "$COREDNS" github.com/coredns/coredns
	# The pod sandbox: a program that only waits.
	cat >"$SRC/pause.c" <<-'C'
		#include <signal.h>
		#include <unistd.h>
		static void stop(int s) { (void)s; _exit(0); }
		int main(void) { signal(SIGTERM, stop); signal(SIGINT, stop); signal(SIGCHLD, SIG_IGN); for (;;) pause(); }
	C
	cc -static -Os -o "$BIN/pause" "$SRC/pause.c"
}

# ---- run -----------------------------------------------------------------------------------------------------------

start() { local name=$1; shift; setsid nohup "$@" >"$LOG/$name.log" 2>&1 </dev/null & echo $! >"$RUN/$name.pid"; }

kubeconfig() { # kubeconfig NAME: one that signs in with the static token NAME-token
	cat >"$RUN/$1.kubeconfig" <<-Y
		apiVersion: v1
		kind: Config
		clusters: [{name: node, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $RUN/pki/ca.crt}}]
		users: [{name: $1, user: {token: $1-token}}]
		contexts: [{name: node, context: {cluster: node, user: $1}}]
		current-context: node
	Y
}

pki() {
	mkdir -p "$RUN/pki" && cd "$RUN/pki"
	[ -f ca.crt ] && return
	openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=node-ca \
		-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
	openssl req -newkey rsa:2048 -nodes -keyout apiserver.key -out apiserver.csr -subj /CN=kube-apiserver 2>/dev/null
	openssl x509 -req -in apiserver.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out apiserver.crt 2>/dev/null -extfile <(
		echo "subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$NODE_IP,IP:10.96.0.1")
	openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
}

network() {
	# Bridges, since this kernel may lack the dummy device. The second one only gives service addresses a route, so
	# that nothing sent to one can leave the machine; kube-proxy rewrites them before that.
	ip link show cni0 >/dev/null 2>&1 || { ip link add cni0 type bridge; ip addr add $NODE_IP/24 dev cni0; ip link set cni0 up; }
	ip link show svc0 >/dev/null 2>&1 || { ip link add svc0 type bridge; ip link set svc0 up; ip route add $SERVICE_CIDR dev svc0; }
	sysctl -qw net.ipv4.ip_forward=1
	mkdir -p "$RUN/cni"
	cat >"$RUN/cni/10-bridge.conflist" <<-J
		{"cniVersion": "0.4.0", "name": "pods", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "dataDir": "$RUN/ipam", "ranges": [[{"subnet": "$POD_CIDR", "rangeStart": "10.244.0.10"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	J
}

wait_for() { # wait_for SECONDS WHAT COMMAND...
	local seconds=$1 what=$2; shift 2
	for _ in $(seq $((seconds * 4))); do "$@" >/dev/null 2>&1 && return; sleep 0.25; done
	echo "node.sh: $what did not come up within $seconds s; see $LOG" >&2; exit 1
}

up() {
	mkdir -p "$RUN" "$LOG"; pki; network; cd "$RUN"
	cat >tokens.csv <<-C
		admin-token,admin,admin,"system:masters"
		kubelet-token,system:node:node1,node1,"system:nodes"
		controller-manager-token,system:kube-controller-manager,controller-manager,""
		scheduler-token,system:kube-scheduler,scheduler,""
		proxy-token,system:kube-proxy,proxy,""
		dns-token,system:coredns,dns,""
	C
	for user in admin kubelet controller-manager scheduler proxy dns; do kubeconfig $user; done
	start etcd etcd --data-dir "$RUN/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
	start kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range $SERVICE_CIDR \
		--bind-address 0.0.0.0 --advertise-address $NODE_IP --secure-port 6443 --allow-privileged \
		--tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key --token-auth-file tokens.csv \
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --kubelet-preferred-address-types InternalIP \
		--service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file pki/sa.key --service-account-key-file pki/sa.pub
	export KUBECONFIG=$RUN/admin.kubeconfig
	wait_for 60 "the API server" kubectl get --raw /readyz
	start controller-manager kube-controller-manager --kubeconfig controller-manager.kubeconfig --use-service-account-credentials \
		--service-account-private-key-file pki/sa.key --root-ca-file pki/ca.crt --leader-elect=false
	start scheduler kube-scheduler --kubeconfig scheduler.kubeconfig --leader-elect=false
	# restrict_oom_score_adj: without CAP_SYS_RESOURCE, runc cannot lower a score and dies with
	# "can't get final child's PID from pipe: EOF".
	cat >containerd.toml <<-T
		version = 2
		root = "$NODE_DIR/containerd"
		state = "$RUN/containerd"
		[grpc]
		  address = "$RUN/containerd.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "localhost/pause:1"
		  restrict_oom_score_adj = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "/usr/lib/cni"
		    conf_dir = "$RUN/cni"
		  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
	T
	start containerd containerd --config containerd.toml
	wait_for 30 containerd ctr --address "$RUN/containerd.sock" version
	python3 "$(dirname "$SELF")/image.py" localhost/pause:1 pause.tar /pause="$BIN/pause" --entrypoint /pause
	load localhost/pause:1 pause.tar
	cat >kubelet.yaml <<-Y
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		address: $NODE_IP
		failCgroupV1: false
		cgroupDriver: cgroupfs
		containerRuntimeEndpoint: unix://$RUN/containerd.sock
		clusterDomain: cluster.local
		clusterDNS: [$DNS_IP]
		evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		enforceNodeAllocatable: []
	Y
	start kubelet kubelet --config kubelet.yaml --kubeconfig kubelet.kubeconfig --hostname-override node1 --node-ip $NODE_IP \
		--root-dir "$RUN/kubelet" --cert-dir "$RUN/pki"
	cat >kube-proxy.yaml <<-Y
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		hostnameOverride: node1
		clusterCIDR: $POD_CIDR
		clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
		conntrack: {maxPerCore: 0}
	Y
	kubectl create clusterrolebinding node-proxier --clusterrole system:node-proxier --user system:kube-proxy >/dev/null
	kubectl create clusterrole coredns --verb list,watch --resource services,pods,namespaces,endpointslices.discovery.k8s.io >/dev/null
	kubectl create clusterrolebinding coredns --clusterrole coredns --user system:coredns >/dev/null
	start kube-proxy kube-proxy --config kube-proxy.yaml
	# Cluster DNS runs on the node and answers at the service address that the kubelet gives every pod.
	cat >Corefile <<-C
		.:5353 {
		  bind $NODE_IP
		  errors
		  kubernetes cluster.local {
		    kubeconfig $RUN/dns.kubeconfig
		  }
		  cache 5
		}
	C
	start coredns coredns -conf Corefile
	kubectl apply -f - >/dev/null <<-Y
		apiVersion: v1
		kind: Service
		metadata: {name: kube-dns, namespace: kube-system}
		spec: {clusterIP: $DNS_IP, ports: [{name: dns, port: 53, targetPort: 5353, protocol: UDP}, {name: dns-tcp, port: 53, targetPort: 5353, protocol: TCP}]}
		---
		apiVersion: discovery.k8s.io/v1
		kind: EndpointSlice
		metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
		addressType: IPv4
		endpoints: [{addresses: [$NODE_IP], conditions: {ready: true}}]
		ports: [{name: dns, port: 5353, protocol: UDP}, {name: dns-tcp, port: 5353, protocol: TCP}]
	Y
	wait_for 60 "the node" kubectl wait --for condition=Ready node/node1 --timeout 1s
	wait_for 30 "the default service account" kubectl get serviceaccount default
	wait_for 30 "cluster DNS" grep -q "^CoreDNS-" "$LOG/coredns.log"
	echo "export KUBECONFIG=$KUBECONFIG PATH=$BIN:\$PATH"
}

load() { ctr --address "$RUN/containerd.sock" --namespace k8s.io images import "$2" >/dev/null && echo "loaded $1"; }

down() {
	export KUBECONFIG=$RUN/admin.kubeconfig
	[ -f "$KUBECONFIG" ] && timeout 60 kubectl delete pods --all --all-namespaces --grace-period 1 >/dev/null 2>&1 || true
	for name in kubelet kube-proxy coredns scheduler controller-manager kube-apiserver etcd; do stop $name; done
	if [ -S "$RUN/containerd.sock" ]; then # what the API server could not delete
		ctr --address "$RUN/containerd.sock" --namespace k8s.io tasks ls -q | while read -r task; do
			ctr --address "$RUN/containerd.sock" --namespace k8s.io tasks kill -s 9 "$task" || true
		done
	fi
	stop containerd
	mount | awk -v run="$RUN/" 'index($3, run) == 1 { print $3 }' | sort -r | while read -r point; do umount -l "$point"; done
	ip link del cni0 2>/dev/null || true; ip link del svc0 2>/dev/null || true
	nft delete table ip kube-proxy 2>/dev/null || true; nft delete table ip6 kube-proxy 2>/dev/null || true
	rm -rf "$RUN"
}

stop() {
	[ -f "$RUN/$1.pid" ] || return 0
	local pid; pid=$(cat "$RUN/$1.pid"); kill "$pid" 2>/dev/null || return 0
	for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.25; done
	kill -9 "$pid" 2>/dev/null || true
}

SELF=$(readlink -f "$0")
case "${1:-}" in
build | up | down) "$1" ;;
load) shift; load "$@" ;;
*) sed -n '2,10p' "$SELF"; exit 2 ;;
esac
