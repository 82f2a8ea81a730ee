# Shared by the end-to-end tests and the demo: a cluster with the images loaded. Source it after tests/lib.sh.

CLUSTER=$ROOT/tests/cluster
NODE_DIR=${NODE_DIR:-/var/tmp/toolweir-node} NODE_BIN=${NODE_CACHE:-$CACHE/node}/bin
export NODE_DIR
NODE_KUBECONFIG=$NODE_DIR/run/admin.kubeconfig
NODE_STARTED=

# cluster_up IMAGE...: uses the cluster of KUBECONFIG, or else starts the nodes of node.sh that do not run; NODES says how many. It
# builds and loads these images.
cluster_up() {
	# Builds before the node starts, since the compiler takes all cores.
	"$CLUSTER/images.sh" build "$@"
	if [ -z "${KUBECONFIG-}" ] || [ "$KUBECONFIG" = "$NODE_KUBECONFIG" ]; then
		export KUBECONFIG=$NODE_KUBECONFIG PATH=$NODE_BIN:$PATH
		if ! [ -x "$NODE_BIN/kubectl" ] || ! kubectl get --raw /readyz >/dev/null 2>&1; then NODE_STARTED=1; fi
		# Adds a second node to one that runs, if NODES=2.
		"$CLUSTER/node.sh" up >/dev/null
	else
		# If the machine has no kubectl and helm, those of the node do.
		PATH=$PATH:$NODE_BIN
		need kubectl "https://kubernetes.io/docs/tasks/tools, or: tests/cluster/node.sh build"
		need helm "https://helm.sh/docs/intro/install, or: tests/cluster/node.sh build"
		kubectl get --raw /readyz >/dev/null || fail "the cluster of KUBECONFIG=$KUBECONFIG does not answer"
		[ "${IMAGE_LOAD-}" ] || fail "KUBECONFIG is set, so set IMAGE_LOAD to a command that loads an image archive into that cluster, such as IMAGE_LOAD='kind load image-archive'; use IMAGE_LOAD=true if the images are there"
	fi
	# Ignores the user's settings of Helm.
	local variable
	for variable in $(compgen -e HELM_ || true); do unset "$variable"; done
	"$CLUSTER/images.sh" load "$@"
}

# cluster_down: stops the node if cluster_up has started it, unless KEEP=1.
cluster_down() {
	[ "$NODE_STARTED" ] || return 0
	if [ "${KEEP-}" = 1 ]; then
		echo "The node is still running: export KUBECONFIG=$NODE_KUBECONFIG PATH=$NODE_BIN:\$PATH; stop it with: make cluster-down"
	else
		"$CLUSTER/node.sh" down
	fi
}
