#!/usr/bin/env bash
# Compares a call through the sidecar with a direct call and with calls through a plain proxy, nginx and the proxies in PEERS. All are
# measured on one machine in interleaved rounds. Prints a table, and whether the targets are met.
#
#   ROUNDS=5 SECONDS_PER_ROUND=3 CONNECTIONS=1,16,64     the amount of measurement
#   TARGETS="direct pass-through nginx sidecar"          the systems to measure
#   PEERS="name=url name=url,pid"                        other running proxies; with a pid, their CPU time and memory too
#   UPSTREAM_PORT=...                                    the port of the MCP server, for the configuration of peers
#   BENCH_STRICT=1                                       exit code 1 if a target is missed
#   --smoke, or SMOKE=1                                  a few seconds, without nginx: tests that the benchmark works

. "$(dirname "$0")/lib.sh"

[ "${1:-}" = --smoke ] && SMOKE=1
if [ "${SMOKE:-0}" = 1 ]; then
	: "${ROUNDS:=1}" "${SECONDS_PER_ROUND:=0.3}" "${WARM_UP:=0.1}" "${CONNECTIONS:=1,16}"
	: "${TARGETS:=direct pass-through sidecar}"
fi
: "${ROUNDS:=5}" "${SECONDS_PER_ROUND:=3}" "${WARM_UP:=0.5}" "${CONNECTIONS:=1,16,64}"
: "${TARGETS:=direct pass-through nginx sidecar}"

# start_nginx BINARY DIR PORT UPSTREAM_PORT: starts nginx with its fastest configuration for this: connections stay open on both sides,
# and nothing is logged. Responses are not buffered, as the streams of MCP require; here this is also a little faster.
start_nginx() {
	cat >"$2/nginx.conf" <<-END
		worker_processes 2;
		daemon off;
		pid $2/nginx.pid;
		error_log stderr warn;
		events { worker_connections 1024; }
		http {
		  access_log off;
		  tcp_nodelay on;
		  keepalive_requests 1000000000;
		  client_body_temp_path $2/nginx-body;
		  proxy_temp_path $2/nginx-proxy;
		  fastcgi_temp_path $2/nginx-fastcgi;
		  uwsgi_temp_path $2/nginx-uwsgi;
		  scgi_temp_path $2/nginx-scgi;
		  upstream mcp {
		    server 127.0.0.1:$4;
		    keepalive 128;
		    keepalive_requests 1000000000;
		  }
		  server {
		    listen 127.0.0.1:$3 backlog=1024;
		    location / {
		      proxy_pass http://mcp;
		      proxy_http_version 1.1;
		      proxy_set_header Connection "";
		      proxy_buffering off;
		    }
		  }
		}
	END
	start "$2/nginx.log" "$1" -p "$2" -c "$2/nginx.conf"
	wait_port "$3" 10 nginx
}

bench=$(bench)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT

upstream=${UPSTREAM_PORT:-$(free_port)}
start "$dir/upstream.log" "$bench" upstream --listen "127.0.0.1:$upstream"
wait_port "$upstream" 10 "the upstream"

about=()
targets=()
for target in $TARGETS; do
	case $target in
	direct) targets+=(--target "direct=http://127.0.0.1:$upstream/mcp") ;;
	pass-through)
		port=$(free_port)
		start "$dir/pass-through.log" "$bench" pass-through --listen "127.0.0.1:$port" --upstream "127.0.0.1:$upstream"
		wait_port "$port" 10 "the pass-through proxy"
		targets+=(--target "pass-through=http://127.0.0.1:$port/mcp,${STARTED[-1]}")
		;;
	nginx)
		nginx=$(nginx_binary)
		port=$(free_port)
		start_nginx "$nginx" "$dir" "$port" "$upstream"
		targets+=(--target "nginx=http://127.0.0.1:$port/mcp,${STARTED[-1]}")
		about+=("$("$nginx" -v 2>&1 | sed 's/.*: //')")
		;;
	sidecar)
		binary=$(sidecar)
		start_sidecar "$binary" "$dir" "$upstream" "{max: 1000000000, window: minute}" "$dir/audit.log"
		targets+=(--target "sidecar=$SIDECAR_URL,$SIDECAR_PID")
		about+=("toolweir-sidecar at $(git -C "$ROOT" describe --always --dirty)")
		;;
	*) fail "no such target: $target" ;;
	esac
done
for peer in ${PEERS:-}; do targets+=(--target "$peer"); done

strict=()
[ "${BENCH_STRICT:-0}" = 1 ] && strict=(--strict)

echo "$(date -u +%F), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r)"
((${#about[@]})) && printf '%s\n' "${about[@]}"
echo "A tools/call of 1 KiB, answered by 1 KiB; medians of $ROUNDS rounds of $SECONDS_PER_ROUND s each"
echo
"$bench" compare "${targets[@]}" --rounds "$ROUNDS" --seconds "$SECONDS_PER_ROUND" --warm-up "$WARM_UP" \
	--connections "$CONNECTIONS" "${strict[@]}" || {
	tail -n 5 "$dir"/{upstream,pass-through,nginx,sidecar}.log 2>/dev/null >&2 || true
	exit 1
}
