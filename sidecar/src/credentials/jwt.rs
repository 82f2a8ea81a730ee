//! When a token expires, where it says so itself.

use data_encoding::{BASE64URL_NOPAD, Specification};
use serde::Deserialize;

use super::read_object;

/// The longest token that is looked into, in bytes.
const LONGEST: usize = 16 * 1024;

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// When a token expires, in seconds since 1970, if it is a JSON Web Token that says so (RFC 7519, section 4.1.4). The signature is the
/// server's to verify: whoever could forge this gains nothing here.
pub fn expiry(token: &str) -> Option<i64> {
    if token.len() > LONGEST {
        return None;
    }
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims: Claims = read_object(&decode(payload)?)?;
    // NumericDate may have a fraction.
    claims.exp.filter(|exp| exp.is_finite() && (0.0..1e12).contains(exp)).map(seconds)
}

#[expect(clippy::cast_possible_truncation, reason = "from 0 to 1e12")]
fn seconds(exp: f64) -> i64 {
    exp.floor() as i64
}

/// Decodes base64url without padding, as JWTs have it. What some encoders leave in the last bits is no matter here.
fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.as_bytes()).ok().or_else(|| {
        let mut lenient: Specification = BASE64URL_NOPAD.specification();
        lenient.check_trailing_bits = false;
        lenient.encoding().ok()?.decode(text.as_bytes()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes()))
    }

    #[test]
    fn a_token_says_when_it_expires_or_nothing() {
        assert_eq!(expiry(&token(r#"{"exp":1790000000,"aud":["a"]}"#)), Some(1_790_000_000));
        assert_eq!(expiry(&token(r#"{"exp":1790000000.9}"#)), Some(1_790_000_000));
        for other in [
            "",
            "opaque",
            "a.b",
            "a.b.c.d",
            "a.%.c",
            &token("{}"),
            &token("[]"),
            &token("[1790000000]"),
            &token(r#"{"exp":"soon"}"#),
            &token(r#"{"exp":-1}"#),
            &token(r#"{"exp":1e300}"#),
        ] {
            assert_eq!(expiry(other), None, "{other}");
        }
        assert_eq!(expiry(&"a".repeat(LONGEST + 1)), None);
    }
}
