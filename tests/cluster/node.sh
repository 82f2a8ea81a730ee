#!/usr/bin/env bash
# Runs a Kubernetes cluster of one node or two on this machine, built from Go modules and Debian packages.
#
#   node.sh build             builds kubectl, helm, the control plane and a NetworkPolicy engine; installs containerd, runc and CNI with apt
#   node.sh up                starts the node and prints the KUBECONFIG to export. NODES=2: a second node too, and NetworkPolicies are
#                             enforced on both
#   node.sh load NAME TAR     imports a Docker or OCI archive as image NAME on each node; there is no image registry
#   node.sh down              deletes all pods, stops everything that `up` has started, and removes its state
#
# It needs root. `up` builds what is missing, does nothing if the nodes are up, adds a second node to one, and starts over if something is
# only partly up. The second node has a network namespace of its own. Pods cannot leave this machine.
# State: $NODE_DIR, by default /var/tmp/toolweir-node; after `down` only the logs are left. Programs: $NODE_CACHE, by default
# $TOOLWEIR_CACHE/node or ~/.cache/toolweir/node; they survive `down`. Nothing is reachable from other machines: the API server listens
# on the address of the node's bridge, etcd on loopback, and each `up` makes new tokens.
set -euo pipefail

K8S=v1.37.2 ETCD=v3.7.3 HELM=v4.3.1 COREDNS=v1.15.0 KUBE_ROUTER=v2.10.0
NODES=${NODES:-1}
NODE_DIR=${NODE_DIR:-/var/tmp/toolweir-node}
NODE_CACHE=${NODE_CACHE:-${TOOLWEIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/toolweir}/node}
BIN=$NODE_CACHE/bin SRC=$NODE_CACHE/src RUN=$NODE_DIR/run LOG=$NODE_DIR/log
EXPORT="export KUBECONFIG=$RUN/admin.kubeconfig PATH=$BIN:\$PATH"
# The pods of node N have 10.244.(N-1).0/24; the first address is the node's. The same with IPv6, if this machine has it.
NODE_IP=10.244.0.1 POD_CIDR=10.244.0.0/16 SERVICE_CIDR=10.96.0.0/16 DNS_IP=10.96.0.10 LINK=10.244.255
NODE_IP6=fd00:10:244::1 POD_CIDR6=fd00:10:244::/48 SERVICE_CIDR6=fd00:10:96::/112 LINK6=fd00:10:244:ff::
NETNS=toolweir-node2
# The address of what tests call the outside, on a device tw-outside that they make.
OUTSIDE_IP=10.244.254.2
PATH=$BIN:$PATH

fail() { echo "node.sh: $*" >&2; exit 1; }
ipv6() { [ "$(sysctl -n net.ipv6.conf.all.disable_ipv6 2>/dev/null)" = 0 ]; }
# both IPV4 IPV6: the two with a comma, or the first alone on a machine without IPv6.
both() { if ipv6; then echo "$1,$2"; else echo "$1"; fi; }
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

# network_policy_engine: builds kube-router's controller for NetworkPolicies (netpol/main.go), with the client libraries that the control
# plane has compiled already.
network_policy_engine() {
	[ -x "$BIN/netpol" ] && return
	mkdir -p "$SRC/netpol" && cd "$SRC/netpol"
	echo "building netpol (kube-router $KUBE_ROUTER) ..." >&2
	# kube-router wants a commit of netlink that the module proxy may not have.
	printf 'module node\n\ngo 1.26.0\n\nreplace github.com/vishvananda/netlink => github.com/vishvananda/netlink v1.3.1\n' >go.mod
	cp "$(dirname "$SELF")/netpol/main.go" .
	go get "github.com/cloudnativelabs/kube-router/v2@$KUBE_ROUTER" k8s.io/{api,apimachinery,client-go}@"v0${K8S#v1}"
	go get .
	go build -trimpath -ldflags '-s -w' -o "$BIN/netpol.new" .
	mv "$BIN/netpol.new" "$BIN/netpol"
}

packages() {
	local program
	for program in containerd ctr runc nft iptables ipset conntrack openssl; do command -v $program >/dev/null || return; done
	[ -x /usr/lib/cni/bridge ]
}

