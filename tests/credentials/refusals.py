"""Servers that refuse a credential."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

from agent import ACCEPT, JUNK_HEADERS, call, calls, request
from oauth import Front, Oidc
from world import (
    JUNK,
    Authority,
    Governor,
    Keys,
    free_port,
    governed,
    headers_of,
    listens,
    policy,
    servers,
    wait_until,
)


def challenged(answer):
    """Whether the server's challenge came through."""
    return "challenge-of-the-server" in answer.all() or any(name.lower() == "www-authenticate" for name, _ in answer.headers)


def scenario_refused(scenario, stage, shared):
    """A server that answers 401: one renewal and one repetition; then a denial in words, and no challenge for the agent."""
    resource = "https://mcp.example/refused"
    oidc = Oidc(stage, shared.node, resource, {"oidc-client": "the-secret"})
    front = Front(oidc.token_url)
    authority, other = Authority(), Authority("another")
    tls = authority.mutual_tls(stage.dir)
    found = servers(
        stage,
        {
            "once": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}},
            "revoked": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}},
            "oauth": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}},
            "stream": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}, "sse": True},
            "bearer": {"want": {"kind": "bearer", "token": "the-bearer"}},
            "plain": {"want": {"kind": "header", "name": "X-Api-Key", "value": "the-key"}},
            "certificate": {"want": {"kind": "certificate"}} | tls,
        },
    )
    keys = Keys(stage.dir / "keys")
    certificate, private, _ = other.client("stranger")
    keys.put(
        {
            "id": "oidc-client",
            "secret": "the-secret",
            "bearer": "the-bearer",
            "key": "the-key",
            "tls.crt": certificate,
            "tls.key": private,
        }
    )
    grant = {"tokenUrl": front.url, "clientIdKey": "id", "clientSecretKey": "secret", "resource": resource}
    listed = [
        governed("once", found["once"].url, {"oauth2ClientCredentials": grant}, None),
        governed("revoked", found["revoked"].url, {"oauth2ClientCredentials": grant | {"scopes": ["mcp"]}}, None),
        governed("stream", found["stream"].url, {"oauth2ClientCredentials": grant | {"scopes": ["mcp", "other"]}}, None),
        governed("oauth", found["oauth"].url, {"oauth2ClientCredentials": grant | {"scopes": ["other"]}}, None),
        governed("bearer", found["bearer"].url, {"bearer": {"secretKey": "bearer"}}, None),
        governed("plain", found["plain"].url, {"header": {"name": "X-Api-Key", "secretKey": "key"}}, None),
        governed(
            "certificate",
            found["certificate"].url,
            {"clientCertificate": {"certificateKey": "tls.crt", "privateKeyKey": "tls.key"}},
            None,
        ),
    ]
    listed.append(listed[-1] | {"name": "openssl", "url": openssl_server(stage)})
    pod = Governor(stage, "sidecar", [policy("refused", listed)], keys, flags=["--upstream-ca", stage.dir / "ca.crt"])
    refused_once(scenario, pod, found["once"], front)
    revoked(scenario, pod, found["revoked"], front)
    refused_on_a_stream(scenario, pod, found["stream"])
    for name in ("oauth", "bearer", "plain"):
        refused_always(scenario, pod, found[name], front)
    for name in ("certificate", "openssl"):
        answer = call(pod.url(name))
        refusals = pod.metric("toolweir_requests_total", server=name, outcome="credential_refused")
        # asyncio hangs up without the alert that says why, so there the sidecar cannot know.
        scenario.require(
            answer.denied and (refusals == 1 or name == "certificate"),
            f"a certificate that the server does not trust ({name}): {answer}; credential_refused is {refusals}",
            "a denial in words" + (", 1" if name == "openssl" else ""),
        )
    for name in found:
        path = {"once": "/refused", "revoked": "/refused", "oauth": "/refused", "bearer": "/mcp"}.get(name)
        metadata = "/.well-known/oauth-protected-resource"
        direct = request("GET", f"http://127.0.0.1:{found[name].port}{metadata}{path}").status if path else "nothing"
        answer = request("GET", f"http://127.0.0.1:{pod.port}/.well-known/oauth-protected-resource/{name}")
        scenario.require(
            answer.status == 404 and not challenged(answer),
            f"metadata of {name}: the server has it with {direct}, the sidecar answers {answer.status}",
            "404 at the sidecar",
        )
    front.close()


def openssl_server(stage):
    """A server that refuses certificates of others with an alert, as most do: that of OpenSSL."""
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-Verify", "3", "-verify_return_error"]
    command += ["-CAfile", stage.dir / "ca.crt", "-cert", stage.dir / "server.crt", "-key", stage.dir / "server.key"]
    stage.start("openssl", command)
    wait_until("openssl listens", lambda: listens(port))
    return f"https://127.0.0.1:{port}/mcp"


