"""Tokens of OAuth that expire under load, and token endpoints that do not answer."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from agent import call
from oauth import Front, Oidc
from rotation import expires, until
from world import (
    HERE,
    Broken,
    Governor,
    Keys,
    governed,
    headers_of,
    policy,
    servers,
    wait_until,
)

LIFETIME, SECONDS, CONNECTIONS, BOUND = 5, 16, 64, 10.0


def scenario_expiry(scenario, stage, shared):
    """64 connections with tokens of 5 s; then a token endpoint that hangs, fails, and recovers; then a client's secret that is wrong."""
    resource = "https://mcp.example/expiry"
    oidc = Oidc(stage, shared.node, resource, {"oidc-client": "the-secret"}, LIFETIME)
    # Long enough that two requests would overlap if there were two.
    front, mute = Front(oidc.token_url, 0.5), Front(oidc.token_url)
    mute.mode = "hang"
    found = servers(
        stage,
        {
            "oauth": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}, "raw": False},
            "mute": {"want": {"kind": "jwt", "jwks": oidc.jwks, "issuer": oidc.issuer, "audience": resource}},
            "beside": {"want": {"kind": "bearer", "token": "the-bearer"}},
        },
    )
    keys = Keys(stage.dir / "keys")
    keys.put({"id": "oidc-client", "secret": "the-secret", "bearer": "the-bearer"})
    grant = {"tokenUrl": front.url, "clientIdKey": "id", "clientSecretKey": "secret", "resource": resource}
    listed = [
        governed("oauth", found["oauth"].url, {"oauth2ClientCredentials": grant}, None),
        governed("beside", found["beside"].url, {"bearer": {"secretKey": "bearer"}}, None),
    ]
    listed.append(governed("mute", found["mute"].url, {"oauth2ClientCredentials": grant | {"tokenUrl": mute.url}}, None))
    pod = Governor(stage, "sidecar", [policy("expiry", listed)], keys)
    never_a_token(scenario, pod, found["mute"], mute)
    under_load(scenario, stage, pod, found["oauth"], front)
    for mode in OUTAGES:
        outage(scenario, pod, found, front, mode)
    received = len(front.trap.log)
    scenario.require(received == 0, f"where a token endpoint redirects to: {received} requests", "0")
    wrong_secret(scenario, pod, found, front, keys)
    front.close()
    mute.close()


# How a token endpoint fails, by the mode of the front; in words, and as the metric has it.
OUTAGES = {
    "hang": ("hangs", "timeout"),
    500: ("answers 500", "failed"),
    307: ("redirects", "failed"),
    "<html>not what was asked for</html>": ("answers with what is no token", "invalid"),
}


def never_a_token(scenario, pod, server, front):
    """A token endpoint that hangs from the start on: there is no token yet that could be used meanwhile."""
    with ThreadPoolExecutor(16) as pool:
        answers = [one.result() for one in [pool.submit(call, pod.url("mute")) for _ in range(16)]]
    slowest, received = max(one.took for one in answers), len(server.requests())
    scenario.require(
        all(one.denied for one in answers) and slowest <= BOUND and not received and front.most_at_once() == 1,
        f"no token yet, and the token endpoint hangs: 16 calls answered within {slowest:.1f} s: {answers[0]}; {received} reached the server, "
        f"{len(front.log)} requests for tokens, {front.most_at_once()} at once at most",
        f"denials in words, <= {BOUND:g} s, 0, 1 at once",
    )
    front.mode = "pass"
    took, _ = until(lambda: call(pod.url("mute")).allowed, BOUND)
    scenario.in_time(
        took is not None, f"it answers: calls pass after {took if took is None else round(took, 1)} s", f"<= {BOUND:g} s"
    )


