//! Requests to token endpoints, and their answers. Pure.

use std::{fmt, time::Duration};

use bytes::Bytes;
use form_urlencoded::{Serializer, byte_serialize};
use http::{HeaderValue, StatusCode, Uri};
use serde::Deserialize;
use serde_json::Value;
use toolweir_crds::credential::{ClientCredentialsGrant, TokenExchangeGrant};

use super::{CredentialProblem, jwt, keys::LARGEST_TEXT, read_object};

/// The life of a token of which nobody says how long it lives.
const UNSAID: Duration = Duration::from_secs(300);
/// Issuers cut the time of issue to whole seconds, so that a token lives up to this much shorter than they say.
const CUT: Duration = Duration::from_secs(1);
/// A life shorter than this is over before a request is on its way.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest life that is believed.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A request to a token endpoint (RFC 6749, section 4.4.2; RFC 8693, section 2.1).
pub struct TokenRequest {
    /// The token endpoint.
    pub url: Uri,
    /// The client's id and secret, if the grant has a client.
    pub authorization: Option<HeaderValue>,
    /// The form.
    pub body: Bytes,
}

/// A token that a token endpoint gave.
pub struct IssuedToken {
    /// The token.
    pub access_token: String,
    /// Its life from the moment at which it was asked for, at least.
    pub lifetime: Duration,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// The end of a request for a token: the closed set of the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchOutcome {
    /// There is a token.
    Ok,
    /// The endpoint refuses to give one (4xx).
    Refused,
    /// The endpoint failed (5xx, or another status that gives no token).
    Failed,
    /// The endpoint cannot be connected to, or hung up.
    Unreachable,
    /// The endpoint did not answer in time.
    Timeout,
    /// Its answer cannot be read.
    Invalid,
    /// A key or the subject's token is missing or cannot be used, so nothing was asked.
    NoKey,
}

impl FetchOutcome {
    /// Every outcome.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Refused, Self::Failed, Self::Unreachable, Self::Timeout, Self::Invalid, Self::NoKey];

    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Invalid => "invalid",
            Self::NoKey => "no_key",
        }
    }
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchFailure {
    /// As metrics name it.
    pub outcome: FetchOutcome,
    /// In words.
    pub problem: CredentialProblem,
}

impl FetchFailure {
    /// One that may pass by itself.
    pub fn passing(outcome: FetchOutcome, message: impl Into<String>) -> Self {
        Self { outcome, problem: CredentialProblem::passing(message) }
    }

    fn lasting(outcome: FetchOutcome, message: impl Into<String>) -> Self {
        Self { outcome, problem: CredentialProblem::lasting(message) }
    }
}

/// The request for a token of the client's own. `client` is its id and its secret.
///
/// # Errors
/// The policy's URL is none.
pub fn client_credentials(grant: &ClientCredentialsGrant, client: (&str, &str)) -> Result<TokenRequest, CredentialProblem> {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    append_scopes(&mut form, &grant.scopes);
    if let Some(resource) = &grant.resource {
        form.append_pair("resource", resource);
    }
    request(&grant.token_url, Some(client), &form.finish())
}

/// The request for a token in exchange for the subject's.
///
/// # Errors
/// The policy's URL is none.
pub fn token_exchange(
    grant: &TokenExchangeGrant,
    subject: &str,
    client: Option<(&str, &str)>,
) -> Result<TokenRequest, CredentialProblem> {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
    form.append_pair("subject_token", subject);
    form.append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt");
    form.append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token");
    if let Some(audience) = &grant.audience {
        form.append_pair("audience", audience);
    }
    append_scopes(&mut form, &grant.scopes);
    request(&grant.token_url, client, &form.finish())
}

fn append_scopes(form: &mut Serializer<'_, String>, scopes: &[String]) {
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
}

fn request(url: &str, client: Option<(&str, &str)>, form: &str) -> Result<TokenRequest, CredentialProblem> {
    let url = url.parse().map_err(|_| CredentialProblem::lasting("the policy's tokenUrl is no URL"))?;
    // RFC 6749, section 2.3.1: both are encoded as in a form first.
    let authorization = client.map(|(id, secret)| {
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let both = data_encoding::BASE64.encode(format!("{}:{}", encoded(id), encoded(secret)).as_bytes());
        HeaderValue::from_str(&format!("Basic {both}")).map(|mut value| {
            value.set_sensitive(true);
            value
        })
    });
    let authorization =
        authorization.transpose().map_err(|_| CredentialProblem::lasting("the client's id and secret fit into no header"))?;
    Ok(TokenRequest { url, authorization, body: Bytes::from(form.to_owned()) })
}

