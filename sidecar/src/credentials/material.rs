//! What is shown to a server, and what it is made of. Pure, but for reading files.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use rustls::ClientConfig;
use toolweir_crds::{Credential, CredentialSource};

use super::{
    CredentialProblem, certificate,
    grant::{self, IssuedToken, TokenRequest},
    jwt,
    keys::{KeyFolders, key_text},
};

/// What is shown to a server. Its text shows nothing secret.
#[derive(Clone)]
pub enum CredentialMaterial {
    /// A header of every request.
    Header(HeaderName, HeaderValue),
    /// TLS with a certificate.
    Certificate(Arc<ClientConfig>),
}

impl fmt::Debug for CredentialMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name, _) => f.debug_tuple("Header").field(name).finish_non_exhaustive(),
            Self::Certificate(_) => f.debug_tuple("Certificate").finish_non_exhaustive(),
        }
    }
}

/// A credential that can be shown.
#[derive(Debug)]
pub struct ReadyCredential {
    /// What is shown.
    pub material: CredentialMaterial,
    /// Tells it from every other; a newer one has a larger number, and none has 0.
    version: u64,
    /// When to renew it, if it is a token of a token endpoint.
    pub renew_at: Option<Instant>,
    /// The last moment at which it is shown, if it expires.
    pub use_until: Option<Instant>,
    /// When it expires, in seconds since 1970, where that is known.
    pub expires: Option<i64>,
}

impl ReadyCredential {
    fn new(material: CredentialMaterial, expires: Option<i64>) -> Self {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        let version = VERSIONS.fetch_add(1, Ordering::Relaxed);
        Self { material, version, renew_at: None, use_until: None, expires }
    }

    /// The version, which tells it from every other.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Returns true where this is the other one, not a newer one.
    pub fn is(&self, other: &Self) -> bool {
        self.version == other.version
    }

    /// Returns true while it may be shown.
    pub fn is_usable(&self, now: impl FnOnce() -> Instant) -> bool {
        self.use_until.is_none_or(|until| now() < until)
    }

    /// The same, not shown once it has expired. `now` is `unix` seconds since 1970.
    #[must_use]
    pub fn until_it_expires(mut self, now: Instant, unix: Duration) -> Self {
        let expires = self.expires.and_then(|at| u64::try_from(at).ok()).map(Duration::from_secs);
        self.use_until = expires.and_then(|at| now.checked_add(at.saturating_sub(unix)));
        self
    }

    /// A token that was asked for at `asked`, at `unix` seconds since 1970. A quarter of its life before its end it is renewed, at most
    /// a minute; in the last tenth, at most 5 s, it is not shown any more: it would expire on its way.
    ///
    /// # Errors
    /// The token has characters that no header can hold.
    pub fn of_token(token: &IssuedToken, asked: Instant, unix: i64) -> Result<Self, CredentialProblem> {
        let life = token.lifetime;
        let early = |part: u32, most: u64| asked + life.saturating_sub((life / part).min(Duration::from_secs(most)));
        let expires = unix.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        let mut ready =
            Self::new(authorization("Bearer", &token.access_token, "the token of the token endpoint")?, Some(expires));
        ready.renew_at = Some(early(4, 60));
        ready.use_until = Some(early(10, 5));
        Ok(ready)
    }
}

fn header_value(text: &str, what: &str) -> Result<HeaderValue, CredentialProblem> {
    let mut value = HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| CredentialProblem::lasting(format!("{what} has a character that no header can hold")))?;
    // Not shown in logs, and not kept in the tables of HTTP/2.
    value.set_sensitive(true);
    Ok(value)
}

fn authorization(scheme: &str, text: &str, what: &str) -> Result<CredentialMaterial, CredentialProblem> {
    Ok(CredentialMaterial::Header(AUTHORIZATION, header_value(&format!("{scheme} {text}"), what)?))
}

/// What a credential is made of.
pub enum CredentialInput {
    /// The text of its files is what is shown.
    Whole(Vec<Vec<u8>>),
    /// It is a token that is asked for so. The texts are those of which a change asks for a new one at once.
    Request(TokenRequest, Vec<Vec<u8>>),
}