def refused_once(scenario, pod, server, front):
    first = call(pod.url("once"))
    server.control(refuse=1)
    before, tokens = len(server.calls()), len(front.log)
    answer = call(pod.url("once"), JUNK_HEADERS)
    received, fetched = server.calls()[before:], len(front.log) - tokens
    shown = [headers_of(one, "authorization")[0] for one in received]
    statuses = [one["status"] for one in received]
    scenario.require(
        first.allowed and answer.allowed and statuses == [401, 200] and fetched == 1 and len(set(shown)) == 2,
        f"refused once: {answer}; the server answered {statuses} to {len(set(shown))} different tokens; {fetched} renewals",
        "allowed, [401, 200], 2, 1",
    )


def revoked(scenario, pod, server, front):
    """The server takes back a token while many calls are on their way."""
    call(pod.url("revoked"))
    for round, renewals in (("", 1), (" again, at once", 0)):
        old = [headers_of(server.calls()[-1], "authorization")[0].removeprefix("Bearer ")]
        server.control(revoked=old)
        tokens = len(front.log)
        with ThreadPoolExecutor(20) as pool:
            answers = [one.result() for one in [pool.submit(call, pod.url("revoked")) for _ in range(20)]]
        passed, denied, fetched = sum(one.allowed for one in answers), sum(one.denied for one in answers), len(front.log) - tokens
        if renewals:
            right = passed == 20 and fetched == 1
            scenario.require(right, f"a token is revoked: 20 calls at once, {passed} passed, {fetched} renewals", "20, 1")
        else:
            # A server that takes no token at all must not make the sidecar ask for one with every call.
            right = passed + denied == 20 and fetched <= 1
            scenario.require(
                right, f"a token is revoked{round}: {passed} passed, {denied} denied in words, {fetched} renewals", "20, <= 1"
            )
    began = time.monotonic()
    wait_until("calls of the revoked pass again", lambda: call(pod.url("revoked")).allowed, 10, 0.1)
    scenario.require(True, f"calls pass again after {time.monotonic() - began:.1f} s", "<= 10 s")


def refused_on_a_stream(scenario, pod, server):
    """The same over HTTP+SSE, where answers come on a stream that stays open."""
    refusals = {1: 1, 2: 1000, 3: 0}
    outcomes = asyncio.run(
        calls(
            pod.url(server.name),
            4,
            sse=True,
            before=lambda number: number in refusals and server.control(refuse=refusals[number]),
        )
    )[1]
    statuses = [one["status"] for one in server.calls()]
    scenario.require(
        outcomes == ["allowed", "allowed", "credential_refused", "allowed"] and not server.saw(JUNK),
        f"HTTP+SSE, not refused, refused once, always, and not: {outcomes}; the server answered {statuses}",
        "allowed, allowed, credential_refused, allowed",
    )


def refused_always(scenario, pod, server, front):
    first = call(pod.url(server.name))
    server.control(refuse=1000)
    before, tokens = len(server.calls()), len(front.log)
    answer = call(pod.url(server.name), JUNK_HEADERS)
    received, fetched = server.calls()[before:], len(front.log) - tokens
    # Only what can be fetched anew is worth a second try.
    tries, renewals = ((2,), 1) if server.name == "oauth" else ((1, 2), 0)
    refusals = pod.metric("toolweir_requests_total", server=server.name, outcome="credential_refused")
    scenario.require(
        first.allowed
        and answer.denied
        and not challenged(answer)
        and len(received) in tries
        and fetched == renewals
        and refusals == 1,
        f"{server.name}, refused always: {answer}; {len(received)} requests, {fetched} renewals, credential_refused is {refusals}; the challenge "
        f"{'ARRIVED' if challenged(answer) else 'did not arrive'}",
        f"a denial in words, {' or '.join(map(str, tries))}, {renewals}, 1, did not",
    )
    server.control(refuse=0)
    # Wrong in truth, as the server sees it; every kind of request is refused then.
    wrong = (
        {"token": "another"}
        if server.name == "bearer"
        else {"value": "another"}
        if server.name == "plain"
        else {"audience": "another"}
    )
    right = {field: server.settings["want"][field] for field in wrong}
    server.control(**wrong)
    answers = {
        "tools/call": call(pod.url(server.name)),
        "tools/list": request(
            "POST", pod.url(server.name), json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), ACCEPT
        ),
        "GET": request("GET", pod.url(server.name), None, {"Accept": "text/event-stream"}),
        "DELETE": request("DELETE", pod.url(server.name)),
    }
    through = [name for name, one in answers.items() if challenged(one)]
    shown = ", ".join(f"{name} {one.status}" for name, one in answers.items())
    scenario.require(not through, f"{server.name}, all refused: {shown}; the challenge came with {through or 'none'}", "none")
    server.control(**right)

    def again():
        return call(pod.url(server.name)).allowed

    wait_until(f"calls of {server.name} pass again", again, 10, 0.2)
    scenario.require(True, f"{server.name}: calls pass again once the server accepts it", "passes")
