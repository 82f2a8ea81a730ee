//! The content of the authorities' Secret: reads and writes it. Plain data and functions.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use super::{
    issue,
    plan::{Authority, AuthoritySet, MOST_AUTHORITIES},
};

/// The key of the Secret that the operator reads.
pub const AUTHORITIES: &str = "authorities.json";
/// The key with the certificates alone, for people. The operator never reads it.
pub const BUNDLE: &str = "ca.crt";
/// The type of the Secret.
pub const TYPE: &str = "toolweir.dev/ca";
/// The version of the content of [`AUTHORITIES`].
const VERSION: u32 = 1;
/// The most bytes that are read.
const MOST_BYTES: usize = 256 * 1024;

#[derive(Serialize, Deserialize)]
struct AuthoritiesFile<'a> {
    version: u32,
    authorities: std::borrow::Cow<'a, [Authority]>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads the authorities of a Secret; none where it is empty.
///
/// # Errors
/// The content cannot be read. The Secret may belong to somebody else, or to another version of the operator.
pub fn read(secret: &Secret) -> Result<Option<AuthoritySet>, String> {
    let Some(data) = secret.data.as_ref().filter(|data| !data.is_empty()) else { return Ok(None) };
    let Some(ByteString(text)) = data.get(AUTHORITIES) else {
        let keys = data.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(format!("it has no {AUTHORITIES}, but other keys: {keys}"));
    };
    if text.len() > MOST_BYTES {
        return Err(format!("{AUTHORITIES} is longer than {MOST_BYTES} bytes"));
    }
    // The version alone first: what follows may look different in another one.
    let Versioned { version } = json(text)?;
    if version != VERSION {
        return Err(format!("{AUTHORITIES} has version {version}; this operator reads version {VERSION}"));
    }
    let document: AuthoritiesFile<'_> = json(text)?;
    let state = AuthoritySet { authorities: document.authorities.into_owned() };
    check(&state)?;
    Ok(Some(state))
}

fn json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    // The error of serde_json quotes no value here but a time: keys are not logged.
    serde_json::from_slice(text).map_err(|error| format!("{AUTHORITIES} cannot be read: {error}"))
}

fn check(state: &AuthoritySet) -> Result<(), String> {
    let count = state.authorities.len();
    if count == 0 || count > MOST_AUTHORITIES {
        return Err(format!("{AUTHORITIES} has {count} authorities; there are 1 to {MOST_AUTHORITIES}"));
    }
    for (place, authority) in state.authorities.iter().enumerate() {
        let of = |problem: &str| format!("authority {:?} in {AUTHORITIES}: {problem}", authority.id);
        if authority.id.is_empty() || authority.id.len() > 40 || !authority.id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("authority {place} in {AUTHORITIES}: its id is not one to 40 letters and digits"));
        }
        if state.authorities.iter().skip(place + 1).any(|other| other.id == authority.id) {
            return Err(of("there are two"));
        }
        let span = authority.span;
        if span.made > span.signs_from || span.signs_from >= span.expires {
            return Err(of("made, signsFrom and expires are not in this order"));
        }
        issue::check(authority).map_err(|problem| of(&problem))?;
    }
    Ok(())
}

/// Returns the data of a Secret with these authorities.
///
/// # Errors
/// They cannot be written as JSON: a time after the year 9999.
pub fn data(state: &AuthoritySet) -> Result<BTreeMap<String, ByteString>, serde_json::Error> {
    let document = AuthoritiesFile { version: VERSION, authorities: state.authorities.as_slice().into() };
    Ok(BTreeMap::from([
        (AUTHORITIES.to_owned(), ByteString(serde_json::to_vec_pretty(&document)?)),
        (BUNDLE.to_owned(), ByteString(state.bundle().into_bytes())),
    ]))
}

/// Returns the labels of the Secret.
pub fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "toolweir-operator".to_owned())])
}

