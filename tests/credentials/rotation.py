"""Keys that change, are wrong, or are not there."""

import base64
import json
import threading
import time

from agent import call
from kinds import token_file
from world import (
    Authority,
    Governor,
    Issuer,
    Keys,
    governed,
    headers_of,
    policy,
    servers,
    wait_until,
)

IN_FORCE = 3.0


def until(condition, seconds=IN_FORCE, every=0.05):
    """The seconds until the condition holds, and the last thing that it gave; nothing for the seconds where it never does."""
    began, given = time.monotonic(), None
    while time.monotonic() - began < seconds + 2:
        if given := condition():
            return time.monotonic() - began, given
        time.sleep(every)
    return None, given


def in_force(scenario, what, took):
    scenario.in_time(
        took is not None and took <= IN_FORCE,
        f"{what}: in force after {f'{took:.1f}' if took is not None else 'more than 5'} s",
        f"<= {IN_FORCE:g} s",
    )


def scenario_rotation(scenario, stage, shared):
    """New texts of keys are in force without a restart, as the kubelet writes them and as plain files; two keys change together."""
    authority, issuer = Authority(), Issuer()
    tls = authority.mutual_tls(stage.dir)
    users, passwords = [f"user-{n}" for n in range(12)], [f"password-{n}" for n in range(12)]
    texts = [f"text-{n}" for n in range(4)]
    found = servers(
        stage,
        {
            "bearer": {"want": {"kind": "bearer", "token": texts}},
            "header": {"want": {"kind": "header", "name": "X-Api-Key", "value": texts}},
            "basic": {"want": {"kind": "basic", "user": users, "password": passwords}},
            "certificate": {"want": {"kind": "certificate"}} | tls,
            "pod-token": {"want": {"kind": "jwt", "jwks": issuer.jwks, "issuer": issuer.url, "audience": "mcp"}},
        },
    )
    credentials = {
        "bearer": {"bearer": {"secretKey": "bearer"}},
        "header": {"header": {"name": "X-Api-Key", "secretKey": "key"}},
        "basic": {"basic": {"usernameKey": "user", "passwordKey": "password"}},
        "certificate": {"clientCertificate": {"certificateKey": "tls.crt", "privateKeyKey": "tls.key"}},
        "pod-token": {"serviceAccountToken": {"audience": "mcp"}},
    }
    listed = [governed(name, found[name].url, credential, None) for name, credential in credentials.items()]
    for kubelet in (True, False):
        how = "as the kubelet writes it" if kubelet else "as a plain file"
        keys, tokens = (Keys(stage.dir / f"{folder}-{kubelet}", kubelet) for folder in ("keys", "tokens"))
        certificate, private, serial = authority.client("first")
        first = {
            "bearer": texts[0],
            "key": texts[0],
            "user": users[0],
            "password": passwords[0],
            "tls.crt": certificate,
            "tls.key": private,
        }
        keys.put(first)
        tokens.put({token_file("mcp"): issuer.token("mcp", jti="first")})
        pod = Governor(
            stage, f"sidecar-{kubelet}", [policy("rotation", listed)], keys, tokens, ["--upstream-ca", stage.dir / "ca.crt"]
        )
        for name in found:
            wait_until(f"{name} works", lambda name=name: call(pod.url(name)).allowed, 3)
        rotated(scenario, pod, found, keys, tokens, authority, issuer, texts[1 if kubelet else 2], how)
        overlap(scenario, pod, found["bearer"], keys, texts[3], how)
        if kubelet:
            together(scenario, pod, found["basic"], keys, users, passwords)
            runs_out(scenario, pod, found["pod-token"], tokens, issuer)
        alive = pod.process.poll() is None and pod.ready() == 200
        scenario.require(
            alive, f"{how}: the sidecar is {'ready, in the same process' if alive else 'NOT ready'}", "ready, the same"
        )
    issuer.close()


def shows(pod, server, header, wanted):
    """Whether a call shows the server this text."""

    def shown():
        if not call(pod.url(server.name)).allowed:
            return False
        return headers_of(server.calls()[-1], header) == [wanted]

    return shown


def rotated(scenario, pod, found, keys, tokens, authority, issuer, text, how):
    keys.set("bearer", text)
    in_force(scenario, f"bearer, {how}", until(shows(pod, found["bearer"], "authorization", f"Bearer {text}"))[0])
    keys.set("key", text)
    in_force(scenario, f"header, {how}", until(shows(pod, found["header"], "x-api-key", text))[0])
    certificate, private, serial = authority.client("second")
    keys.put(keys.now | {"tls.crt": certificate, "tls.key": private})

    def second():
        return call(pod.url("certificate")).allowed and found["certificate"].calls()[-1]["certificate"] == serial

    in_force(scenario, f"certificate, {how}", until(second)[0])
    token = issuer.token("mcp", jti="second")
    tokens.set(token_file("mcp"), token)
    in_force(scenario, f"pod-token, {how}", until(shows(pod, found["pod-token"], "authorization", f"Bearer {token}"))[0])


