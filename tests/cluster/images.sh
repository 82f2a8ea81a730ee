#!/usr/bin/env bash
# Builds the images of the operator, the sidecar, the test agents, SDK clients and a shared store, without a daemon and a registry.
#
#   images.sh build [operator|sidecar|agent|clients|store]...   writes archives to target/images; the default is all. With operator and
#                                                       sidecar, it also builds the simulator, the Rust client and kubectl-toolweir
#   images.sh binaries operator sidecar                 builds the programs of these images only; prints their folder
#   images.sh load [operator|sidecar|agent|clients|store]...    builds the images and loads them into the nodes, or with IMAGE_LOAD
#
# IMAGE_PROFILE: the cargo profile. The default, quick, is the release profile without link-time optimization. IMAGE_LOAD: a command
# that loads an archive into another cluster, such as "kind load image-archive". IMAGE_TAG: the tag; the default is e2e.
. "$(dirname "$0")/../lib.sh"

PROFILE=${IMAGE_PROFILE:-quick} TAG=${IMAGE_TAG:-e2e}
HERE=$ROOT/tests/cluster OUT=$TARGET/images
mkdir -p "$OUT"

# binaries NAME...: builds the programs and prints their folder.
binaries() {
	local triple packages=()
	need cargo "https://rustup.rs"
	triple=$(rustc -vV | sed -n 's/^host: //p')
	for name in "$@"; do packages+=(-p "toolweir-$name"); done
	# One build for all, since they share nearly all dependencies.
	[ $# -lt 2 ] || packages+=(-p toolweir-test-simulator -p toolweir-test-rmcp -p toolweir-cli)
	# With --target, RUSTFLAGS does not apply to build scripts. A static program needs no C library in its image.
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --manifest-path "$ROOT/Cargo.toml" --target-dir "$TARGET" \
		--target "$triple" --profile "$PROFILE" "${packages[@]}" >&2 || fail "the binaries cannot be built"
	echo "$TARGET/$triple/$PROFILE"
}

image() { echo "localhost/toolweir-$1:$TAG"; }

# from_dockerfile NAME BINARY: builds an archive with buildah, in a temporary storage.
from_dockerfile() {
	local name=$1 binary=$2 work
	if ldd "$binary" 2>/dev/null | grep -q '=>'; then fail "$binary is not static, so it cannot run in an empty image"; fi
	work=$(mktemp -d "$OUT/$name.XXXXXX")
	mkdir "$work/context"
	cp "$binary" "$work/context/"
	[ -f /etc/ssl/certs/ca-certificates.crt ] || fail "needs /etc/ssl/certs/ca-certificates.crt; install it with: apt-get install ca-certificates"
	cp -L /etc/ssl/certs/ca-certificates.crt "$work/context/"
	chmod -R u=rwX,go=rX "$work/context"
	local buildah=(buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs)
	# The same binary always makes the same image.
	"${buildah[@]}" bud --quiet --isolation chroot --timestamp 0 --tag "$(image "$name")" -f "$ROOT/$name/Dockerfile" "$work/context" >/dev/null
	"${buildah[@]}" push --quiet "$(image "$name")" "docker-archive:$work/image.tar:$(image "$name")"
	mv "$work/image.tar" "$OUT/$name.tar"
	rm -rf "$work"
}

agent() {
	local venv made
	venv=$(python_env demo mcp==2.3.0)
	# This takes half a minute, so the image is rebuilt only if its contents change.
	made="$TAG $("$venv/bin/python" -VV | cksum) $(cat "$venv/.made-from" "$HERE"/agent/*.py "$HERE/image.py" "$ROOT"/tests/demo/*.py | cksum)"
	if ! [ -f "$OUT/agent.tar" ] || [ "$(cat "$OUT/agent.made-from" 2>/dev/null)" != "$made" ]; then
		"$venv/bin/python" "$HERE/agent/build.py" "$(image agent)" "$OUT/agent.tar.new" "$venv" "$OUT/agent" >&2
		rm -rf "$OUT/agent"
		mv "$OUT/agent.tar.new" "$OUT/agent.tar"
		echo "$made" >"$OUT/agent.made-from"
	fi
}

# clients: builds an image with the clients of tests/sdk, the Rust SDK and curl, beside what the agent's has.
clients() {
	local sdk=$ROOT/tests/sdk venv mcp1 npm made file files=()
	need node "apt-get install nodejs npm (Node 20 or later)"
	need go "https://go.dev/dl (Go 1.26 or later)"
	need curl "apt-get install curl"
	venv=$(python_env demo mcp==2.3.0)
	mcp1=$(python_env clients mcp==1.30.0)
	npm=$(node_env clients @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0)
	(cd "$sdk/go" && CGO_ENABLED=0 go build -trimpath -o "$OUT/gosdk" ./gosdk)
	[ -x "$OUT/rmcp-driver" ] || fail "build the images operator and sidecar first: the Rust client comes with them"
	for file in py1.py py2.py ts1.mjs ts2.mjs checks.py checks.mjs driver.py; do files+=("/opt/clients/$file=$sdk/$file"); done
	# The agents of the tests of approvals, which take commands.
	for file in agent1.py agent2.py agent_lines.py agent.mjs; do files+=("/opt/clients/$file=$ROOT/tests/approvals/$file"); done
	for file in client2.py server2.py record.py steps.py; do files+=("/opt/clients/operations/$file=$ROOT/tests/operations/$file"); done
	files+=("/opt/clients/mcp1=$(echo "$mcp1"/lib/python3*/site-packages)" "/opt/clients/node_modules=$npm/node_modules")
	files+=("/opt/clients/gosdk=$OUT/gosdk" "/opt/clients/rmcp-driver=$OUT/rmcp-driver" "/usr/bin/node=$(command -v node)" "/usr/bin/curl=$(command -v curl)")
	# As images of clients have them: some do not start without.
	files+=(/etc/ssl/certs/ca-certificates.crt=/etc/ssl/certs/ca-certificates.crt)
	made="$TAG ${files[*]} $("$venv/bin/python" -VV | cksum) $(cat "$venv/.made-from" "$mcp1/.made-from" "$npm/.made-from" "$sdk"/*.py "$sdk"/*.mjs \
		"$ROOT"/tests/approvals/agent* "$ROOT"/tests/operations/*.py \
		"$OUT/gosdk" "$OUT/rmcp-driver" "$HERE"/agent/*.py "$HERE/image.py" "$ROOT"/tests/demo/*.py | cksum)"
	if ! [ -f "$OUT/clients.tar" ] || [ "$(cat "$OUT/clients.made-from" 2>/dev/null)" != "$made" ]; then
		"$venv/bin/python" "$HERE/agent/build.py" "$(image clients)" "$OUT/clients.tar.new" "$venv" "$OUT/clients" "${files[@]}" >&2
		rm -rf "$OUT/clients"
		mv "$OUT/clients.tar.new" "$OUT/clients.tar"
		echo "$made" >"$OUT/clients.made-from"
	fi
}

# store: builds an image in place of the chart's Valkey: this machine's redis-server under the names of Valkey, and the programs that the
# chart's StatefulSet uses, with their libraries.
store() {
	local program path made words=() files=()
	ensure_redis
	for program in sh=dash sed=sed cat=cat grep=grep sleep=sleep valkey-server=redis-server valkey-cli=redis-cli; do
		path=$(command -v "${program#*=}")
		words+=("/usr/bin/${program%%=*}=$path") files+=("$path")
	done
	while read -r path; do
		case $path in
		# A library of the cache folder, or of the machine.
		"$CACHE"/*) words+=("/usr/lib/$(uname -m)-linux-gnu/${path##*/}=$path") ;;
		*) words+=("$path=$path") ;;
		esac
	done < <(ldd "${files[@]}" | sed -n 's|^.*[[:space:]]\(/[^ ]*\) (0x.*|\1|p' | sort -u)
	python3 "$HERE/image.py" "$(image store)" "$OUT/store.tar.new" "${words[@]}" --entrypoint /usr/bin/valkey-server \
		--user 65532:65532 --env PATH=/usr/bin
	mv "$OUT/store.tar.new" "$OUT/store.tar"
}

