"""All kinds of credentials at once: for each an MCP server that wants it, and what the sidecar needs for it."""

import base64
import secrets
import urllib.parse

from oauth import Exchange, Front, Oidc
from world import Authority, Governor, Issuer, Keys, governed, policy, servers

# Kept apart from all other text, so that a single find is a leak. Signs that forms and headers have to escape are in it.
_RUN = secrets.token_hex(6)


def secret(name):
    return f"s3cret-{name}-{_RUN}/+%:&="


CC_AUDIENCE = "https://mcp.example/client-credentials"
KEYCLOAK_ID, KEYCLOAK_SECRET = f"toolweir-{_RUN}", secret("keycloak-client")
POD_AUDIENCE, STS_AUDIENCE = "https://mcp.example/tools", "https://sts.example"


class Kinds:
    """The servers, and the sidecar's folders; `sidecar` starts one."""

    def __init__(self, stage, shared):
        self.stage, keycloak = stage, shared.keycloak()
        self.issuer, authority = Issuer(), Authority()
        self.authority = authority
        certificate, key = authority.server()
        files = {"server.crt": certificate, "server.key": key, "ca.crt": authority.pem()}
        for name, text in files.items():
            (stage.dir / name).write_text(text)
        self.ca = stage.dir / "ca.crt"
        self.password, self.bearer, self.api_key = secret("password"), f"s3cret-bearer-{_RUN}", secret("api-key")
        self.oidc_secret = secret("oidc-client")
        resource = f"https://mcp.example/resource-{_RUN}"
        self.oidc = Oidc(stage, shared.node, resource, {"oidc-client": self.oidc_secret})
        self.exchange_secret = secret("exchange-client")
        clients = {"exchange-client": self.exchange_secret, "": ""}
        exchange = Exchange(stage, shared.exchange, self.issuer, STS_AUDIENCE, clients, ["mcp-exchange", "mcp-open"], ["mcp"])
        self.fronts = {
            "client-credentials": Front(keycloak.token_url),
            "resource": Front(self.oidc.token_url),
            "exchange": Front(exchange.token_url),
            "exchange-open": Front(exchange.token_url),
        }
        tls = {"client_ca": str(self.ca), "certificate": str(stage.dir / "server.crt"), "key": str(stage.dir / "server.key")}
        from_keycloak = {"kind": "jwt", "jwks": keycloak.jwks, "issuer": keycloak.issuer}
        exchanged = {"kind": "jwt", "jwks": exchange.jwks, "issuer": exchange.issuer}
        wants = {
            "bearer": {"want": {"kind": "bearer", "token": self.bearer}, "stateful": True},
            "header": {"want": {"kind": "header", "name": "X-Api-Key", "value": self.api_key}},
            "basic": {"want": {"kind": "basic", "user": "bench", "password": self.password}},
            "certificate": {"want": {"kind": "certificate"}} | tls,
            "bearer-h2": {"want": {"kind": "bearer", "token": self.bearer}, "http2": True} | tls,
            "certificate-h2": {"want": {"kind": "certificate"}, "http2": True} | tls,
            "pod-token": {"want": {"kind": "jwt", "jwks": self.issuer.jwks, "issuer": self.issuer.url, "audience": POD_AUDIENCE}},
            "client-credentials": {"want": from_keycloak | {"audience": CC_AUDIENCE, "scope": "mcp"}, "stateful": True},
            "resource": {
                "want": {"kind": "jwt", "jwks": self.oidc.jwks, "issuer": self.oidc.issuer, "audience": resource, "scope": "mcp"}
            },
            "exchange": {"want": exchanged | {"audience": "mcp-exchange", "scope": "mcp"}},
            "exchange-open": {"want": exchanged | {"audience": "mcp-open"}},
        }
        self.servers = servers(stage, wants)
        self.keys, self.tokens = Keys(stage.dir / "keys"), Keys(stage.dir / "tokens")
        self.certificate, self.private_key, self.serial = authority.client("sidecar")
        self.keys.put(
            {
                "bearer": self.bearer,
                "api-key": self.api_key + "\n",
                "user": "bench",
                "password": self.password,
                "tls.crt": self.certificate,
                "tls.key": self.private_key,
                "keycloak.id": KEYCLOAK_ID,
                "keycloak.secret": KEYCLOAK_SECRET,
                "exchange.id": "exchange-client",
                "exchange.secret": self.exchange_secret,
                "oidc.id": "oidc-client",
                "oidc.secret": self.oidc_secret,
            }
        )
        self.pod_token, self.subject = self.issuer.token(POD_AUDIENCE), self.issuer.token(STS_AUDIENCE)
        self.tokens.put({token_file(POD_AUDIENCE): self.pod_token, token_file(STS_AUDIENCE): self.subject})
        keys = {"clientIdKey": "keycloak.id", "clientSecretKey": "keycloak.secret"}
        exchange_keys = {"clientIdKey": "exchange.id", "clientSecretKey": "exchange.secret"}
        subject = {"subjectAudience": STS_AUDIENCE}
        self.credentials = {
            "bearer": {"bearer": {"secretKey": "bearer"}},
            "header": {"header": {"name": "X-Api-Key", "secretKey": "api-key"}},
            "basic": {"basic": {"usernameKey": "user", "passwordKey": "password"}},
            "certificate": {"clientCertificate": {"certificateKey": "tls.crt", "privateKeyKey": "tls.key"}},
            "bearer-h2": {"bearer": {"secretKey": "bearer"}},
            "certificate-h2": {"clientCertificate": {"certificateKey": "tls.crt", "privateKeyKey": "tls.key"}},
            "pod-token": {"serviceAccountToken": {"audience": POD_AUDIENCE}},
            "client-credentials": {
                "oauth2ClientCredentials": {"tokenUrl": self.fronts["client-credentials"].url, "scopes": ["mcp"]} | keys
            },
            "resource": {
                "oauth2ClientCredentials": {
                    "tokenUrl": self.fronts["resource"].url,
                    "clientIdKey": "oidc.id",
                    "clientSecretKey": "oidc.secret",
                    "scopes": ["mcp", "other"],
                    "resource": resource,
                }
            },
            "exchange": {
                "tokenExchange": subject
                | exchange_keys
                | {"tokenUrl": self.fronts["exchange"].url, "audience": "mcp-exchange", "scopes": ["mcp"]}
            },
            "exchange-open": {"tokenExchange": subject | {"tokenUrl": self.fronts["exchange-open"].url, "audience": "mcp-open"}},
        }

    def sidecar(self, name="sidecar", flags=()):
        listed = [governed(server, self.servers[server].url, credential) for server, credential in self.credentials.items()]
        return Governor(self.stage, name, [policy("kinds", listed)], self.keys, self.tokens, ["--upstream-ca", self.ca, *flags])

    def secrets(self):
        """All texts that nobody but the sidecar may know, by what they are; also in the forms in which they travel."""
        texts = {
            "the bearer": self.bearer,
            "the API key": self.api_key,
            "the password": self.password,
            "Keycloak's client secret": KEYCLOAK_SECRET,
            "the token service's client secret": self.exchange_secret,
            "oidc-provider's client secret": self.oidc_secret,
            "the token of the pod": self.pod_token,
            "the subject's token": self.subject,
        }
        for name, front in self.fronts.items():
            texts |= {f"token {number} of {name}": token for number, token in enumerate(front.tokens())}
        pairs = {"basic": f"bench:{self.password}", "oidc": f"oidc-client:{urllib.parse.quote_plus(self.oidc_secret)}"}
        for name, text in list(texts.items()):
            texts[f"{name}, escaped"] = urllib.parse.quote(text, safe="")
            texts[f"{name}, as in a form"] = urllib.parse.quote_plus(text)
        texts |= {f"{name} in base64": base64.b64encode(text.encode()).decode() for name, text in pairs.items()}
        # Its header and the form of its algorithm are the same in all keys; the last lines are not.
        lines = [line for line in self.private_key.splitlines() if not line.startswith("-----")]
        texts |= {f"line {number} of the private key": line for number, line in enumerate(lines[1:])}
        # The signature alone would do.
        for name, text in list(texts.items()):
            if text.count(".") == 2:
                texts[f"the signature of {name}"] = text.rpartition(".")[2]
        return texts

    def close(self):
        for front in self.fronts.values():
            front.close()
        self.issuer.close()


def token_file(audience):
    """The name of the file with the token of an audience, as toolweir_crds::credential::token_file gives it."""
    name = urllib.parse.quote(audience, safe="").replace("~", "%7E")
    return f"%2E{name[1:]}" if name.startswith(".") else name
