"""What the agent itself shows."""

import asyncio
import re

import wire
from agent import calls
from world import JUNK, TOOL, Governor, Keys, governed, headers_of, policy, servers


def spellings(name):
    """Lines of a header in every spelling that some server takes for it."""
    under = name.replace("-", "_")
    forms = [name, name.upper(), name.lower(), under, under.upper(), under.lower(), name.swapcase()]
    return list(dict.fromkeys(forms))


def scenario_headers(scenario, stage, shared):
    """What the agent itself shows, in any spelling and place, never reaches a server with a credential."""
    wants = {
        "bearer": {"want": {"kind": "bearer", "token": "the-bearer"}},
        "api-key": {"want": {"kind": "header", "name": "X-Api-Key", "value": "the-key"}},
        "old": {"want": {"kind": "header", "name": "X-Api-Key", "value": "the-key"}, "sse": True},
        "open": {"want": {"kind": "none"}},
    }
    found = servers(stage, wants)
    keys = Keys(stage.dir / "keys")
    keys.put({"bearer": "the-bearer", "key": "the-key"})
    header = {"header": {"name": "X-Api-Key", "secretKey": "key"}}
    credentials = {"bearer": {"bearer": {"secretKey": "bearer"}}, "api-key": header, "old": header, "open": None}
    listed = [governed(name, found[name].url, credential, None) for name, credential in credentials.items()]
    pod = Governor(stage, "sidecar", [policy("headers", listed)], keys)
    for name, own in (("bearer", ["Authorization"]), ("api-key", ["X-Api-Key", "Authorization"])):
        for header in own:
            for what, answer, marker in sent(pod, name, header):
                judge(scenario, found[name], f"{name}, {header} {what}", answer, marker)
    # The control: the agent's own passes where there is no credential.
    status, _ = wire.http1(pod.port, "/open", [f"Authorization: Bearer {JUNK}", f"X-Api-Key: {JUNK}"])
    shown = [headers_of(found["open"].calls()[-1], name) for name in ("authorization", "x-api-key")]
    scenario.require(
        shown == [[f"Bearer {JUNK}"], [JUNK]] and found["open"].saw(JUNK),
        f"a server without a credential: HTTP {status}, it got {shown}",
        "what the agent sent",
    )
    tools, outcomes, _ = asyncio.run(
        calls(pod.url("old"), 3, sse=True, headers={"Authorization": f"Bearer {JUNK}", "X-Api-Key": JUNK, "x_api_key": JUNK})
    )
    received = found["old"].requests()
    shown = {value for one in received for value in headers_of(one, "x-api-key")}
    scenario.require(
        outcomes == ["allowed"] * 3 and tools == [TOOL] and not found["old"].saw(JUNK) and shown == {"the-key"},
        f"HTTP+SSE: {outcomes.count('allowed')} of 3 calls passed, {len(received)} requests with {shown}, {JUNK!r} "
        f"{'reached' if found['old'].saw(JUNK) else 'never reached'} the server",
        "3, the key alone, never",
    )
    # Once more, now that all connections have been written down.
    sizes = {name: len(server.raw()) for name, server in found.items() if name != "open"}
    arrived = [name for name in sizes if found[name].saw(JUNK)]
    scenario.require(
        not arrived, f"bytes that the servers received: {sizes}; {JUNK!r} is in those of {arrived or 'none'}", "none"
    )


def sent(pod, server, header):
    """Sends calls with the agent's own header in all ways: what was done, the answer, and the text that may not arrive."""
    number = 0

    def marker():
        nonlocal number
        number += 1
        return f"{JUNK}-{header}-{number}"

    path = f"/{server}"
    for name in spellings(header):
        text = marker()
        yield f"as {name}", wire.http1(pod.port, path, [f"{name}: Bearer {text}"]), text
    text = marker()
    lines = [f"{name}: Bearer {text}" for name in spellings(header)]
    yield "in all spellings at once", wire.http1(pod.port, path, lines), text
    text = marker()
    yield "three times", wire.http1(pod.port, path, [f"{header}: Bearer {text}"] * 3), text
    text = marker()
    yield "named in Connection", wire.http1(pod.port, path, [f"Connection: {header}", f"{header}: {text}"]), text
    yield "named in Connection, but absent", wire.http1(pod.port, path, [f"Connection: keep-alive, {header.lower()}"]), marker()
    text = marker()
    trailers = [f"{name}: {text}" for name in spellings(header)]
    yield "as a trailer", wire.http1(pod.port, path, [f"Trailer: {header}"], trailers), text
    text = marker()
    yield "as a trailer that no Trailer names", wire.http1(pod.port, path, [], [f"{header}: {text}"]), text
    lower = list(dict.fromkeys(name.lower() for name in spellings(header)))
    text = marker()
    yield "over HTTP/2", wire.http2(pod.port, path, [(name, f"Bearer {text}") for name in lower]), text
    text = marker()
    yield "over HTTP/2, three times", wire.http2(pod.port, path, [(lower[0], text)] * 3), text
    text = marker()
    yield "over HTTP/2, as a trailer", wire.http2(pod.port, path, [], [(name, text) for name in lower]), text


# What the sidecar may refuse at its door, whatever the server: two parsers could read it in two ways.
AMBIGUOUS = (
    "in all spellings at once",
    "three times",
    "named in Connection",
    "named in Connection, but absent",
    "over HTTP/2, three times",
)


def judge(scenario, server, what, answer, marker):
    """A call passes with the credential and without the marker; one that two parsers could read in two ways may also be refused in words."""
    status, text = answer
    last = server.calls()[-1] if server.calls() else {"headers": []}
    own, right = {"bearer": ("authorization", "Bearer the-bearer"), "header": ("x-api-key", "the-key")}[
        server.settings["want"]["kind"]
    ]
    shown, arrived, passed = headers_of(last, own), server.saw(marker), wire.allowed(answer)
    denial = re.search(r'"text":"(Refused: [^"]*)"', text)
    refused = bool(denial) and what.endswith(AMBIGUOUS)
    scenario.require(
        ((passed and shown == [right]) or refused) and not arrived,
        f"{what}: HTTP {status}, {f'delivered with {own}: ' + ', '.join(shown) if passed else denial[1] if denial else text[:200]}; "
        f"the agent's own {'ARRIVED' if arrived else 'did not arrive'}",
        "delivered with the credential alone" + (", or refused in words" if what.endswith(AMBIGUOUS) else ""),
    )