def overlap(scenario, pod, server, keys, text, how):
    """The server takes only the new text from the moment on at which the key has it: a call right then is refused, and succeeds all the same."""
    server.control(token=[text])
    keys.set("bearer", text)
    before = len(server.calls())
    answer = call(pod.url(server.name))
    statuses = [one["status"] for one in server.calls()[before:]]
    scenario.require(
        answer.allowed and statuses in ([401, 200], [200]),
        f"a call at the moment of a change, {how}: {answer}; the server answered {statuses}",
        "allowed",
    )
    server.control(token=server.settings["want"]["token"])


def runs_out(scenario, pod, server, tokens, issuer):
    """Nobody renews the token of the pod: calls with it end when it does."""
    token = issuer.token("mcp", seconds=4, jti="short")
    tokens.set(token_file("mcp"), token)
    until(shows(pod, server, "authorization", f"Bearer {token}"))
    before = len(server.calls())
    took, _ = until(lambda: not call(pod.url(server.name)).allowed, 5, 0.02)
    answer = call(pod.url(server.name))
    margins = [expires(one) - one["time"] for one in server.calls()[before:]]
    late = [margin for margin in margins if margin <= 0]
    scenario.require(
        took is not None and answer.denied and len(late) <= 1,
        f"a token that runs out: {answer}; {len(margins)} calls with it, {len(late)} after it had expired, the last {min(margins, default=0):.2f} s before",
        # One may be on its way when the token ends; it is refused, and the next ones are not sent.
        "a denial in words, <= 1",
    )
    tokens.set(token_file("mcp"), issuer.token("mcp", jti="third"))
    in_force(scenario, "a token after one that ran out", until(lambda: call(pod.url(server.name)).allowed)[0])


def expires(request):
    """When the JWT of a request expires, in seconds since 1970."""
    part = headers_of(request, "authorization")[0].split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"]


