"""tests/demo/just_facebook.py for callers with the right bearer token alone, refused with the means of the SDK.

    guard.py hashes SHA256...      a token with one of these hashes, in hex
    guard.py audience AUDIENCE     a token of a service account for this audience, verified with the cluster's own keys

Lines of its stdout: what was called, as with serve.py; {"accepted": WHOSE} for each request with a token that was accepted, where WHOSE
is the hash or the service account; {"refused": WHY} for each with another one. Without a token, the SDK refuses by itself.
"""

import hashlib
import json
import runpy
import ssl
import sys
import urllib.request
from pathlib import Path

import jwt
import mcp.server.mcpserver as sdk
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings

CLUSTER, ACCOUNT = "https://kubernetes.default.svc", Path("/var/run/secrets/kubernetes.io/serviceaccount")


def of_cluster(path):
    """A document of the API server, which this pod's own token may read."""
    request = urllib.request.Request(CLUSTER + path, headers={"authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"})
    with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))) as response:
        return json.load(response)


def of_hashes(hashes):
    def whose(token):
        if (found := hashlib.sha256(token.encode()).hexdigest()) not in hashes:
            raise ValueError("unknown token")
        return found

    return whose


def of_audience(audience):
    issuer = of_cluster("/.well-known/openid-configuration")["issuer"]
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(of_cluster("/openid/v1/jwks")).keys}

    def whose(token):
        key = keys[jwt.get_unverified_header(token).get("kid")]
        required = {"require": ["exp", "iss", "aud", "sub"]}
        return jwt.decode(token, key, algorithms=["RS256", "ES256"], audience=audience, issuer=issuer, options=required)["sub"]

    return whose


whose = of_hashes(sys.argv[2:]) if sys.argv[1] == "hashes" else of_audience(sys.argv[2])


class Verifier:
    async def verify_token(self, token):
        try:
            caller = whose(token)
        except (ValueError, KeyError, jwt.PyJWTError) as error:
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"}), flush=True)
            return None
        print(json.dumps({"accepted": caller}), flush=True)
        return AccessToken(token=token, client_id="sidecar", scopes=[])


class Guarded(sdk.MCPServer):
    def __init__(self, name, **options):
        # The verifier checks the audience itself.
        settings = AuthSettings(issuer_url="https://login.example", resource_server_url="http://localhost:8000/mcp", validate_token_resource=False)
        super().__init__(name, auth=settings, token_verifier=Verifier(), **options)

    def run(self, transport, **options):
        super().run(transport, **{**options, "host": "0.0.0.0"})


sdk.MCPServer = Guarded
sys.argv[1:] = ["8000", "/dev/stdout"]
runpy.run_path(str(Path(__file__).with_name("just_facebook.py")), run_name="__main__")
