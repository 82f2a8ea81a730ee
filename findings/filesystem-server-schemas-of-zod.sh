#!/usr/bin/env bash
# @modelcontextprotocol/server-filesystem 2025.8.21 (npm), installed today, lists fourteen tools of which none takes an argument.
#
# The package imports zod, which it does not depend on itself: npm installs the newest one that zod-to-json-schema admits (^3.25.28 || ^4), and
# puts it where the server finds it. That was zod 3 when the release was made, and is zod 4 now. Schemas made by zod 4 still parse
# arguments, so the server starts and its tools work. But zod-to-json-schema 3.25.2, which declares that it supports zod 4, knows only the
# inside of zod 3 schemas: of any other it makes {"$schema": "..."} without an error or a warning. So the same release, pinned to its exact
# version, tells models on one machine that read_file takes a path, and on another nothing. Only a lock file tells the two apart.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints for each tool of the server how many arguments its schema names, with this zod. Calls one of them too.
listed() {
	local dir=$work/zod-$1
	mkdir "$dir"
	cd "$dir"
	echo '{"name": "x", "version": "0.0.0", "private": true}' >package.json
	npm install --silent --no-audit --no-fund --ignore-scripts @modelcontextprotocol/server-filesystem@2025.8.21 "zod@$1" zod-to-json-schema@3.25.2 >&2
	echo hello >"$dir/note.txt"
	cat >ask.mjs <<-'JS'
		import { spawn } from "node:child_process";
		import { createInterface } from "node:readline";
		const folder = process.cwd();
		const server = spawn("node_modules/.bin/mcp-server-filesystem", [folder], { stdio: ["pipe", "pipe", "ignore"] });
		const answers = createInterface({ input: server.stdout })[Symbol.asyncIterator]();
		const send = (message) => server.stdin.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
		const ask = async (id, method, params) => {
			send({ id, method, params });
			for (;;) {
				const answer = JSON.parse((await answers.next()).value);
				if (answer.id === id) return answer.result;
			}
		};
		await ask(1, "initialize", { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "ask", version: "1" } });
		send({ method: "notifications/initialized" });
		const { tools } = await ask(2, "tools/list", {});
		for (const tool of tools) console.log(tool.name, Object.keys(tool.inputSchema.properties ?? {}).length);
		const read = await ask(3, "tools/call", { name: "read_text_file", arguments: { path: folder + "/note.txt" } });
		console.log("read_text_file gives", read.content[0].text.trim());
		server.kill();
	JS
	node ask.mjs
}

three=$(listed 3.25.76)
four=$(listed 4.6.7)
printf 'zod 3.25.76: tool, arguments\n%s\n\nzod 4.6.7: tool, arguments\n%s\n' "$three" "$four"
grep -q '^read_text_file 3$' <<<"$three"
grep -q '^read_text_file 0$' <<<"$four"
# But for list_allowed_directories, every tool has arguments with the one, and none with the other; calls work with both.
test "$(grep -c ' 0$' <<<"$three")" = 1
test "$(grep -c ' [1-9][0-9]*$' <<<"$four")" = 0
grep -q '^read_text_file gives hello$' <<<"$three"
grep -q '^read_text_file gives hello$' <<<"$four"