def together(scenario, pod, server, keys, users, passwords):
    """User and password change together, ten times under load: no request has those of two times."""
    before, over, answers = len(server.requests()), threading.Event(), []

    def load():
        while not over.is_set():
            answers.append(call(pod.url("basic")))
            time.sleep(0.005)

    callers = [threading.Thread(target=load, daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
    for number in range(1, 11):
        keys.put(keys.now | {"user": users[number], "password": passwords[number]})
        time.sleep(1.1)
    over.set()
    for caller in callers:
        caller.join()
    pairs = []
    for one in server.requests()[before:]:
        user, _, password = base64.b64decode(headers_of(one, "authorization")[0].split(" ")[1]).decode().partition(":")
        pairs.append((user.rpartition("-")[2], password.rpartition("-")[2]))
    mixed, times = [pair for pair in pairs if pair[0] != pair[1]], {pair[0] for pair in pairs}
    failed = [str(answer) for answer in answers if not answer.allowed]
    scenario.require(
        not mixed and len(times) >= 8 and not failed,
        f"basic, 10 changes under load: {len(pairs)} requests with {len(times)} pairs, {len(mixed)} mixed, {len(failed)} failed {failed[:1] or ''}",
        "0 mixed, 0 failed, >= 8 of the pairs",
    )


GOOD = "the-key"
# What a key may hold, by what it is; whether that is right.
TEXTS = {
    "with a line end": ("the-key\n", True),
    "with CR LF at the end": ("the-key\r\n", True),
    "empty": ("", False),
    "a line end alone": ("\n", False),
    "with two line ends at the end": ("the-key\n\n", False),
    "with a line end inside": ("the-\nkey", False),
    "with CR LF and another header inside": ("the-key\r\nX-Other: injected", False),
    "with a control character": ("the-\x01key", False),
    "not UTF-8": (b"the-\xff\xfekey", False),
    "absent": (None, False),
}


def scenario_keys(scenario, stage, shared):
    """A key that is missing or wrong: calls fail closed with words that name it, nothing else is affected, and all is well once it is right."""
    found = servers(
        stage,
        {
            "header": {"want": {"kind": "header", "name": "X-Api-Key", "value": GOOD}},
            "basic": {"want": {"kind": "basic", "user": "user", "password": "password"}},
            "pod-token": {"want": {"kind": "bearer", "token": "the-token"}},
            "late": {"want": {"kind": "bearer", "token": "the-bearer"}},
            "beside": {"want": {"kind": "bearer", "token": "the-bearer"}},
        },
    )
    keys, tokens = Keys(stage.dir / "keys"), Keys(stage.dir / "tokens", kubelet=False)
    keys.put({"api-key": GOOD, "user": "user", "password": "password", "beside": "the-bearer"})
    credentials = {
        "header": {"header": {"name": "X-Api-Key", "secretKey": "api-key"}},
        "basic": {"basic": {"usernameKey": "user", "passwordKey": "password"}},
        "pod-token": {"serviceAccountToken": {"audience": "mcp.example"}},
        "late": {"bearer": {"secretKey": "late-key"}},
        "beside": {"bearer": {"secretKey": "beside"}},
    }
    listed = [governed(name, found[name].url, credential, None) for name, credential in credentials.items()]
    pod = Governor(stage, "sidecar", [policy("keys", listed)], keys, tokens)
    for what, (text, right) in TEXTS.items():
        keys.set("api-key", text)
        held(scenario, pod, found, "header", "api-key", what, right)
        keys.set("api-key", GOOD)
        if not right:
            in_force(scenario, f"the key {what} is right again", until(lambda: call(pod.url("header")).allowed)[0])
    keys.set("password", None)
    held(scenario, pod, found, "basic", "password", "absent, the user's name not", False)
    keys.set("password", "password")
    in_force(scenario, "the password is there again", until(lambda: call(pod.url("basic")).allowed)[0])
    held(scenario, pod, found, "late", "late-key", "absent since the start", False)
    keys.set("late-key", "the-bearer")
    in_force(scenario, "a key that comes later", until(lambda: call(pod.url("late")).allowed)[0])
    held(scenario, pod, found, "pod-token", "mcp.example", "token absent since the start", False)
    tokens.put({token_file("mcp.example"): "the-token"})
    in_force(scenario, "a token that comes later", until(lambda: call(pod.url("pod-token")).allowed)[0])
    folders(scenario, stage, found, listed)
    without(scenario, stage, found, listed)


def held(scenario, pod, found, name, key, what, right):
    """A key that is right works; one that is wrong denies in words that name it. Others do not notice."""
    server = found[name]
    if right:
        # What was before works too: long enough for the new text to be read.
        time.sleep(1.5)
        answer = call(pod.url(name))
        scenario.require(answer.allowed, f"the key {what}: {answer}", "allowed")
        return
    took, _ = until(lambda: not call(pod.url(name)).allowed)
    before = len(server.requests())
    answer, beside = call(pod.url(name)), call(pod.url("beside"))
    reached, ready = len(server.requests()) - before, pod.ready()
    metric = pod.metric("toolweir_credential_ready", server=name)
    scenario.require(
        took is not None and took <= IN_FORCE and answer.denied and key in answer.text and not reached and metric == 0,
        f"{key} {what}: after {took if took is None else round(took, 1)} s {answer}; {reached} requests reached the server, "
        f"toolweir_credential_ready is {metric}",
        f"<= {IN_FORCE:g} s, a denial that names {key}, 0, 0",
    )
    scenario.require(
        ready == 200 and beside.allowed,
        f"{key} {what}: /readyz gives {ready}; a call of another server: {beside.status}",
        "200, 200 and allowed",
    )


def folders(scenario, stage, found, listed):
    """A folder that is not there at the start, as of a Secret that comes after the pod."""
    keys = Keys(stage.dir / "later")
    pod = Governor(stage, "later", [policy("keys", listed)], keys, None)
    answer = call(pod.url("beside"))
    scenario.require(
        answer.denied and "beside" in answer.text,
        f"an empty folder: {answer}; /readyz gives {pod.ready()}",
        "a denial that names the key",
    )
    keys.put({"beside": "the-bearer"})
    in_force(scenario, "the Secret comes after the pod", until(lambda: call(pod.url("beside")).allowed)[0])
    answer = call(pod.url("pod-token"))
    scenario.require(
        answer.denied and "mcp.example" in answer.text,
        f"without --audience-tokens-dir: {answer}",
        "a denial that names the audience",
    )


def without(scenario, stage, found, listed):
    """A sidecar that was given no folder at all."""
    pod = Governor(stage, "without", [policy("keys", listed)])
    before = len(found["beside"].requests())
    answer = call(pod.url("beside"))
    reached = len(found["beside"].requests()) - before
    scenario.require(
        answer.denied and not reached,
        f"without --credentials-dir: {answer}; {reached} requests reached the server",
        "a denial in words, 0",
    )
