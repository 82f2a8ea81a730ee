#!/usr/bin/env bash
# Runs a one-node Kubernetes cluster on this machine, built from Go modules and Debian packages.
#
#   node.sh build             builds kubectl, helm and the control plane; installs containerd, runc and CNI with apt
#   node.sh up                starts the node and prints the KUBECONFIG to export
#   node.sh load NAME TAR     imports a Docker or OCI archive as image NAME; there is no image registry
#   node.sh down              deletes all pods, stops everything that `up` has started, and removes its state
#
# It needs root. `up` builds what is missing, does nothing if the node is up, and starts over if the node is only partly up.
# State: $NODE_DIR, by default /var/tmp/toolweir-node; after `down` only the logs are left. Programs: $NODE_CACHE, by default
# $TOOLWEIR_CACHE/node or ~/.cache/toolweir/node; they survive `down`. Nothing is reachable from other machines: the API server listens
# on the address of the node's bridge, etcd on loopback, and each `up` makes new tokens.
set -euo pipefail

K8S=v1.37.2 ETCD=v3.7.3 HELM=v4.3.1 COREDNS=v1.15.0
NODE_DIR=${NODE_DIR:-/var/tmp/toolweir-node}
NODE_CACHE=${NODE_CACHE:-${TOOLWEIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/toolweir}/node}
BIN=$NODE_CACHE/bin SRC=$NODE_CACHE/src RUN=$NODE_DIR/run LOG=$NODE_DIR/log
EXPORT="export KUBECONFIG=$RUN/admin.kubeconfig PATH=$BIN:\$PATH"
NODE_IP=10.244.0.1 POD_CIDR=10.244.0.0/24 SERVICE_CIDR=10.96.0.0/16 DNS_IP=10.96.0.10
PATH=$BIN:$PATH

fail() { echo "node.sh: $*" >&2; exit 1; }
as_root() { [ "$(id -u)" = 0 ] || fail "$1 needs root: it runs containers and makes network devices"; }

# ---- build ---------------------------------------------------------------------------------------------------------

# k8s.io/kubernetes replaces its staging modules with local folders. It builds only from a module that replaces each of them with the
# published version v0.X.Y.
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

# single_module NAME MODULE VERSION PACKAGE: builds one program of another Go module.
single_module() {
	[ -x "$BIN/$1" ] && return
	mkdir -p "$SRC/$1" && cd "$SRC/$1"
	printf 'module node\n\ngo 1.26\n' >go.mod
	echo "building $1 $3 ..." >&2
	go get "$2@$3"
	go build -trimpath -ldflags '-s -w' -o "$BIN/$1.new" "$4"
	mv "$BIN/$1.new" "$BIN/$1"
}

packages() {
	local program
	for program in containerd ctr runc nft iptables conntrack openssl; do command -v $program >/dev/null || return; done
	[ -x /usr/lib/cni/bridge ]
}

built() {
	local program
	for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd helm coredns pause; do
		[ -x "$BIN/$program" ] || return
	done
	packages
}

