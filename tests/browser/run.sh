#!/usr/bin/env bash
# Runs the client of the MCP SDK in a page in headless Chromium, through the sidecar: from origins that are accepted, and from one that is
# not.

. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
need node "apt-get install nodejs npm (Node 20 or later)"
need chromium "apt-get install chromium"

dir=$(node_env page @modelcontextprotocol/client@2.4.0 esbuild@0.25)
everything=$(node_env everything @modelcontextprotocol/server-everything@2026.8.31)/node_modules/.bin/mcp-server-everything
sidecar=${SIDECAR:-$(sidecar)}
cp "$here/page.js" "$dir/page.js"
(cd "$dir" && node_modules/.bin/esbuild page.js --bundle --format=esm --target=es2022 --outfile=bundle.js --log-level=error)

logs=$TARGET/test-browser
rm -rf "$logs" && mkdir -p "$logs"
port=$(free_port) listen=127.0.0.1:$(free_port)
start "$logs/everything.log" env PORT="$port" "$everything" streamableHttp
wait_port "$port" 30 "server-everything"
cat >"$logs/policy.yaml" <<-END
	apiVersion: toolweir.dev/v1alpha1
	kind: MCPPolicy
	metadata: {name: page, namespace: tests}
	spec:
	  podSelector: {}
	  servers:
	  - name: everything
	    url: http://127.0.0.1:$port/mcp
	    tools:
	    - name: echo
END
start "$logs/sidecar.log" "$sidecar" run --policy "$logs/policy.yaml" --listen "$listen" --allow-host chat.example \
	--metrics-listen "127.0.0.1:$(free_port)" --admin-listen "127.0.0.1:$(free_port)"
wait_port "${listen##*:}" 10 "the sidecar ($logs/sidecar.log)"
node "$here/page.mjs" "$(command -v chromium)" "$dir/bundle.js" "http://$listen/everything"
