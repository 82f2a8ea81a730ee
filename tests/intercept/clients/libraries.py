"""The HTTPS clients of Python: `libraries.py LIBRARY URL...` prints a line of JSON for each URL, {"status", "text"} or {"error"}.

LIBRARY: urllib (the module ssl), requests, httpx, aiohttp; requests-built-in, which trusts the roots that came with it alone.
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request

SECONDS = 10


def urllib_get(url):
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def requests_get(url, **options):
    import requests

    answer = requests.get(url, timeout=SECONDS, **options)
    return answer.status_code, answer.text


def requests_built_in(url):
    import certifi

    return requests_get(url, verify=certifi.where())


def httpx_get(url):
    import httpx

    answer = httpx.get(url, timeout=SECONDS)
    return answer.status_code, answer.text


def aiohttp_get(url):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession() as session, session.get(url, timeout=aiohttp.ClientTimeout(SECONDS)) as answer:
            return answer.status, await answer.text()

    return asyncio.run(get())


LIBRARIES = {"urllib": urllib_get, "requests": requests_get, "requests-built-in": requests_built_in, "httpx": httpx_get, "aiohttp": aiohttp_get}

for url in sys.argv[2:]:
    try:
        status, text = LIBRARIES[sys.argv[1]](url)
        said = {"status": status, "text": text}
    except Exception as error:  # noqa: BLE001 # what it says is what is asked for
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