/// A token endpoint's answer (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Value>,
}

/// A token endpoint's error (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct TokenErrorAnswer {
    error: String,
}

/// Reads the answer of a token endpoint. `unix` is the time at which it was asked, in seconds since 1970.
///
/// # Errors
/// It gives no token, or none that can be shown. The words repeat nothing but the error's code.
pub fn read_answer(status: StatusCode, body: &[u8], unix: i64) -> Result<IssuedToken, FetchFailure> {
    if status != StatusCode::OK {
        return Err(refusal(status, body));
    }
    let invalid = |why: &str| FetchFailure::lasting(FetchOutcome::Invalid, format!("the answer of the token endpoint {why}"));
    let answer: TokenAnswer = read_object(body).ok_or_else(|| invalid("is not a JSON object with one access_token"))?;
    if answer.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(invalid("has a token of another type than Bearer"));
    }
    let token = answer.access_token;
    // RFC 6749, appendix A.12.
    if token.is_empty() || token.len() > LARGEST_TEXT || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid("has a token that fits into no header"));
    }
    let said = match answer.expires_in {
        None | Some(Value::Null) => {
            Some(jwt::expiry(&token).map_or(UNSAID, |exp| Duration::from_secs(u64::try_from(exp - unix).unwrap_or(0))))
        }
        // Some write the number as a text.
        Some(Value::String(text)) => seconds(text.trim().parse().ok()),
        Some(number) => seconds(number.as_f64()),
    };
    let said = said.ok_or_else(|| invalid("has an expires_in that is no number of seconds"))?;
    if said < SHORTEST {
        return Err(invalid("has a token that has expired already"));
    }
    let said = said.min(LONGEST);
    Ok(IssuedToken { access_token: token, lifetime: said.saturating_sub(CUT).max(said / 2) })
}

/// A number of seconds as a duration, a negative one as none. A number beyond every duration is the longest of them.
fn seconds(number: Option<f64>) -> Option<Duration> {
    let number = number.filter(|number| !number.is_nan())?;
    Some(Duration::try_from_secs_f64(number.max(0.0)).unwrap_or(Duration::MAX))
}