/// Returns a new Secret with these authorities.
///
/// # Errors
/// Those of [`data`].
pub fn secret(name: &str, state: &AuthoritySet) -> Result<Secret, serde_json::Error> {
    Ok(Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels()), ..ObjectMeta::default() },
        type_: Some(TYPE.to_owned()),
        data: Some(data(state)?),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};

    use super::*;
    use crate::certs::plan::AuthoritySpan;

    fn authorities(count: u64) -> AuthoritySet {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let new = |n: u64| issue::authority(&AuthoritySpan { made: at(n), signs_from: at(n + 10), expires: at(n + 60) }).unwrap();
        AuthoritySet { authorities: (0..count).map(new).collect() }
    }

    fn with(text: impl Into<Vec<u8>>) -> Secret {
        let data = BTreeMap::from([(AUTHORITIES.to_owned(), ByteString(text.into()))]);
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let state = authorities(3);
        let secret = secret("toolweir-ca", &state).unwrap();
        assert_eq!(read(&secret).unwrap(), Some(state.clone()));
        assert_eq!(secret.type_.as_deref(), Some("toolweir.dev/ca"));
        assert_eq!(secret.metadata.name.as_deref(), Some("toolweir-ca"));
        let bundle = secret.data.unwrap()[BUNDLE].0.clone();
        assert_eq!(bundle, state.bundle().as_bytes());
        assert!(!String::from_utf8(bundle).unwrap().contains("PRIVATE"), "for everybody to read");
    }

    #[test]
    fn an_empty_secret_is_none() {
        assert_eq!(read(&Secret::default()), Ok(None));
        assert_eq!(read(&Secret { data: Some(BTreeMap::new()), ..Secret::default() }), Ok(None));
    }

    #[test]
    fn what_is_not_its_own_is_left_to_whoever_it_belongs_to() {
        let data = BTreeMap::from([("tls.crt".to_owned(), ByteString::default()), ("tls.key".to_owned(), ByteString::default())]);
        let error = read(&Secret { data: Some(data), ..Secret::default() }).unwrap_err();
        assert_eq!(error, "it has no authorities.json, but other keys: tls.crt, tls.key");
    }

    #[test]
    fn what_is_wrong_is_told_without_the_key() {
        let state = authorities(2);
        let whole: Value = serde_json::from_slice(&data(&state).unwrap()[AUTHORITIES].0).unwrap();
        let ids: Vec<&str> = state.authorities.iter().map(|authority| authority.id.as_str()).collect();
        let of = |place: usize| format!("authority {:?} in authorities.json: ", ids[place]);
        let changed = |pointer: &str, value: Value| {
            let mut text = whole.clone();
            *text.pointer_mut(pointer).unwrap() = value;
            text.to_string()
        };
        let many: Vec<Value> = (0..17).map(|_| whole["authorities"][0].clone()).collect();
        for (text, promised) in [
            (String::new(), "authorities.json cannot be read: ".to_owned()),
            ("{}".to_owned(), "authorities.json cannot be read: missing field `version`".to_owned()),
            (changed("/version", json!(2)), "authorities.json has version 2; this operator reads version 1".to_owned()),
            (json!({"version": 2, "signers": 1}).to_string(), "authorities.json has version 2;".to_owned()),
            (changed("/authorities", json!([])), "authorities.json has 0 authorities; there are 1 to 16".to_owned()),
            (changed("/authorities", many.into()), "authorities.json has 17 authorities; there are 1 to 16".to_owned()),
            (changed("/authorities/1/id", "a b".into()), "authority 1 in authorities.json: its id is not one to 40".to_owned()),
            (changed("/authorities/1/id", "".into()), "authority 1 in authorities.json: its id is not one to 40".to_owned()),
            (changed("/authorities/1/id", ids[0].into()), of(0) + "there are two"),
            (
                changed("/authorities/0/made", "yesterday".into()),
                "authorities.json cannot be read: \"yesterday\" is not a time".to_owned(),
            ),
            (
                changed("/authorities/0/signsFrom", "2020-01-01T00:00:00Z".into()),
                of(0) + "made, signsFrom and expires are not in this order",
            ),
            (
                changed("/authorities/1/expires", whole["authorities"][1]["signsFrom"].clone()),
                of(1) + "made, signsFrom and expires are not in this order",
            ),
            (changed("/authorities/0/key", whole["authorities"][1]["key"].clone()), of(0) + "key and certificate do not fit"),
            (changed("/authorities/0/key", "x".into()), of(0) + "the key cannot be read"),
            (changed("/authorities/0/key", json!(1)), "authorities.json cannot be read: invalid type".to_owned()),
            (changed("/authorities/1/certificate", "x".into()), of(1) + "there is no certificate"),
            (" ".repeat(MOST_BYTES + 1), "authorities.json is longer than 262144 bytes".to_owned()),
        ] {
            let error = read(&with(text.clone())).unwrap_err();
            assert!(error.starts_with(&promised), "{error:?}, promised {promised:?}");
            let key = whole["authorities"][0]["key"].as_str().unwrap().lines().nth(1).unwrap();
            assert!(!error.contains(key), "{error}");
        }
        assert!(read(&with([0xff, 0xfe])).is_err());
    }

    #[test]
    fn a_full_secret_can_be_read_again() {
        let state = authorities(u64::try_from(MOST_AUTHORITIES).unwrap());
        assert_eq!(read(&secret("toolweir-ca", &state).unwrap()).unwrap(), Some(state));
    }
}
