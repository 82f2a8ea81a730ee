#!/usr/bin/env bash
# Measures what capture costs, with a pod and what is outside it in two network namespaces. In one run:
#   - a governed call whose connection is redirected to the sidecar, against the same call to the sidecar's own URL;
#   - throughput and connect time of a protocol that is neither HTTP nor TLS, against nginx's stream proxy;
#   - connect time of TLS by its server name, against nginx's stream proxy that reads the name too;
#   - the memory of 64 idle connections.
# What is compared alternates in short blocks, so that other load on the machine affects both. Prints a table, and whether the targets are
# met. It needs root and NET_ADMIN.
#
#   BLOCKS=20 CALLS=2000                    blocks of calls
#   ROUNDS=7 SECONDS_PER_ROUND=1            rounds of throughput
#   CONNECTIONS=1,8                         how many connections carry bytes at once
#   CONNECTS=1000                           connections made in each round
#   BENCH_STRICT=1                          exit code 1 if a target is missed
#   SMOKE=1                                 a few seconds: tests that the benchmark works
#   SIDECAR=BINARY BENCH=BINARY             use these programs instead of release builds

. "$(dirname "$0")/pod.sh"

if [ "${SMOKE:-0}" = 1 ]; then
	: "${BLOCKS:=2}" "${CALLS:=200}" "${ROUNDS:=1}" "${SECONDS_PER_ROUND:=0.2}" "${CONNECTS:=50}"
fi
: "${BLOCKS:=20}" "${CALLS:=2000}" "${CONNECTIONS:=1,8}" "${ROUNDS:=7}" "${SECONDS_PER_ROUND:=1}" "${CONNECTS:=1000}"

NAME=raw.bench.example
nginx=$(nginx_binary)
module=$(nginx_stream_module)
cp "$nginx" "$dir/nginx-binary"
cp "$module" "$dir/ngx_stream_module.so"
mkdir "$dir/nginx"
make_pod "$NAME"

# Outside: an MCP server and the raw server.
start "$dir/upstream.log" ip netns exec "$OUTSIDE" "$bench" upstream --listen "$SERVER:8000"
start "$dir/raw.log" ip netns exec "$OUTSIDE" "$bench" raw-server --listen "$SERVER:9000"
wait_inside "$OUTSIDE" "$SERVER" 8000 "$dir/upstream.log"
wait_inside "$OUTSIDE" "$SERVER" 9000 "$dir/raw.log"

# Inside: the sidecar and nginx, which runs as the sidecar's user so that the rules let it out.
{
	policy_of "http://$SERVER:8000/mcp" "{max: 1000000000, window: minute}"
	cat <<-END
		  egress:
		    allow:
		    - {cidrs: [10.77.0.0/24], ports: [9000]}
		    - {domainNames: [$NAME], cidrs: [10.77.0.0/24], ports: [9000]}
	END
} >"$dir/policy.yaml"
start_captured
cat >"$dir/nginx.conf" <<-END
	load_module $dir/ngx_stream_module.so;
	worker_processes 2;
	daemon off;
	pid $dir/nginx/pid;
	error_log stderr warn;
	events { worker_connections 1024; }
	stream {
	  access_log off;
	  proxy_half_close on;
	  proxy_buffer_size ${NGINX_BUFFER:-64k};
	  server {
	    listen 127.0.0.1:9001 backlog=1024;
	    proxy_pass $SERVER:9000;
	  }
	  server {
	    listen 127.0.0.1:9002 backlog=1024;
	    ssl_preread on;
	    resolver $RESOLVER ipv6=off;
	    proxy_pass \$ssl_preread_server_name:9000;
	  }
	}
END
chown "$SIDECAR_UID:$SIDECAR_GID" "$dir/nginx"
start "$dir/nginx.log" "${as_sidecar[@]}" "$dir/nginx-binary" -e stderr -p "$dir/nginx" -c "$dir/nginx.conf"
wait_inside "$POD" 127.0.0.1 9001 "$dir/nginx.log"

versions
echo "nginx: $("$nginx" -v 2>&1 | sed 's/.*: //')"

# The client is root's, so all that it calls outside is captured.
pod "$bench" raw-idle --target "$SERVER:9000" --pid "$sidecar_pid" --connections 64 >"$dir/idle.json"
pod "$bench" alternate --base http://127.0.0.1:15001/bench --other "http://$SERVER:8000/mcp" --blocks "$BLOCKS" --calls "$CALLS" >"$dir/calls.json"
pod "$bench" raw-load --target nginx=127.0.0.1:9001 --target "sidecar=$SERVER:9000" \
	--tls-target nginx=127.0.0.1:9002 --tls-target "sidecar=$SERVER:9000" --server-name "$NAME" \
	--connections "$CONNECTIONS" --rounds "$ROUNDS" --seconds "$SECONDS_PER_ROUND" --connects "$CONNECTS" >"$dir/load.json"

audited $((2 * BLOCKS * CALLS)) '"tool":"send_message"'
audited $((ROUNDS * CONNECTS)) '"protocol":"other","decision":"allowed"'
audited $((ROUNDS * CONNECTS)) '"protocol":"tls","decision":"allowed"'

python3 - "$dir" "${BENCH_STRICT:-0}" <<'END'
import json, sys
folder, strict = sys.argv[1:]
calls, load, idle = (json.load(open(f"{folder}/{name}.json")) for name in ("calls", "load", "idle"))
missed = 0
def row(what, base, ours, held, bar, met):
    global missed
    missed += not met
    print(f"| {what} | {base} | {ours} | {held} | {bar}: {'met' if met else '**missed**'} |")
print("\n| what | compared with | sidecar | difference | target |\n| --- | ---: | ---: | ---: | --- |")
row("governed call, p50 µs; compared with `/<server>`", f"{calls['base']:.1f}", f"{calls['other']:.1f}", f"{calls['added']:+.1f} µs",
    "at most 15 µs more", calls["added"] <= 15)
for figure in sorted((f for f in load if f.startswith(("up", "down"))), key=lambda f: (int(f.split("_")[1]), f[0] != "u")):
    direction, count = figure.split("_")
    ratio = load[figure]["sidecar"]["ratio"]
    row(f"{direction}load on {count} connection{'s' * (count != '1')}, MiB/s; nginx", *(f"{load[figure][of]['median']:.0f}" for of in ("nginx", "sidecar")),
        f"{ratio:.2f}", "at least 0.8", ratio >= 0.8)
for kind, what in (("connect", "connect to first byte"), ("tls_connect", "the same for TLS, by its server name")):
    for at in ("p50", "p99"):
        figure = load[f"{kind}_{at}"]
        ratio = figure["sidecar"]["ratio"]
        row(f"{what}, {at} µs; nginx", *(f"{figure[of]['median']:.0f}" for of in ("nginx", "sidecar")), f"{ratio:.2f}", "at most 3", ratio <= 3)
grown = idle["rss_kib_with"] - idle["rss_kib"]
row(f"{idle['connections']} idle connections, resident KiB; before", idle["rss_kib"], idle["rss_kib_with"], f"{grown:+} KiB", "under 1024 KiB", grown < 1024)
print(f"\nof it {idle['anonymous_kib_with'] - idle['anonymous_kib']:+} KiB of the process's own; {idle['files_with'] - idle['files']:+} open files")
sys.exit(strict == "1" and missed > 0)
END
