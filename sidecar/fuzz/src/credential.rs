//! The files and answers that a credential is made of: the text of a key, a token endpoint's answer, a JSON Web Token and a certificate.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, value::RawValue};
use toolweir_sidecar::credentials::{certificate::not_after, grant::read_answer, jwt::expiry, keys::key_text};

use super::assert_one_line;

/// The check.
pub fn check(data: &[u8]) {
    key(data);
    answer(data);
    if let Ok(text) = std::str::from_utf8(data) {
        token(text);
    }
    if let Some(seconds) = not_after(data) {
        // From the year 0 to the year 9999.
        assert!((-62_200_000_000..253_500_000_000).contains(&seconds), "{seconds}");
    }
}

fn key(data: &[u8]) {
    match key_text("k", data) {
        Ok(text) => {
            HeaderValue::from_bytes(text.as_bytes()).expect("a header holds it");
            let rest = data.strip_prefix(text.as_bytes()).expect("it is the key's text");
            assert!(matches!(rest, b"" | b"\n" | b"\r\n"), "{rest:?}");
            assert!(!text.trim().is_empty() && text.trim() == text);
        }
        Err(problem) => {
            assert_one_line(&problem.message);
            assert!(problem.message.starts_with("the key k ") && problem.message.len() < 100, "{problem}");
        }
    }
}

fn answer(data: &[u8]) {
    for status in [StatusCode::OK, StatusCode::BAD_REQUEST] {
        match read_answer(status, data, 1_000) {
            Ok(token) => {
                assert_eq!(status, StatusCode::OK);
                // Numbers that nobody looks at may be out of any range.
                let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(data).expect("it is an object");
                let read = |name: &str| fields.get(name).and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
                assert_eq!(read("access_token").as_ref().and_then(Value::as_str), Some(token.access_token.as_str()));
                assert!(HeaderValue::from_str(&format!("Bearer {}", token.access_token)).is_ok());
                assert!(!token.lifetime.is_zero() && token.lifetime.as_secs() <= 30 * 24 * 3600);
                if let Some(seconds) = read("expires_in").and_then(|life| life.as_u64()) {
                    let said = Duration::from_secs(seconds.min(30 * 24 * 3600));
                    assert!(token.lifetime < said && token.lifetime >= said / 2, "{token:?}");
                }
            }
            Err(failure) => assert_one_line(&failure.problem.message),
        }
    }
}

fn token(text: &str) {
    // Read in another way: the middle of three parts is an object with a number `exp`.
    let parts: Vec<&str> = text.split('.').collect();
    let claims = match parts.as_slice() {
        [_, payload, _] => {
            BASE64URL_NOPAD.decode(payload.as_bytes()).ok().and_then(|json| serde_json::from_slice::<Value>(&json).ok())
        }
        _ => None,
    };
    let exp = claims.as_ref().and_then(|claims| claims.as_object()?.get("exp")?.as_f64());
    match expiry(text) {
        Some(seconds) => assert!((0..1_000_000_000_001).contains(&seconds)),
        None => assert!(exp.is_none_or(|exp| !(0.0..1e12).contains(&exp)) || text.len() > 16 * 1024, "{exp:?}"),
    }
}
