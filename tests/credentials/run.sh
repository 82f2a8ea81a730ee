#!/usr/bin/env bash
# Tests credentials that only the sidecar holds, against real counterparts on this machine: MCP servers of the official Python SDK that
# want one; Keycloak, oidc-provider and zitadel/oidc as OAuth servers. What the servers received decides.
#
#   run.sh                              runs all scenarios and prints a summary; exit code 1 if a requirement is not met
#   ONLY="kinds rotation" run.sh        runs these scenarios only
#
# SIDECAR=BINARY: the sidecar. The logs of the processes are in target/test-credentials/SCENARIO.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need java "apt-get install default-jdk-headless (Java 17 or later)"
need mvn "apt-get install maven"
need node "apt-get install nodejs npm (Node 20 or later)"
need go "https://go.dev/dl (Go 1.26 or later)"
need openssl "apt-get install openssl"

# keycloak VERSION: prints the path of a Keycloak from Maven Central whose settings of a build are made.
keycloak() {
	local dir=$CACHE/keycloak options=(--db=dev-mem --cache=local --metrics-enabled=false --health-enabled=false)
	if ! stamp "$dir" "$1" "${options[@]}"; then
		rm -rf "$dir" "$dir.new" && mkdir -p "$dir.new"
		mvn --quiet --batch-mode -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
			"-Dartifact=org.keycloak:keycloak-quarkus-dist:$1:zip" "-DoutputDirectory=$dir.new" >&2
		python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' "$dir.new/keycloak-quarkus-dist-$1.zip" "$dir.new"
		bash "$dir.new/keycloak-$1/bin/kc.sh" build "${options[@]}" >&2
		mv "$dir.new/keycloak-$1" "$dir"
		rm -rf "$dir.new"
		echo "$1 ${options[*]}" >"$dir/.made-from"
	fi
	echo "$dir"
}

python=$(python_env credentials mcp==2.3.0 h2==4.4.1 hypercorn==0.18.0)/bin/python
packages=$(node_env credentials oidc-provider@9.13.3)
keycloak=$(keycloak 26.7.3)
binary=${SIDECAR:-$(sidecar)}
mkdir -p "$TARGET/test-credentials"
(cd "$here/exchange" && go build -o "$TARGET/test-credentials/exchange" .)
# shellcheck disable=SC2086 # ONLY is a list
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$here/scenarios.py" --sidecar "$binary" --dir "$TARGET/test-credentials" \
	--keycloak "$keycloak" --node "$packages" --exchange "$TARGET/test-credentials/exchange" ${ONLY-}