fn refusal(status: StatusCode, body: &[u8]) -> FetchFailure {
    let said = read_object::<TokenErrorAnswer>(body).map(|answer| answer.error);
    // Only a code: what else it says could repeat what it was sent.
    let is_code =
        |code: &String| (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let code = said.filter(is_code).map(|code| format!(" ({code})")).unwrap_or_default();
    let message = format!("the token endpoint answers with status {}{code}", status.as_u16());
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => FetchFailure::passing(FetchOutcome::Refused, message),
        status if status.is_client_error() => FetchFailure::lasting(FetchOutcome::Refused, message),
        status if status.is_redirection() => FetchFailure::lasting(
            FetchOutcome::Failed,
            format!("{message}, which leads elsewhere; write the URL of the endpoint itself"),
        ),
        _ => FetchFailure::passing(FetchOutcome::Failed, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_forms_as_the_specifications_have_them() {
        let grant: ClientCredentialsGrant = serde_json::from_str(
            r#"{"tokenUrl": "https://idp/token", "clientIdKey": "i", "clientSecretKey": "s", "scopes": ["a:b", "c"], "resource": "https://mcp/x?y"}"#,
        )
        .unwrap();
        let request = client_credentials(&grant, ("id", "p:ß +")).unwrap();
        assert_eq!(request.body, "grant_type=client_credentials&scope=a%3Ab+c&resource=https%3A%2F%2Fmcp%2Fx%3Fy");
        let authorization = request.authorization.unwrap();
        assert!(authorization.is_sensitive());
        let basic = authorization.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(data_encoding::BASE64.decode(basic.as_bytes()).unwrap(), b"id:p%3A%C3%9F+%2B");
        let grant: TokenExchangeGrant =
            serde_json::from_str(r#"{"tokenUrl": "https://idp/token", "subjectAudience": "idp", "audience": "mcp"}"#).unwrap();
        let request = token_exchange(&grant, "a.b.c", None).unwrap();
        assert_eq!(
            request.body,
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt\
             &requested_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&audience=mcp"
        );
        assert!(request.authorization.is_none());
    }

    #[test]
    fn a_token_is_read_with_its_life_or_refused() {
        let read = |body: &str| read_answer(StatusCode::OK, body.as_bytes(), 1000);
        for (body, seconds) in [
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":5}"#, 5),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":"3599"}"#, 3599),
            (r#"{"access_token":"t","token_type":"BEARER"}"#, 300),
            (r#"{"access_token":"t","expires_in":null,"issued_token_type":"x"}"#, 300),
            (r#"{"access_token":"t","expires_in":1e18}"#, 30 * 24 * 3600),
            (r#"{"access_token":"t","expires_in":1e300}"#, 30 * 24 * 3600),
            (r#"{"access_token":"t","expires_in":"3599.0"}"#, 3599),
            // A JWT with exp 999999999999.
            (r#"{"access_token":"e30.eyJleHAiOjk5OTk5OTk5OTk5OX0.c2ln"}"#, 30 * 24 * 3600),
            // A JWT with exp 1060.
            (r#"{"access_token":"e30.eyJleHAiOjEwNjB9.c2ln","token_type":"Bearer"}"#, 60),
        ] {
            assert_eq!(read(body).unwrap().lifetime, Duration::from_secs(seconds - 1), "{body}");
        }
        for body in [
            "",
            "{}",
            "[]",
            r#"["t"]"#,
            r#"{"access_token":5}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\r\nX: y"}"#,
            r#"{"access_token":"a","access_token":"b"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
            r#"{"access_token":"t","token_type":"N_A"}"#,
            r#"{"access_token":"t","expires_in":0}"#,
            r#"{"access_token":"t","expires_in":-5}"#,
            r#"{"access_token":"t","expires_in":1e-9}"#,
            r#"{"access_token":"t","expires_in":"soon"}"#,
            r#"{"access_token":"t","expires_in":"NaN"}"#,
            r#"{"access_token":"t","expires_in":{"a":1}}"#,
            r#"{"access_token":"t","expires_in":true}"#,
            r#"{"access_token":"e30.eyJleHAiOjk5OX0.c2ln"}"#,
        ] {
            assert_eq!(read(body).unwrap_err().outcome, FetchOutcome::Invalid, "{body}");
        }
    }

    #[test]
    fn a_token_lives_up_to_a_second_shorter_than_its_issuer_says() {
        for (seconds, life) in [(1, 500), (2, 1000), (3, 2000), (5, 4000)] {
            let body = format!(r#"{{"access_token":"t","expires_in":{seconds}}}"#);
            let token = read_answer(StatusCode::OK, body.as_bytes(), 0).unwrap();
            assert_eq!(token.lifetime, Duration::from_millis(life));
        }
    }

    #[test]
    fn of_a_refusal_nothing_is_repeated_but_its_code() {
        let read = |status: u16, body: &str| read_answer(StatusCode::from_u16(status).unwrap(), body.as_bytes(), 0).unwrap_err();
        for (status, body, outcome, passes, said) in [
            (
                401,
                r#"{"error":"invalid_client","error_description":"marker"}"#,
                FetchOutcome::Refused,
                false,
                "status 401 (invalid_client)",
            ),
            (400, r#"{"error":"Marker of 5"}"#, FetchOutcome::Refused, false, "status 400"),
            (429, "marker", FetchOutcome::Refused, true, "status 429"),
            (500, "marker", FetchOutcome::Failed, true, "status 500"),
            (302, "", FetchOutcome::Failed, false, "write the URL of the endpoint itself"),
            (204, "", FetchOutcome::Failed, true, "status 204"),
        ] {
            let failure = read(status, body);
            assert_eq!((failure.outcome, failure.problem.passes), (outcome, passes), "{status}");
            let text = failure.problem.to_string();
            assert!(text.contains(said) && !text.to_lowercase().contains("marker"), "{text}");
        }
    }
}
