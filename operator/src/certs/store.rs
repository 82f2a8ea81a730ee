//! What the Secret looks like, and how it is read. Plain data and functions.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use super::{
    issue,
    plan::{Authority, MOST_AUTHORITIES, State},
};

/// The key with everything that the operator reads.
pub const AUTHORITIES: &str = "authorities.json";
/// The key with the certificates alone, for people. Never read.
pub const BUNDLE: &str = "ca.crt";
/// The type of the Secret.
pub const TYPE: &str = "toolweir.dev/ca";
/// The version of what is in [`AUTHORITIES`].
const VERSION: u32 = 1;
/// At most this many bytes are read.
const MOST_BYTES: usize = 256 * 1024;

#[derive(Serialize, Deserialize)]
struct Document<'a> {
    version: u32,
    authorities: std::borrow::Cow<'a, [Authority]>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The authorities of a Secret; none where it is empty.
///
/// # Errors
/// What is wrong with it. It then may belong to somebody else, or to another version of the operator.
pub fn read(secret: &Secret) -> Result<Option<State>, String> {
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
    let document: Document<'_> = json(text)?;
    let state = State { authorities: document.authorities.into_owned() };
    check(&state)?;
    Ok(Some(state))
}

fn json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    // The error of serde_json quotes no value here but a time: keys are not logged.
    serde_json::from_slice(text).map_err(|error| format!("{AUTHORITIES} cannot be read: {error}"))
}

fn check(state: &State) -> Result<(), String> {
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

/// The data of a Secret with these authorities.
///
/// # Errors
/// They cannot be written as JSON: a time after the year 9999.
pub fn data(state: &State) -> Result<BTreeMap<String, ByteString>, serde_json::Error> {
    let document = Document { version: VERSION, authorities: state.authorities.as_slice().into() };
    Ok(BTreeMap::from([
        (AUTHORITIES.to_owned(), ByteString(serde_json::to_vec_pretty(&document)?)),
        (BUNDLE.to_owned(), ByteString(state.bundle().into_bytes())),
    ]))
}

/// The labels of the Secret.
pub fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "toolweir-operator".to_owned())])
}

/// A new Secret with these authorities.
///
/// # Errors
/// Those of [`data`].
pub fn secret(name: &str, state: &State) -> Result<Secret, serde_json::Error> {
    Ok(Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels()), ..ObjectMeta::default() },
        type_: Some(TYPE.to_owned()),
        data: Some(data(state)?),
        ..Secret::default()
    })
}