def under_load(scenario, stage, pod, server, front):
    # All at once with no token yet, so that all of them want one.
    command = [sys.executable, HERE / "load.py", pod.url("oauth"), CONNECTIONS, SECONDS, 0.3]
    load = stage.start("load", command, stdout=subprocess.PIPE)
    said, _ = load.communicate(timeout=SECONDS + 60)
    if load.returncode:
        raise Broken(f"the load ended early: {(stage.dir / 'load.log').read_text()[-500:]}")
    result = json.loads(said)
    received = server.calls()
    scenario.require(
        result["calls"] > 500 and not result["failed"],
        f"{CONNECTIONS} connections for {SECONDS} s: {result['calls']} calls, {result['failed']} failed {result['first'] or ''}, "
        f"the slowest took {result['slowest']:.2f} s",
        "> 500 calls, 0 failed",
    )
    margins = sorted(expires(one) - one["time"] for one in received)
    late = [one for one in margins if one <= 0]
    refused = [one for one in received if one["status"] == 401]
    scenario.require(
        not late and not refused and len(received) == result["calls"],
        f"the server received {len(received)} calls, {len(late)} with an expired token, {len(refused)} refused; "
        f"the closest came {margins[0]:.2f} s before its token expired",
        "as many as were made, 0, 0",
    )
    fetched, least, most = len(front.log), SECONDS // LIFETIME, SECONDS // (LIFETIME - 2) + 2
    scenario.require(
        least <= fetched <= most and front.most_at_once() == 1,
        f"{fetched} requests for tokens, {front.most_at_once()} at once at most",
        f"{least} to {most} for {SECONDS} s with tokens of {LIFETIME} s, 1",
    )
    tokens = {headers_of(one, "authorization")[0] for one in received}
    given = {f"Bearer {token}" for token in front.tokens()}
    scenario.require(tokens <= given, f"the calls had {len(tokens)} tokens, all of them given by the OAuth server", "all")


def outage(scenario, pod, found, front, mode):
    """The token endpoint fails in this way: calls are denied in time, and pass again by themselves."""
    wait_until("calls pass before", lambda: call(pod.url("oauth")).allowed, BOUND)
    what, outcome = OUTAGES[mode]
    what = f"the token endpoint {what}"
    front.mode = mode
    # Until the last token has expired.
    began, so_far = time.monotonic(), len(found["oauth"].calls())
    denied = wait_until("a denial", lambda: not (answer := call(pod.url("oauth"))).allowed and answer, LIFETIME + BOUND, 0.1, late=Broken)
    first = time.monotonic() - began
    before, fetches = len(found["oauth"].requests()), len(front.log)
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(call, pod.url("oauth")) for _ in range(12)]
        besides = [pool.submit(call, pod.url("beside")) for _ in range(4)]
        answers, besides = [one.result() for one in answers], [one.result() for one in besides]
    slowest, beside = max(one.took for one in [*answers, denied]), max(one.took for one in besides)
    reached = len(found["oauth"].requests()) - before
    words = all(one.denied for one in [denied, *answers])
    scenario.require(
        words and slowest <= BOUND and not reached,
        f"{what}: {len(answers) + 1} calls answered within {slowest:.1f} s, the first after {first:.1f} s: {answers[0]}; "
        f"{reached} reached the server; {len(front.log) - fetches} further requests for tokens",
        f"denials in words, <= {BOUND:g} s, 0",
    )
    scenario.require(
        all(one.allowed for one in besides) and beside < 1,
        f"{what}: calls of another server took {beside:.2f} s at most",
        "allowed, < 1 s",
    )
    margins = [expires(one) - one["time"] for one in found["oauth"].calls()[so_far:]]
    late = [margin for margin in margins if margin <= 0]
    scenario.require(
        not late,
        f"{what}: {len(margins)} calls with the last token, {len(late)} after it had expired; the last came {min(margins, default=0):.2f} s before",
        "0 after",
    )
    fetches = pod.metric("toolweir_credential_fetches_total", server="oauth", outcome=outcome)
    scenario.require(bool(fetches), f"{what}: {fetches} fetches have the outcome {outcome}", ">= 1")
    scenario.require(front.most_at_once() == 1, f"{what}: {front.most_at_once()} requests for tokens at once at most", "1")
    front.mode = "pass"
    took, _ = until(lambda: call(pod.url("oauth")).allowed, BOUND)
    scenario.in_time(
        took is not None,
        f"{what} no more: calls pass again after {took if took is None else round(took, 1)} s",
        f"<= {BOUND:g} s",
    )


def wrong_secret(scenario, pod, found, front, keys):
    keys.set("secret", "another")
    wait_until("the client is refused", lambda: not call(pod.url("oauth")).allowed, LIFETIME + BOUND, 0.1, late=Broken)
    answer = call(pod.url("oauth"))
    refused = pod.metric("toolweir_credential_fetches_total", server="oauth", outcome="refused")
    scenario.require(
        answer.denied and bool(refused),
        f"a client secret that the OAuth server refuses: {answer}; {refused} fetches were refused",
        "a denial in words, >= 1",
    )
    keys.set("secret", "the-secret")
    took, _ = until(lambda: call(pod.url("oauth")).allowed, BOUND)
    scenario.in_time(
        took is not None,
        f"the secret is right again: calls pass after {took if took is None else round(took, 1)} s",
        f"<= {BOUND:g} s",
    )
