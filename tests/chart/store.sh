#!/usr/bin/env bash
# store.sh RENDERING: runs the script of the chart's store with this machine's redis-server in place of Valkey. It must serve TLS only,
# and load a new certificate without a restart.

. "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
ensure_redis
rendering=$1 python=$(python_env chart pyyaml==6.0.4)/bin/python
work=$(mktemp -d "${TMPDIR:-/tmp}/toolweir-store.XXXXXX") port=$(free_port) group=
end() {
	[ -z "$group" ] || kill -- "-$group" 2>/dev/null || true
	rm -rf "$work"
}
trap end EXIT

mkdir "$work"/{bin,password,data,first,second}
printf 'a "pass\\word"' >"$work/password/password"
# The program names of the image, with the test's port and a short pause.
printf '#!/bin/sh\nexec redis-server "$@"\n' >"$work/bin/valkey-server"
printf '#!/bin/sh\nexec redis-cli -p %s "$@"\n' "$port" >"$work/bin/valkey-cli"
printf '#!/bin/sh\nexec %s 0.2\n' "$(command -v sleep)" >"$work/bin/sleep"
chmod +x "$work"/bin/*
"$python" - "$rendering" "$work" "$port" >"$work/run" <<'END'
import sys, yaml
rendering, work, port = sys.argv[1:]
[store] = [one for one in yaml.safe_load_all(open(rendering)) if one and one["kind"] == "StatefulSet"]
[script] = store["spec"]["template"]["spec"]["containers"][0]["args"]
for there, here in (("/etc/toolweir-store-tls", f"{work}/tls"), ("/etc/toolweir-store/", f"{work}/password/"), ("dir /data", f"dir {work}/data"), ("tls-port 6379", f"tls-port {port}")):
    assert there in script, there
    script = script.replace(there, here)
print(script)
END
certificate() { # certificate NAME: writes one to the folder NAME, as the operator does
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" -addext "subjectAltName=DNS:store.test" \
		-keyout "$work/$1/tls.key" -out "$work/$1/tls.crt" 2>/dev/null
}
certificate first
certificate second
# show NAME: replaces one link, as the kubelet does, so that certificate and key change together.
show() {
	ln -s "$work/$1" "$work/tls.new"
	mv -T "$work/tls.new" "$work/tls"
}
shown() { openssl s_client -connect "127.0.0.1:$port" </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null | tr -d ' '; }
until_shown() {
	local i
	for ((i = 0; i < 100; i++)); do
		[ "$(shown)" != "subject=CN=$1" ] || return 0
		sleep 0.1
	done
	echo "it shows '$(shown)' instead of $1 after 10 s" >&2
	cat "$work/log" >&2
	return 1
}

show first
KEY=password MAX_MEMORY=10mb PATH=$work/bin:$PATH setsid sh "$work/run" >"$work/log" 2>&1 &
group=$!
until_shown first
ask() { REDISCLI_AUTH='a "pass\word"' redis-cli -p "$port" "$@" 2>&1; }
[ "$(ask --tls --cacert "$work/first/tls.crt" ping)" = PONG ]
# This connection must survive.
exec 3< <(REDISCLI_AUTH='a "pass\word"' redis-cli -p "$port" --tls --insecure -r 40 -i 0.2 incr calls 2>&1)
! ask ping | grep -q PONG || { echo "it answers without TLS" >&2; exit 1; }
began=$(ask --tls --insecure info server | grep ^run_id)
show second
until_shown second
[ "$(ask --tls --cacert "$work/second/tls.crt" ping)" = PONG ]
[ "$(ask --tls --insecure info server | grep ^run_id)" = "$began" ] || { echo "it was restarted" >&2; exit 1; }
grep -q "a new certificate: OK" "$work/log"
# A certificate with another key is refused, and the next one is loaded.
mkdir "$work/broken"
cp "$work/first/tls.crt" "$work/second/tls.key" "$work/broken/"
show broken
for i in $(seq 50); do ! grep -q "a new certificate: ERR" "$work/log" || break; sleep 0.1; done
[ "$(shown)" = "subject=CN=second" ]
show first
until_shown first
[ "$(tail -1 <&3 | tr -cd 0-9)" = 40 ] || { echo "the open connection was lost" >&2; exit 1; }