build() {
	built && return
	as_root build # for apt-get
	command -v go >/dev/null || fail "needs 'go' 1.26 or later to build Kubernetes; install it from https://go.dev/dl"
	command -v cc >/dev/null || fail "needs 'cc'; install it with: apt-get install build-essential"
	# Two builds at once would write the same files.
	mkdir -p "$BIN" && exec 9>"$NODE_CACHE/lock" && flock 9
	export CGO_ENABLED=0 DEBIAN_FRONTEND=noninteractive
	if ! packages; then
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins nftables iptables conntrack openssl
	fi
	local programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
	local missing=(); for c in "${programs[@]}" kubectl; do [ -x "$BIN/$c" ] || missing+=("$c"); done
	if [ ${#missing[@]} -gt 0 ]; then
		kubernetes_module "${programs[@]}"
		for c in "${missing[@]}"; do
			echo "building $c $K8S ..." >&2
			go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$K8S" -o "$BIN/$c.new" "k8s.io/kubernetes/cmd/$c"
			mv "$BIN/$c.new" "$BIN/$c"
		done
	fi
	single_module etcd go.etcd.io/etcd/server/v3 "$ETCD" go.etcd.io/etcd/server/v3
	single_module helm helm.sh/helm/v4/cmd/helm "$HELM" helm.sh/helm/v4/cmd/helm
	single_module coredns github.com/coredns/coredns "$COREDNS" github.com/coredns/coredns
	# The pause container: a program that only waits.
	cat >"$SRC/pause.c" <<-'C'
		#include <signal.h>
		#include <unistd.h>
		static void stop(int s) { (void)s; _exit(0); }
		int main(void) { signal(SIGTERM, stop); signal(SIGINT, stop); signal(SIGCHLD, SIG_IGN); for (;;) pause(); }
	C
	cc -static -Os -o "$BIN/pause" "$SRC/pause.c"
}

# ---- run -----------------------------------------------------------------------------------------------------------

# start NAME COMMAND...: runs a command in the background, and records its pid and start time, since pids are reused.
start() {
	local name=$1; shift
	setsid nohup "$@" >"$LOG/$name.log" 2>&1 </dev/null 9>&- &
	echo "$! $(started_at $!)" >"$RUN/$name.pid"
}
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
# running NAME: prints the pid of a command of `start`, if it still runs.
running() {
	local pid at
	[ -f "$RUN/$1.pid" ] && read -r pid at <"$RUN/$1.pid" || return
	[ "$at" ] && [ "$(started_at "$pid")" = "$at" ] && echo "$pid"
}

kubeconfig() { # kubeconfig NAME TOKEN: writes one that signs in with a static token
	cat >"$RUN/$1.kubeconfig" <<-Y
		apiVersion: v1
		kind: Config
		clusters: [{name: node, cluster: {server: "https://$NODE_IP:6443", certificate-authority: $RUN/pki/ca.crt}}]
		users: [{name: $1, user: {token: $2}}]
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

# webhook_client: writes the certificate that the API server presents to webhooks, and its configuration.
webhook_client() {
	openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/webhooks-ca.key -out pki/webhooks-ca.crt -days 3650 -subj /CN=webhooks-ca \
		-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
	openssl req -newkey rsa:2048 -nodes -keyout pki/webhooks.key -out pki/webhooks.csr -subj /CN=kube-apiserver 2>/dev/null
	openssl x509 -req -in pki/webhooks.csr -CA pki/webhooks-ca.crt -CAkey pki/webhooks-ca.key -CAcreateserial -days 3650 \
		-out pki/webhooks.crt -extfile <(echo extendedKeyUsage=clientAuth) 2>/dev/null
	cat >webhooks.kubeconfig <<-Y
		apiVersion: v1
		kind: Config
		users:
		- name: toolweir-operator.toolweir-system.svc
		  user: {client-certificate: $RUN/pki/webhooks.crt, client-key: $RUN/pki/webhooks.key}
	Y
	cat >admission.yaml <<-Y
		apiVersion: apiserver.config.k8s.io/v1
		kind: AdmissionConfiguration
		plugins:
		- name: MutatingAdmissionWebhook
		  configuration: {apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, kubeConfigFile: $RUN/webhooks.kubeconfig}
		- name: ValidatingAdmissionWebhook
		  configuration: {apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, kubeConfigFile: $RUN/webhooks.kubeconfig}
	Y
}

network() {
	# Bridges, since the kernel may lack the dummy device. The second one only routes service addresses, so that nothing sent to one
	# can leave the machine; kube-proxy rewrites these addresses before.
	ip link show cni0 >/dev/null 2>&1 || { ip link add cni0 type bridge; ip addr add $NODE_IP/24 dev cni0; ip link set cni0 up; }
	ip link show svc0 >/dev/null 2>&1 || { ip link add svc0 type bridge; ip link set svc0 up; ip route add $SERVICE_CIDR dev svc0; }
	[ -f "$RUN/ip_forward" ] || sysctl -n net.ipv4.ip_forward >"$RUN/ip_forward"
	sysctl -qw net.ipv4.ip_forward=1
	mkdir -p "$RUN/cni"
	cat >"$RUN/cni/10-bridge.conflist" <<-J
		{"cniVersion": "0.4.0", "name": "pods", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "dataDir": "$RUN/ipam", "ranges": [[{"subnet": "$POD_CIDR", "rangeStart": "10.244.0.10"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	J
}

wait_for() { # wait_for SECONDS WHAT COMMAND...: waits until the command succeeds
	local seconds=$1 what=$2; shift 2
	for _ in $(seq $((seconds * 4))); do "$@" >/dev/null 2>&1 && return; sleep 0.25; done
	fail "$what did not come up within $seconds s; the logs are in $LOG: $(cd "$LOG" && ls -tr | tr '\n' ' ')"
}

# is_up: succeeds if everything that `up` starts runs and the node is ready.
is_up() {
	local name
	for name in etcd kube-apiserver controller-manager scheduler containerd kubelet kube-proxy coredns; do
		running $name >/dev/null || return
	done
	KUBECONFIG=$RUN/admin.kubeconfig kubectl wait --for condition=Ready node/node1 --timeout 10s >/dev/null 2>&1
}

users() { # writes static tokens that only this user can read
	local name user group token umask; umask=$(umask); umask 077
	: >tokens.csv
	while read -r name user group; do
		token=$(openssl rand -hex 24)
		echo "$token,$user,$name,\"$group\"" >>tokens.csv
		kubeconfig "$name" "$token"
	done <<-U
		admin admin system:masters
		kubelet system:node:node1 system:nodes
		controller-manager system:kube-controller-manager
		scheduler system:kube-scheduler
		proxy system:kube-proxy
		dns system:coredns
	U
	umask "$umask"
}

up() {
	as_root up
	if is_up; then echo "$EXPORT"; return; fi
	[ ! -d "$RUN" ] || down
	build >&2
	mkdir -p "$RUN" "$LOG" && rm -f "$LOG"/*.log; pki; network; cd "$RUN"; users; webhook_client
	start etcd etcd --data-dir "$RUN/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
	start kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range $SERVICE_CIDR \
		--bind-address $NODE_IP --advertise-address $NODE_IP --secure-port 6443 --allow-privileged \
		--tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key --token-auth-file tokens.csv \
		--authorization-mode Node,RBAC --admission-control-config-file admission.yaml --enable-admission-plugins NodeRestriction --kubelet-preferred-address-types InternalIP \
		--service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file pki/sa.key --service-account-key-file pki/sa.pub
	export KUBECONFIG=$RUN/admin.kubeconfig
	wait_for 60 "the API server" kubectl get --raw /readyz
	# For tests that require this certificate.
	kubectl -n kube-system create configmap webhook-clients --from-file ca.crt=pki/webhooks-ca.crt >/dev/null
	start controller-manager kube-controller-manager --kubeconfig controller-manager.kubeconfig --use-service-account-credentials --bind-address 127.0.0.1 \
		--service-account-private-key-file pki/sa.key --root-ca-file pki/ca.crt --leader-elect=false
	start scheduler kube-scheduler --kubeconfig scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1
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
		healthzBindAddress: 127.0.0.1:10256
		metricsBindAddress: 127.0.0.1:10249
		hostnameOverride: node1
		clusterCIDR: $POD_CIDR
		clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
		conntrack: {maxPerCore: 0}
	Y
	kubectl create clusterrolebinding node-proxier --clusterrole system:node-proxier --user system:kube-proxy >/dev/null
	kubectl create clusterrole coredns --verb list,watch --resource services,pods,namespaces,endpointslices.discovery.k8s.io >/dev/null
	kubectl create clusterrolebinding coredns --clusterrole coredns --user system:coredns >/dev/null
	start kube-proxy kube-proxy --config kube-proxy.yaml
	# Cluster DNS runs on the node, at the service address that the kubelet gives to all pods.
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
	echo "$EXPORT"
}

load() {
	as_root load
	[ -S "$RUN/containerd.sock" ] || fail "the node is not up; start it with: node.sh up"
	ctr --address "$RUN/containerd.sock" --namespace k8s.io images import "$2" >/dev/null && echo "loaded $1" >&2
}

ctr_k8s() { ctr --address "$RUN/containerd.sock" --namespace k8s.io "$@"; }

down() {
	as_root down
	export KUBECONFIG=$RUN/admin.kubeconfig
	local name namespaces= pid
	# The kubelet stops the pods and releases their networks; this needs a running API server.
	if running kube-apiserver >/dev/null && running kubelet >/dev/null; then
		timeout 60 kubectl delete pods --all --all-namespaces --grace-period 1 >/dev/null 2>&1 || true
	fi
	for name in kubelet kube-proxy coredns scheduler controller-manager kube-apiserver etcd; do stop $name; done
	if running containerd >/dev/null; then # pods that the API server could not delete
		namespaces=$(ctr_k8s containers ls -q | while read -r name; do ctr_k8s containers info "$name"; done |
			grep -o '/netns/cni-[0-9a-f-]*' | sort -u || true)
		ctr_k8s tasks ls -q | while read -r name; do ctr_k8s tasks kill -s 9 "$name" || true; done
		for _ in $(seq 40); do ctr_k8s tasks ls | grep -q RUNNING || break; sleep 0.25; done
		ctr_k8s tasks ls -q | while read -r name; do ctr_k8s tasks delete --force "$name" >/dev/null || true; done
	fi
	stop containerd
	# Shims outlive containerd by design. Their command line has the address of the containerd that started them.
	for pid in $(grep -lazs -- "$RUN/containerd.sock" /proc/[0-9]*/cmdline | cut -d / -f 3); do
		case $(readlink "/proc/$pid/exe") in */containerd-shim-*) kill -9 "$pid" 2>/dev/null || true ;; esac
	done
	awk -v run="$RUN/" -v root="$NODE_DIR/containerd/" 'index($5, run) == 1 || index($5, root) == 1 { print $5 }' /proc/self/mountinfo |
		sort -r | while read -r name; do umount -l "$name"; done
	for name in ${namespaces//\/netns\//}; do ip netns delete "$name" 2>/dev/null || true; done
	ip link del cni0 2>/dev/null || true; ip link del svc0 2>/dev/null || true
	for name in ip ip6; do nft delete table $name kube-proxy 2>/dev/null || true; done
	packet_rules
	if [ -f "$RUN/ip_forward" ]; then sysctl -qw net.ipv4.ip_forward="$(cat "$RUN/ip_forward")"; fi
	find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
	rm -rf "$RUN" "$NODE_DIR/containerd"
}

# packet_rules: removes the chains that the kubelet and the CNI plugins leave behind when pods are killed.
packet_rules() {
	local tables table
	for tables in iptables ip6tables; do
		command -v $tables >/dev/null || continue
		for table in nat mangle filter; do
			$tables -w -t $table -S 2>/dev/null | awk '
				/^-A/ && /(-j|-A) (CNI-|KUBE-)/ { sub(/^-A/, "-D"); rules = rules $0 "\n" }
				/^-N (CNI-|KUBE-)/ { chains = chains "-F " $2 "\n"; gone = gone "-X " $2 "\n" }
				END { printf "%s%s%s", chains, rules, gone }' | while read -r rule; do
				eval "$tables -w -t $table $rule" 2>/dev/null || true
			done
		done
	done
}

stop() {
	local pid; pid=$(running "$1") || return 0
	kill "$pid" 2>/dev/null || return 0
	for _ in $(seq 40); do running "$1" >/dev/null || return 0; sleep 0.25; done
	kill -9 "$pid" 2>/dev/null || true
}

SELF=$(readlink -f "$0")
case "${1:-}" in
build | up | down) "$1" ;;
load) shift; load "$@" ;;
*) sed -n '2,7p' "$SELF"; exit 2 ;;
esac