built() {
	local program
	for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd helm coredns netpol pause; do
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
		local wanted="containerd runc containernetworking-plugins nftables iptables ipset conntrack openssl"
		# Other scripts may be installing something.
		flock /tmp/toolweir-apt.lock sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $wanted"
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
	network_policy_engine
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
# started_at PID: prints when a process started, unless it has ended and only waits to be reaped.
started_at() { sed -n 's/.*) //; /^Z/!p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
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

# set_sysctl NAME VALUE: sets it, and keeps for `down` what it was.
set_sysctl() {
	[ -f "$RUN/sysctl/$1" ] || { mkdir -p "$RUN/sysctl"; sysctl -n "$1" >"$RUN/sysctl/$1"; }
	sysctl -qw "$1=$2"
}

network() {
	# Bridges, since the kernel may lack the dummy device. The second one only routes service addresses, so that nothing sent to one
	# can leave the machine; kube-proxy rewrites these addresses before.
	ip link show cni0 >/dev/null 2>&1 || { ip link add cni0 address "$(bridge_mac 1)" type bridge; ip addr add $NODE_IP/24 dev cni0; ip link set cni0 up; }
	ip link show svc0 >/dev/null 2>&1 || { ip link add svc0 type bridge; ip link set svc0 up; ip route add $SERVICE_CIDR dev svc0; }
	set_sysctl net.ipv4.ip_forward 1
	if ipv6; then
		ip addr replace $NODE_IP6/64 dev cni0 nodad; ip route replace $SERVICE_CIDR6 dev svc0
		set_sysctl net.ipv6.conf.all.forwarding 1
	fi
	nft -f - <<-N
		table inet toolweir-node
		delete table inet toolweir-node
		table inet toolweir-node {
		  chain forward {
		    type filter hook forward priority -10
		    iifname {cni0, tw-node2} oifname != {cni0, tw-node2, svc0, tw-outside} reject
		  }
		}
	N
	cni 1
}

# network2: makes the network namespace of the second node, with routes to and from the first one.
network2() {
	ip netns add $NETNS
	ip link add tw-node2 type veth peer name eth0 netns $NETNS
	ip addr add $LINK.1/30 dev tw-node2; ip link set tw-node2 up
	nsenter --net=/run/netns/$NETNS sh -e <<-N
		ip link set lo up
		ip addr add $LINK.2/30 dev eth0; ip link set eth0 up
		ip link add cni0 address $(bridge_mac 2) type bridge; ip addr add $(node_ip 2)/24 dev cni0; ip link set cni0 up
		ip route add default via $LINK.1 src $(node_ip 2)
		sysctl -qw net.ipv4.ip_forward=1
	N
	ip route add 10.244.1.0/24 via $LINK.2 src $NODE_IP
	if ipv6; then
		ip addr add ${LINK6}1/64 dev tw-node2 nodad
		nsenter --net=/run/netns/$NETNS sh -e <<-N
			sysctl -qw net.ipv6.conf.all.forwarding=1
			ip addr add ${LINK6}2/64 dev eth0 nodad
			ip addr add $(node_ip6 2)/64 dev cni0 nodad
			ip route add default via ${LINK6}1 src $(node_ip6 2)
		N
		ip route add fd00:10:244:1::/64 via ${LINK6}2 src $NODE_IP6
	fi
	cni 2
}

# bridge_mac N: the address of node N's bridge, of the form that CNI gives. Without one of its own, a bridge takes that of a pod, and another
# when pods come and go; then the pods send to nobody until they ask anew where their gateway is, up to a minute later.
bridge_mac() { printf '0a:58:0a:f4:%02x:01\n' $(($1 - 1)); }
node_ip() { echo "10.244.$(($1 - 1)).1"; }
node_ip6() { [ "$1" = 1 ] && echo $NODE_IP6 || echo fd00:10:244:1::1; }

# cni N: writes how pods of node N are connected. There is no masquerading: a NetworkPolicy must see who calls.
cni() {
	local ranges routes='{"dst": "0.0.0.0/0"}' third=$(($1 - 1))
	ranges="[{\"subnet\": \"10.244.$third.0/24\", \"rangeStart\": \"10.244.$third.10\"}]"
	if ipv6; then
		ranges+=", [{\"subnet\": \"fd00:10:244:$third::/64\", \"rangeStart\": \"fd00:10:244:$third::10\"}]" routes+=', {"dst": "::/0"}'
	fi
	mkdir -p "$RUN/cni$1"
	cat >"$RUN/cni$1/10-bridge.conflist" <<-J
		{"cniVersion": "0.4.0", "name": "pods", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
		   "ipam": {"type": "host-local", "dataDir": "$RUN/ipam$1", "ranges": [$ranges], "routes": [$routes]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	J
}

wait_for() { # wait_for SECONDS WHAT COMMAND...: waits until the command succeeds
	local seconds=$1 what=$2; shift 2
	for _ in $(seq $((seconds * 4))); do "$@" >/dev/null 2>&1 && return; sleep 0.25; done
	fail "$what did not come up within $seconds s; the logs are in $LOG: $(cd "$LOG" && ls -tr | tr '\n' ' ')"
}

# is_up N: succeeds if everything of node N runs, and of the control plane with node 1, and the node is ready.
is_up() {
	local name names=("containerd$1" "kubelet$1" "kube-proxy$1")
	[ "$1" != 1 ] || names+=(etcd kube-apiserver controller-manager scheduler coredns)
	[ "$1" != 2 ] || names+=(netpol1 netpol2)
	for name in "${names[@]}"; do running "$name" >/dev/null || return; done
	KUBECONFIG=$RUN/admin.kubeconfig kubectl wait --for condition=Ready "node/node$1" --timeout 10s >/dev/null 2>&1
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
		kubelet1 system:node:node1 system:nodes
		kubelet2 system:node:node2 system:nodes
		controller-manager system:kube-controller-manager
		scheduler system:kube-scheduler
		proxy system:kube-proxy
		dns system:coredns
		netpol system:netpol
	U
	umask "$umask"
}

up() {
	as_root up
	case $NODES in 1 | 2) ;; *) fail "NODES is 1 or 2, and not $NODES" ;; esac
	if is_up 1 && { ! running kubelet2 >/dev/null || is_up 2; }; then
		if [ "$NODES" = 2 ] && ! running kubelet2 >/dev/null; then build >&2; cd "$RUN"; second_node; fi
	else
		[ ! -d "$RUN" ] || down
		build >&2
		mkdir -p "$RUN" "$LOG" && rm -f "$LOG"/*.log; pki; network; cd "$RUN"; users; webhook_client
		control_plane
		join 1
		if [ "$NODES" = 2 ]; then second_node; fi
		wait_for 60 "node 1" kubectl wait --for condition=Ready node/node1 --timeout 1s
		wait_for 30 "the default service account" kubectl get serviceaccount default
		wait_for 30 "cluster DNS" grep -q "^CoreDNS-" "$LOG/coredns.log"
	fi
	echo "$EXPORT"
}

# second_node: adds it, and what enforces NetworkPolicies on both nodes.
second_node() {
	export KUBECONFIG=$RUN/admin.kubeconfig
	network2
	join 2
	wait_for 60 "node 1" kubectl get node node1
	wait_for 60 "node 2" kubectl wait --for condition=Ready node/node2 --timeout 1s
	network_policies 1
	network_policies 2
}

# join N: starts container runtime, kubelet and kube-proxy of node N.
join() {
	local enter=()
	[ "$1" = 1 ] || enter=(nsenter "--net=/run/netns/$NETNS")
	containerd_config "$1" >"containerd$1.toml"
	start "containerd$1" "${enter[@]}" containerd --config "containerd$1.toml"
	wait_for 30 containerd ctr --address "$RUN/containerd$1.sock" version
	[ -f pause.tar ] || python3 "$(dirname "$SELF")/image.py" localhost/pause:1 pause.tar /pause="$BIN/pause" --entrypoint /pause
	ctr_k8s "$1" images import pause.tar >/dev/null
	kubelet_config "$1" >"kubelet$1.yaml"
	start "kubelet$1" "${enter[@]}" kubelet --config "kubelet$1.yaml" --kubeconfig "kubelet$1.kubeconfig" --hostname-override "node$1" \
		--node-ip "$(both "$(node_ip "$1")" "$(node_ip6 "$1")")" --root-dir "$RUN/kubelet$1" --cert-dir "$RUN/pki/kubelet$1"
	proxy_config "$1" >"kube-proxy$1.yaml"
	start "kube-proxy$1" "${enter[@]}" kube-proxy --config "kube-proxy$1.yaml"
}

containerd_config() {
	# restrict_oom_score_adj: without CAP_SYS_RESOURCE, runc cannot lower a score and dies with
	# "can't get final child's PID from pipe: EOF".
	cat <<-T
		version = 2
		root = "$NODE_DIR/containerd/$1"
		state = "$RUN/containerd$1"
		[grpc]
		  address = "$RUN/containerd$1.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "localhost/pause:1"
		  restrict_oom_score_adj = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "/usr/lib/cni"
		    conf_dir = "$RUN/cni$1"
		  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
	T
}

kubelet_config() {
	cat <<-Y
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		address: $(node_ip "$1")
		failCgroupV1: false
		cgroupDriver: cgroupfs
		containerRuntimeEndpoint: unix://$RUN/containerd$1.sock
		clusterDomain: cluster.local
		clusterDNS: [$DNS_IP]
		evictionHard: {memory.available: 50Mi, nodefs.available: 200Mi, imagefs.available: 200Mi}
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		enforceNodeAllocatable: []
	Y
	[ "$1" = 2 ] || return 0
	# Each kubelet removes the control groups and the logs of pods that are not its own.
	cgroups
	printf 'cgroupRoot: /%s\npodLogsDir: %s\n' $NETNS "$RUN/logs2"
}

# cgroups: makes the control group that holds the pods of the second node, in each hierarchy.
cgroups() {
	local root controllers controller
	if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
		read -r controllers </sys/fs/cgroup/cgroup.controllers
		for root in /sys/fs/cgroup /sys/fs/cgroup/$NETNS; do
			mkdir -p "$root"
			for controller in $controllers; do echo "+$controller" >"$root/cgroup.subtree_control" || true; done
		done
	else
		for root in /sys/fs/cgroup/*/; do mkdir -p "$root$NETNS"; done
	fi
}

proxy_config() {
	cat <<-Y
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		healthzBindAddress: 127.0.0.1:10256
		metricsBindAddress: 127.0.0.1:10249
		hostnameOverride: node$1
		clusterCIDR: $(both $POD_CIDR $POD_CIDR6)
		clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
		conntrack: {maxPerCore: 0}
	Y
}

# network_policies N: enforces NetworkPolicies on node N.
network_policies() {
	local enter=() six=false
	[ "$1" = 1 ] || enter=(nsenter "--net=/run/netns/$NETNS")
	if ipv6; then six=true; fi
	# Packets between pods of one node pass the bridge alone, unless the kernel is told to filter them.
	if [ "$1" = 1 ]; then
		set_sysctl net.bridge.bridge-nf-call-iptables 1
		set_sysctl net.bridge.bridge-nf-call-ip6tables 1
	else
		"${enter[@]}" sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
	fi
	start "netpol$1" "${enter[@]}" netpol --kubeconfig "$RUN/netpol.kubeconfig" --hostname-override "node$1" \
		--service-cluster-ip-range "$(both $SERVICE_CIDR $SERVICE_CIDR6)" --enable-ipv6=$six
}

control_plane() {
	start etcd etcd --data-dir "$RUN/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
	start kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range "$(both $SERVICE_CIDR $SERVICE_CIDR6)" \
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
	kubectl create clusterrolebinding node-proxier --clusterrole system:node-proxier --user system:kube-proxy >/dev/null
	kubectl create clusterrole coredns --verb list,watch --resource services,pods,namespaces,endpointslices.discovery.k8s.io >/dev/null
	kubectl create clusterrolebinding coredns --clusterrole coredns --user system:coredns >/dev/null
	kubectl create clusterrole netpol --verb get,list,watch --resource nodes,pods,namespaces,networkpolicies.networking.k8s.io >/dev/null
	kubectl create clusterrolebinding netpol --clusterrole netpol --user system:netpol >/dev/null
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
		# For tests that have a DNS server of their own there.
		test:5353 {
		  bind $NODE_IP
		  forward . $OUTSIDE_IP
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
}

load() {
	as_root load
	[ -S "$RUN/containerd1.sock" ] || fail "the node is not up; start it with: node.sh up"
	local name jobs=()
	for name in 1 2; do
		if [ -S "$RUN/containerd$name.sock" ]; then
			ctr_k8s "$name" images import "$2" >/dev/null &
			jobs+=($!)
		fi
	done
	for name in "${jobs[@]}"; do wait "$name"; done
	echo "loaded $1" >&2
}

# ctr_k8s N COMMAND...: ctr on node N
ctr_k8s() { ctr --address "$RUN/containerd$1.sock" --namespace k8s.io "${@:2}"; }

down() {
	as_root down
	export KUBECONFIG=$RUN/admin.kubeconfig
	local name namespaces= pid node
	# The kubelets stop the pods that they have and release their networks; this needs a running API server.
	if running kube-apiserver >/dev/null && running kubelet1 >/dev/null; then
		timeout 60 kubectl delete pods --all-namespaces --field-selector spec.nodeName!= --grace-period 1 >/dev/null 2>&1 || true
	fi
	for name in netpol1 netpol2 kubelet1 kubelet2 kube-proxy1 kube-proxy2 coredns scheduler controller-manager; do stop $name; done
	# Nothing of theirs is kept, and an API server takes 10 s to end in good order.
	for name in kube-apiserver etcd; do stop $name KILL; done
	for node in 1 2; do
		running containerd$node >/dev/null || continue
		# Pods that the API server could not delete.
		namespaces+=" $(ctr_k8s $node containers ls -q | while read -r name; do ctr_k8s $node containers info "$name"; done |
			grep -o '/netns/cni-[0-9a-f-]*' | sort -u || true)"
		ctr_k8s $node tasks ls -q | while read -r name; do ctr_k8s $node tasks kill -s 9 "$name" || true; done
		for _ in $(seq 40); do ctr_k8s $node tasks ls | grep -q RUNNING || break; sleep 0.25; done
		ctr_k8s $node tasks ls -q | while read -r name; do ctr_k8s $node tasks delete --force "$name" >/dev/null || true; done
		stop containerd$node
	done
	# Shims outlive containerd by design. Their command line has the address of the containerd that started them.
	for pid in $(grep -lazs -e "$RUN/containerd[12].sock" /proc/[0-9]*/cmdline | cut -d / -f 3); do
		case $(readlink "/proc/$pid/exe") in */containerd-shim-*) kill -9 "$pid" 2>/dev/null || true ;; esac
	done
	awk -v run="$RUN/" -v root="$NODE_DIR/containerd/" 'index($5, run) == 1 || index($5, root) == 1 { print $5 }' /proc/self/mountinfo |
		sort -r | while read -r name; do umount -l "$name"; done
	for name in ${namespaces//\/netns\//}; do ip netns delete "$name" 2>/dev/null || true; done
	# The link to the second node goes with its namespace, in a moment; its name must be free at once.
	for name in cni0 svc0 tw-node2; do ip link del $name 2>/dev/null || true; done
	ip netns delete $NETNS 2>/dev/null || true
	for name in "ip kube-proxy" "ip6 kube-proxy" "inet toolweir-node"; do nft delete table $name 2>/dev/null || true; done
	packet_rules
	for name in "$RUN"/sysctl/*; do [ ! -f "$name" ] || sysctl -qw "${name##*/}=$(cat "$name")"; done
	find /sys/fs/cgroup -depth -type d \( -path '*/kubepods*' -o -path "*/$NETNS*" \) -exec rmdir {} + 2>/dev/null || true
	rm -rf "$RUN" "$NODE_DIR/containerd"
}

# packet_rules: removes the chains that the kubelet, the CNI plugins and the NetworkPolicy engine leave behind.
packet_rules() {
	local tables table
	for tables in iptables ip6tables; do
		command -v $tables >/dev/null || continue
		for table in nat mangle filter; do
			# At once: there are many.
			$tables -w -t $table -S 2>/dev/null | awk -v table=$table '
				/^-A/ && $2 !~ /^(CNI|KUBE)-/ && / -j (CNI|KUBE)-/ { sub(/^-A/, "-D"); rules = rules $0 "\n" }
				/^-N (CNI|KUBE)-/ { chains = chains "-F " $2 "\n"; gone = gone "-X " $2 "\n" }
				END { printf "*%s\n%s%s%sCOMMIT\n", table, rules, chains, gone }' | $tables-restore -w --noflush || true
		done
	done
	# Those of the NetworkPolicy engine, which no rule uses any more.
	local set
	for set in $(ipset list -n 2>/dev/null || true); do
		case $set in KUBE-* | TMP-* | inet6:KUBE-* | inet6:TMP-*) ipset destroy "$set" 2>/dev/null || true ;; esac
	done
}

stop() {
	local pid; pid=$(running "$1") || return 0
	kill -s "${2:-TERM}" "$pid" 2>/dev/null || return 0
	for _ in $(seq 40); do running "$1" >/dev/null || return 0; sleep 0.25; done
	kill -9 "$pid" 2>/dev/null || true
}

SELF=$(readlink -f "$0")
case "${1:-}" in
build | up | down) "$1" ;;
load) shift; load "$@" ;;
*) sed -n '2,8p' "$SELF"; exit 2 ;;
esac