impl CredentialInput {
    /// Reads the files of a credential.
    ///
    /// # Errors
    /// One of them is missing, or its text cannot be used.
    pub fn read(credential: &Credential, folders: &KeyFolders) -> Result<Self, CredentialProblem> {
        let whole = |files: Vec<Vec<u8>>| Ok(Self::Whole(files));
        match credential.source() {
            None => Err(CredentialProblem::lasting("the policy names none")),
            Some(CredentialSource::Bearer(of)) => whole(folders.keys([&of.secret_key])?.into()),
            Some(CredentialSource::Header(of)) => whole(folders.keys([&of.secret_key])?.into()),
            Some(CredentialSource::Basic(of)) => whole(folders.keys([&of.username_key, &of.password_key])?.into()),
            Some(CredentialSource::ClientCertificate(of)) => {
                whole(folders.keys([&of.certificate_key, &of.private_key_key])?.into())
            }
            Some(CredentialSource::ServiceAccountToken(of)) => whole(vec![folders.token(&of.audience)?.into_bytes()]),
            Some(CredentialSource::OAuth2ClientCredentials(of)) => {
                let (id_key, secret_key) = (of.client_id_key.as_str(), of.client_secret_key.as_str());
                let [id, secret] = folders.keys([id_key, secret_key])?;
                let client = (key_text(id_key, &id)?, key_text(secret_key, &secret)?);
                Ok(Self::Request(grant::client_credentials(of, client)?, vec![id, secret]))
            }
            Some(CredentialSource::TokenExchange(of)) => {
                let subject = folders.token(&of.subject_audience)?;
                let Some((id_key, secret_key)) = of.client_id_key.as_deref().zip(of.client_secret_key.as_deref()) else {
                    return Ok(Self::Request(grant::token_exchange(of, &subject, None)?, Vec::new()));
                };
                let [id, secret] = folders.keys([id_key, secret_key])?;
                let client = (key_text(id_key, &id)?, key_text(secret_key, &secret)?);
                Ok(Self::Request(grant::token_exchange(of, &subject, Some(client))?, vec![id, secret]))
            }
        }
    }

    /// The texts of which a change makes another credential.
    pub fn texts(&self) -> &[Vec<u8>] {
        match self {
            Self::Whole(texts) | Self::Request(_, texts) => texts,
        }
    }
}

