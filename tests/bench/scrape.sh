#!/usr/bin/env bash
# Measures a scrape of a sidecar whose policy has 200 tools and 50 limits, after a call of each tool. The targets: 5 ms and 100 KiB.

. "$(dirname "$0")/lib.sh"

need python3 "apt-get install python3"
binary=$(sidecar)
dir=$(work_dir)
trap 'stop_all; rm -rf "$dir"' EXIT
{
	policy "$(free_port)" "{max: 100, window: minute}" | sed '/tools:/q'
	for tool in $(seq 200); do
		echo "    - name: tool_number_$tool"
		((tool > 50)) || echo "      limits: [{max: 1, window: minute}]"
	done
} >"$dir/policy.yaml"
start_sidecar_with "$binary" "$dir" "$dir/audit.log"
python3 - "$SIDECAR_URL" "$SIDECAR_METRICS" "${TIMES:-100}" <<'END'
import http.client, json, sys, time
from urllib.parse import urlsplit

url, metrics, times = urlsplit(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def call(tool):
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    params = {"name": f"tool_number_{tool}", "arguments": {}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    connection.request("POST", url.path, body, {"content-type": "application/json", "accept": "application/json, text/event-stream"})
    connection.getresponse().read()


for tool in range(1, 201):
    call(tool)
connection = http.client.HTTPConnection("127.0.0.1", metrics, timeout=10)
# Where the machine is busy with something else, one of a hundred may be late: it is measured again then, and said.
for number in range(1, 4):
    took = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("GET", "/metrics")
        page = connection.getresponse().read()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    if took[-1] < 5:
        break
    print(f"round {number}: {took[-1]:.2f} ms at most")
series = sum(not line.startswith(b"#") for line in page.splitlines())
called = sum(line.startswith(b"toolweir_tool_calls_total{") and b'tool="tool_number_' in line for line in page.splitlines())
assert called >= 250, f"{called} series of tools"
failed = False
for holds, what in (
    (took[-1] < 5, f"a scrape takes {took[len(took) // 2]:.2f} ms in the median of {times}, {took[-1]:.2f} ms at most (< 5 ms)"),
    (len(page) < 100 * 1024, f"it has {len(page) / 1024:.1f} KiB, {series} series (< 100 KiB)"),
):
    failed |= not holds
    print(f"{'ok' if holds else 'FAILED'}: {what}")
sys.exit(failed)
END
