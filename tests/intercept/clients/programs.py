"""Programs that fetch: `programs.py PROGRAM URL...`; libraries.py says what is printed.

PROGRAM: curl; git; pip; uv; wget, which heeds no variable and has the bundle as a flag; wget-built-in, without it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

UV, PIP = os.environ.get("UV", "uv"), os.environ.get("PIP", "pip")
BUNDLE = os.environ["SSL_CERT_FILE"]


def words_of(program, url, folder):
    wget = ["wget", "--tries=1", "--timeout=10", "--no-hsts", "--server-response", "--output-document=-", url]
    return {
        "curl": ["curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "\nHTTP %{http_code}", url],
        # A repository is more than a page: that git gets an answer of HTTP is what is asked.
        "git": ["git", "ls-remote", url],
        "uv": [UV, "pip", "install", "--no-cache", "--no-config", "--no-deps", "--target", folder, f"x @ {url}/x-1-py3-none-any.whl"],
        "pip": [PIP, "--isolated", "download", "--retries=0", "--no-cache-dir", "--no-deps", "--dest", folder, f"{url}/x-1-py3-none-any.whl"],
        "wget": [*wget, f"--ca-certificate={BUNDLE}"],
        "wget-built-in": wget,
    }[program]


def status_of(said):
    """The status of HTTP that a program tells, whatever it makes of it."""
    if re.search("repository '.*' not found", said):
        return 404
    found = re.search(r"\bHTTP (?:error )?(\d{3})\b|HTTP/\S+ (\d{3})\b|returned error: (\d{3})\b|client error \((\d{3})", said)
    return found and int(next(filter(None, found.groups())))


def get(program, url):
    with tempfile.TemporaryDirectory() as folder:
        settings = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "UV_HTTP_RETRIES": "0", "UV_PYTHON": sys.executable}
        ran = subprocess.run(words_of(program, url, folder), capture_output=True, text=True, timeout=30, env=settings, stdin=subprocess.DEVNULL)
    said = " ".join(f"{ran.stdout} {ran.stderr}".split())
    # curl tells 000 where there was no answer.
    return {"status": status, "text": said} if (status := status_of(said)) else {"error": said}


for url in sys.argv[2:]:
    print(json.dumps(get(sys.argv[1], url)), flush=True)