/// What is shown of a credential whose files are all that it takes. `tls` is the base of a connection with a certificate.
///
/// # Errors
/// The text of a file cannot be used; the words name its key.
pub fn of_files(credential: &Credential, files: &[Vec<u8>], tls: &ClientConfig) -> Result<ReadyCredential, CredentialProblem> {
    let (first, second) = (files.first().map_or(&[][..], Vec::as_slice), files.get(1).map_or(&[][..], Vec::as_slice));
    match credential.source() {
        Some(CredentialSource::Bearer(of)) => {
            let token = key_text(&of.secret_key, first)?;
            let what = format!("the key {}", of.secret_key);
            if !token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
                let message = format!(
                    "{what} is not a bearer token: it has a blank, a quote or a character that is not ASCII; store the token alone"
                );
                return Err(CredentialProblem::lasting(message));
            }
            Ok(ReadyCredential::new(authorization("Bearer", token, &what)?, jwt::expiry(token)))
        }
        Some(CredentialSource::Header(of)) => {
            let text = key_text(&of.secret_key, first)?;
            let name = HeaderName::from_bytes(of.name.as_bytes())
                .map_err(|_| CredentialProblem::lasting("the policy's header is none"))?;
            let value = header_value(text, &format!("the key {}", of.secret_key))?;
            let token = text.split_once(' ').map_or(text, |(_, token)| token);
            Ok(ReadyCredential::new(CredentialMaterial::Header(name, value), jwt::expiry(token)))
        }
        Some(CredentialSource::Basic(of)) => {
            let (user, password) = (key_text(&of.username_key, first)?, key_text(&of.password_key, second)?);
            if user.contains(':') {
                let message = format!("the key {} has a colon, and a user name has none", of.username_key);
                return Err(CredentialProblem::lasting(message));
            }
            let both = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
            Ok(ReadyCredential::new(authorization("Basic", &both, "it")?, None))
        }
        Some(CredentialSource::ClientCertificate(of)) => {
            let names = (of.certificate_key.as_str(), of.private_key_key.as_str());
            let (config, expires) = certificate::showing(tls, first, second, names)?;
            Ok(ReadyCredential::new(CredentialMaterial::Certificate(config), expires))
        }
        Some(CredentialSource::ServiceAccountToken(of)) => {
            let what = format!("the service account token of the audience {}", of.audience);
            let token = std::str::from_utf8(first).unwrap_or_default();
            Ok(ReadyCredential::new(authorization("Bearer", token, &what)?, jwt::expiry(token)))
        }
        _ => Err(CredentialProblem::lasting("it is a token that was not asked for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(credential: &str, files: &[&str]) -> Result<ReadyCredential, CredentialProblem> {
        let credential: Credential = serde_yaml::from_str(credential).unwrap();
        let files: Vec<Vec<u8>> = files.iter().map(|text| text.as_bytes().to_vec()).collect();
        of_files(&credential, &files, &toolweir_store::tls::client_config(rustls::RootCertStore::empty()).unwrap())
    }

    fn header(ready: &ReadyCredential) -> (String, String) {
        let CredentialMaterial::Header(name, value) = &ready.material else { panic!("{:?}", ready.material) };
        assert!(value.is_sensitive());
        (name.to_string(), value.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_kind_is_shown_as_its_specification_says() {
        for (credential, files, name, value) in [
            ("bearer: {secretKey: t}", vec!["abc\n"], "authorization", "Bearer abc"),
            ("header: {name: X-Api-Key, secretKey: t}", vec!["abc"], "x-api-key", "abc"),
            ("header: {name: Authorization, secretKey: t}", vec!["Token abc"], "authorization", "Token abc"),
            // RFC 7617, section 2.
            (
                "basic: {usernameKey: u, passwordKey: p}",
                vec!["Aladdin", "open sesame"],
                "authorization",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("serviceAccountToken: {audience: a}", vec!["abc"], "authorization", "Bearer abc"),
        ] {
            let (shown, said) = header(&ready(credential, &files).unwrap());
            assert_eq!((shown.as_str(), said.as_str()), (name, value), "{credential}");
        }
        for text in ["Bearer abc", "\"abc\"", "\u{feff}abc", "\u{f6}"] {
            let problem = ready("bearer: {secretKey: t}", &[text]).unwrap_err();
            assert!(problem.message.starts_with("the key t is not a bearer token"), "{problem}");
        }
        let problem = ready("basic: {usernameKey: u, passwordKey: p}", &["a:b", "c"]).unwrap_err();
        assert!(problem.message.contains("the key u has a colon"), "{problem}");
    }

    #[test]
    fn nothing_secret_is_in_its_text() {
        for (credential, files) in [
            ("bearer: {secretKey: t}", vec!["marker"]),
            ("header: {name: x, secretKey: t}", vec!["marker"]),
            ("basic: {usernameKey: u, passwordKey: p}", vec!["marker", "marker"]),
        ] {
            let ready = ready(credential, &files).unwrap();
            let text = format!("{ready:?} {:#?}", ready.material);
            assert!(!text.contains("marker") && !text.contains("bWFya2Vy"), "{text}");
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_may_no_longer_be_shown() {
        for (life, renew, until) in [(5, 3.75, 4.5), (60, 45.0, 55.0), (3600, 3540.0, 3595.0), (0, 0.0, 0.0)] {
            let asked = Instant::now();
            let token = IssuedToken { access_token: "t".to_owned(), lifetime: Duration::from_secs(life) };
            let ready = ReadyCredential::of_token(&token, asked, 1000).unwrap();
            assert_eq!(ready.renew_at.unwrap() - asked, Duration::from_secs_f64(renew));
            assert_eq!(ready.use_until.unwrap() - asked, Duration::from_secs_f64(until));
            assert_eq!(ready.expires, Some(1000 + i64::try_from(life).unwrap()));
            assert!(!ready.is_usable(|| asked + Duration::from_secs_f64(until)));
        }
    }
}
