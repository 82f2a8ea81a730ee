//! Credentials of servers: what the sidecar shows a server so that the agent need not have it.
//!
//! A policy never holds a secret. It names keys of a Secret, or the audience of a token of the pod's service account.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{bounds, text::escaped};

/// Names of keys, as far as a pattern can say it: one file of a folder, so never `.` or with `..` at the start.
const SECRET_KEY_PATTERN: &str = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$";

/// The credential of a server; exactly one kind. Keys are those of the Secret that the annotation `toolweir.dev/credentials` of
/// the pod or its namespace names, or files of `--credentials-dir`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.bearer), has(self.header), has(self.basic), has(self.clientCertificate), has(self.serviceAccountToken), \
             has(self.oauth2ClientCredentials), has(self.tokenExchange)].filter(given, given).size() == 1",
    "message": "is not of exactly one kind; write one of bearer, header, basic, clientCertificate, serviceAccountToken, \
                oauth2ClientCredentials, tokenExchange",
}]))]
pub struct Credential {
    /// `Authorization: Bearer` with the text of a key (RFC 6750).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerCredential>,
    /// A header with the text of a key, such as `X-Api-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderCredential>,
    /// `Authorization: Basic` with a user name and a password (RFC 7617).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicCredential>,
    /// A certificate that the sidecar shows when it connects with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificateCredential>,
    /// `Authorization: Bearer` with a token of the pod's service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountTokenCredential>,
    /// `Authorization: Bearer` with a token of an OAuth server (RFC 6749, section 4.4).
    #[serde(default, rename = "oauth2ClientCredentials", skip_serializing_if = "Option::is_none")]
    pub oauth2_client_credentials: Option<ClientCredentialsGrant>,
    /// `Authorization: Bearer` with a token that a token service gives for one of the pod's service account (RFC 8693).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_exchange: Option<TokenExchangeGrant>,
}

/// `Authorization: Bearer` with the text of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BearerCredential {
    /// The key that holds the token.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub secret_key: String,
}

/// A header with the text of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderCredential {
    /// The header's name. What the agent sends in this header, and in those that some servers take for it, does not pass.
    #[schemars(length(min = 1, max = bounds::HEADER_NAME))]
    pub name: String,
    /// The key that holds the header's value.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub secret_key: String,
}

/// A user name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicCredential {
    /// The key that holds the user name.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub username_key: String,
    /// The key that holds the password.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub password_key: String,
}

/// A certificate with its private key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificateCredential {
    /// The key that holds the certificate in PEM, those of the authorities between after it.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub certificate_key: String,
    /// The key that holds the private key in PEM.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub private_key_key: String,
}

/// A token of the pod's service account, which the kubelet renews.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountTokenCredential {
    /// The token's audience: one of the annotation `toolweir.dev/token-audiences` of the pod or its namespace. The server accepts no
    /// token of another audience.
    #[schemars(length(min = 1, max = bounds::AUDIENCE))]
    pub audience: String,
}

/// A token of an OAuth server for a client of its own (RFC 6749, section 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCredentialsGrant {
    /// The token endpoint.
    #[schemars(length(min = 1, max = bounds::URL))]
    pub token_url: String,
    /// The key that holds the client's id.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub client_id_key: String,
    /// The key that holds the client's secret.
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub client_secret_key: String,
    /// The scopes to ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::SCOPES), inner(length(min = 1, max = bounds::OAUTH_VALUE)))]
    pub scopes: Vec<String>,
    /// The URL of the server for which the token is (RFC 8707).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::URL))]
    pub resource: Option<String>,
}

/// A token that a token service gives for one of the pod's service account (RFC 8693).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.clientIdKey) == has(self.clientSecretKey)",
    "message": "clientIdKey and clientSecretKey stand together; write both or neither",
}]))]
pub struct TokenExchangeGrant {
    /// The token endpoint.
    #[schemars(length(min = 1, max = bounds::URL))]
    pub token_url: String,
    /// The audience of the token that is exchanged: one of the annotation `toolweir.dev/token-audiences` of the pod or its namespace.
    #[schemars(length(min = 1, max = bounds::AUDIENCE))]
    pub subject_audience: String,
    /// The audience of the token that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::OAUTH_VALUE))]
    pub audience: Option<String>,
    /// The scopes to ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::SCOPES), inner(length(min = 1, max = bounds::OAUTH_VALUE)))]
    pub scopes: Vec<String>,
    /// The key that holds the client's id, where the token service asks for a client besides the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub client_id_key: Option<String>,
    /// The key that holds the client's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::SECRET_KEY), regex(pattern = SECRET_KEY_PATTERN))]
    pub client_secret_key: Option<String>,
}