build() {
	local name folder rust=() others=()
	for name in "$@"; do case $name in
		operator | sidecar) rust+=("$name") ;;
		agent | clients | store) others+=("$name") ;;
		*) fail "there is no image $name; there are operator, sidecar, agent, clients, store" ;;
	esac done
	if [ ${#rust[@]} -gt 0 ]; then
		ensure buildah buildah
		folder=$(binaries "${rust[@]}")
		for name in "${rust[@]}"; do from_dockerfile "$name" "$folder/toolweir-$name"; done
		[ ${#rust[@]} -lt 2 ] || cp "$folder/toolweir-test-simulator" "$folder/rmcp-driver" "$folder/kubectl-toolweir" "$OUT/"
	fi
	for name in "${others[@]}"; do "$name"; done
}

load() {
	local name load
	for name in "$@"; do
		if [ "${IMAGE_LOAD-}" ]; then
			read -ra load <<<"$IMAGE_LOAD"
			"${load[@]}" "$OUT/$name.tar"
		else
			"$HERE/node.sh" load "$(image "$name")" "$OUT/$name.tar"
		fi
	done
}

command=${1-}
[ $# -eq 0 ] || shift
images=("$@")
[ $# -gt 0 ] || images=(operator sidecar agent clients store)
case $command in
binaries) binaries "${images[@]}"; exit ;;
build) build "${images[@]}" ;;
load) build "${images[@]}"; load "${images[@]}" ;;
*) sed -n '2,11p' "$0" >&2; exit 2 ;;
esac
for name in "${images[@]}"; do printf '%-34s %6d KiB  %s\n' "$(image "$name")" "$(($(stat -c %s "$OUT/$name.tar") / 1024))" "$OUT/$name.tar" >&2; done
