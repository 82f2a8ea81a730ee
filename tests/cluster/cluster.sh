# What the end-to-end suite and the tour share: a cluster with the images in it. Source it after tests/lib.sh.

CLUSTER=$ROOT/tests/cluster
NODE_DIR=${NODE_DIR:-/var/tmp/toolweir-node} NODE_BIN=${NODE_CACHE:-$CACHE/node}/bin
export NODE_DIR
NODE_KUBECONFIG=$NODE_DIR/run/admin.kubeconfig
NODE_STARTED=

# cluster_up: the cluster of KUBECONFIG; without one the node of node.sh, which is started if it does not run.
cluster_up() {
	if [ -z "${KUBECONFIG-}" ] || [ "$KUBECONFIG" = "$NODE_KUBECONFIG" ]; then
		export KUBECONFIG=$NODE_KUBECONFIG PATH=$NODE_BIN:$PATH
		if ! [ -x "$NODE_BIN/kubectl" ] || ! kubectl get --raw /readyz >/dev/null 2>&1; then
			NODE_STARTED=1
			"$CLUSTER/node.sh" up >/dev/null
		fi
	else
		# The node's own kubectl and helm serve where the machine has none.
		PATH=$PATH:$NODE_BIN
		need kubectl "https://kubernetes.io/docs/tasks/tools, or: tests/cluster/node.sh build"
		need helm "https://helm.sh/docs/intro/install, or: tests/cluster/node.sh build"
		kubectl get --raw /readyz >/dev/null || fail "the cluster of KUBECONFIG=$KUBECONFIG does not answer"
		[ "${IMAGE_LOAD-}" ] || fail "KUBECONFIG is set: say with IMAGE_LOAD how an image archive gets into that cluster, such as IMAGE_LOAD='kind load image-archive'; 'true' if the images are there"
	fi
	# What the user of this machine has set up for Helm has no say here.
	local variable
	for variable in $(compgen -e HELM_ || true); do unset "$variable"; done
	"$CLUSTER/images.sh" load
}

# cluster_down: stops the node if cluster_up started it, unless KEEP=1.
cluster_down() {
	[ "$NODE_STARTED" ] || return 0
	if [ "${KEEP-}" = 1 ]; then
		echo "The node is left running: export KUBECONFIG=$NODE_KUBECONFIG PATH=$NODE_BIN:\$PATH; end it with: make cluster-down"
	else
		"$CLUSTER/node.sh" down
	fi
}