/// The kind of a credential, as metrics, the status and the log name it: the closed set of the label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialKind {
    /// `bearer`
    Bearer,
    /// `header`
    Header,
    /// `basic`
    Basic,
    /// `clientCertificate`
    ClientCertificate,
    /// `serviceAccountToken`
    ServiceAccountToken,
    /// `oauth2ClientCredentials`
    #[serde(rename = "oauth2ClientCredentials")]
    OAuth2ClientCredentials,
    /// `tokenExchange`
    TokenExchange,
}

impl CredentialKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Bearer,
        Self::Header,
        Self::Basic,
        Self::ClientCertificate,
        Self::ServiceAccountToken,
        Self::OAuth2ClientCredentials,
        Self::TokenExchange,
    ];

    /// Returns true where tokens are asked for at a token endpoint.
    pub fn asks_for_tokens(self) -> bool {
        matches!(self, Self::OAuth2ClientCredentials | Self::TokenExchange)
    }

    /// Returns the kind as a policy writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Header => "header",
            Self::Basic => "basic",
            Self::ClientCertificate => "clientCertificate",
            Self::ServiceAccountToken => "serviceAccountToken",
            Self::OAuth2ClientCredentials => "oauth2ClientCredentials",
            Self::TokenExchange => "tokenExchange",
        }
    }
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The one kind that a credential is of, with its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialSource<'a> {
    /// `bearer`
    Bearer(&'a BearerCredential),
    /// `header`
    Header(&'a HeaderCredential),
    /// `basic`
    Basic(&'a BasicCredential),
    /// `clientCertificate`
    ClientCertificate(&'a ClientCertificateCredential),
    /// `serviceAccountToken`
    ServiceAccountToken(&'a ServiceAccountTokenCredential),
    /// `oauth2ClientCredentials`
    OAuth2ClientCredentials(&'a ClientCredentialsGrant),
    /// `tokenExchange`
    TokenExchange(&'a TokenExchangeGrant),
}

impl CredentialSource<'_> {
    /// Returns its kind.
    pub fn kind(self) -> CredentialKind {
        match self {
            Self::Bearer(_) => CredentialKind::Bearer,
            Self::Header(_) => CredentialKind::Header,
            Self::Basic(_) => CredentialKind::Basic,
            Self::ClientCertificate(_) => CredentialKind::ClientCertificate,
            Self::ServiceAccountToken(_) => CredentialKind::ServiceAccountToken,
            Self::OAuth2ClientCredentials(_) => CredentialKind::OAuth2ClientCredentials,
            Self::TokenExchange(_) => CredentialKind::TokenExchange,
        }
    }
}

impl Credential {
    /// Returns the one kind that is given; nothing where there is none, or more than one.
    pub fn source(&self) -> Option<CredentialSource<'_>> {
        let Self { bearer, header, basic, client_certificate, service_account_token, oauth2_client_credentials, token_exchange } =
            self;
        let given = [
            bearer.as_ref().map(CredentialSource::Bearer),
            header.as_ref().map(CredentialSource::Header),
            basic.as_ref().map(CredentialSource::Basic),
            client_certificate.as_ref().map(CredentialSource::ClientCertificate),
            service_account_token.as_ref().map(CredentialSource::ServiceAccountToken),
            oauth2_client_credentials.as_ref().map(CredentialSource::OAuth2ClientCredentials),
            token_exchange.as_ref().map(CredentialSource::TokenExchange),
        ];
        let mut given = given.into_iter().flatten();
        given.next().filter(|_| given.next().is_none())
    }

    /// Returns the keys that it needs, each with the field that names it.
    pub fn keys(&self) -> Vec<(&'static str, &str)> {
        match self.source() {
            None | Some(CredentialSource::ServiceAccountToken(_)) => Vec::new(),
            Some(CredentialSource::Bearer(of)) => vec![("bearer.secretKey", &of.secret_key)],
            Some(CredentialSource::Header(of)) => vec![("header.secretKey", &of.secret_key)],
            Some(CredentialSource::Basic(of)) => {
                vec![("basic.usernameKey", &of.username_key), ("basic.passwordKey", &of.password_key)]
            }
            Some(CredentialSource::ClientCertificate(of)) => vec![
                ("clientCertificate.certificateKey", &of.certificate_key),
                ("clientCertificate.privateKeyKey", &of.private_key_key),
            ],
            Some(CredentialSource::OAuth2ClientCredentials(of)) => vec![
                ("oauth2ClientCredentials.clientIdKey", &of.client_id_key),
                ("oauth2ClientCredentials.clientSecretKey", &of.client_secret_key),
            ],
            Some(CredentialSource::TokenExchange(of)) => {
                let id = of.client_id_key.as_deref().map(|key| ("tokenExchange.clientIdKey", key));
                let secret = of.client_secret_key.as_deref().map(|key| ("tokenExchange.clientSecretKey", key));
                id.into_iter().chain(secret).collect()
            }
        }
    }

    /// Returns the audience of the token of the pod's service account that it needs, with the field that names it.
    pub fn audience(&self) -> Option<(&'static str, &str)> {
        match self.source()? {
            CredentialSource::ServiceAccountToken(of) => Some(("serviceAccountToken.audience", &of.audience)),
            CredentialSource::TokenExchange(of) => Some(("tokenExchange.subjectAudience", &of.subject_audience)),
            _ => None,
        }
    }
}

/// Returns the name of the file that holds the token of an audience: the audience, with every byte but ASCII letters, digits, `.`,
/// `-` and `_` percent-encoded, and a `.` at its start too.
pub fn token_file(audience: &str) -> String {
    let mut name = String::with_capacity(audience.len());
    for (at, byte) in audience.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

/// Returns what is wrong with the audience of a token of the pod's service account, if something is. The policy and the annotation
/// `toolweir.dev/token-audiences` are held to the same.
pub fn audience_problem(audience: &str) -> Option<String> {
    let shown = escaped(audience, 80);
    if audience.is_empty() || audience.len() > bounds::AUDIENCE || token_file(audience).len() > bounds::FILE_NAME {
        let most = bounds::AUDIENCE;
        return Some(format!(
            "has {} bytes; an audience has from 1 to {most}, and fewer with many `/`, `:` and the like",
            audience.len()
        ));
    }
    if audience.bytes().any(|byte| byte <= b' ' || byte >= 0x7f || byte == b',') {
        return Some(format!("`{shown}` has a blank, a comma or a character that is not ASCII; write the audience without"));
    }
    (audience == crate::sidecar::AUDIENCE).then(|| {
        format!(
            "`{shown}` is the audience of the sidecar's own token, with which others could pose as the sidecar; write another"
        )
    })
}

/// Returns what is wrong with the name of a key of a Secret, if something is. Each is a file of one folder.
pub fn secret_key_problem(key: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_key = (1..=bounds::SECRET_KEY).contains(&key.len()) && key.bytes().all(fits) && key != "." && !key.starts_with("..");
    (!is_key).then(|| {
        let shown = escaped(key, 80);
        format!(
            "`{shown}` is not a key of a Secret; write 1 to {} letters, digits, `-`, `_` and `.`, without `..` at the start",
            bounds::SECRET_KEY
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_audiences_have_one_file_and_none_leads_out_of_the_folder() {
        for (audience, file) in [
            ("mcp", "mcp"),
            ("https://mcp.example/a", "https%3A%2F%2Fmcp.example%2Fa"),
            ("..", "%2E."),
            ("a%2Fb", "a%252Fb"),
            ("../../token", "%2E.%2F..%2Ftoken"),
        ] {
            assert_eq!(token_file(audience), file);
        }
    }

    #[test]
    fn the_audience_of_the_sidecar_itself_is_nobody_elses() {
        assert!(audience_problem("toolweir").is_some_and(|problem| problem.contains("pose as the sidecar")));
        assert_eq!(audience_problem("https://mcp.example"), None);
        for wrong in ["", "a b", "a,b", "ä", &"x".repeat(254), &"/".repeat(100)] {
            assert!(audience_problem(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn kinds_are_called_in_the_metrics_as_in_the_policy() {
        for kind in CredentialKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
