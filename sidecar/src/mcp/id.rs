//! Ids of JSON-RPC: by them alone an answer is known where it does not come in the answer to its own POST.

use ring::digest::{SHA256, digest};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use super::members::{Member, is_key};

/// The longest id of a request that is taken where answers are known by their ids, in bytes as it stands in the message.
pub const LONGEST_ID: usize = 1024;

/// Half a SHA-256: an id takes as much room as any other, and who knows one cannot make another that is the same.
pub type IdHash = [u8; 16];

/// The id of a request, as far as it tells requests apart (JSON-RPC 2.0, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The same for ids that some server takes for one: numbers that a double cannot tell apart, or only by a fraction
    /// that it drops, and a text that is a number.
    pub loose: IdHash,
    /// The same for ids that a server may give back for one: `7.0` comes back as `7`, but never as `"7"`.
    pub exact: IdHash,
}

impl std::hash::Hash for RequestId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.exact.hash(state);
    }
}

impl RequestId {
    /// Reads an id as it stands in a message. None where it is neither a string nor a number.
    pub fn read(id: Raw<'_>) -> Option<Self> {
        let hash = |kind: u8, bytes: &[u8]| -> IdHash {
            let digest = digest(&SHA256, &[&[kind], bytes].concat());
            std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
        };
        // Minus zero is zero.
        let bits = |number: f64| (number + 0.0).to_bits().to_be_bytes();
        match id.kind() {
            JsonKind::Number => {
                let number: f64 = id.as_str().parse().ok()?;
                Some(Self { loose: hash(b'n', &bits(number.trunc())), exact: hash(b'n', &bits(number)) })
            }
            JsonKind::String => {
                let text = id.string().ok()??;
                // Some end a text at a NUL.
                let seen = text.split('\0').next().unwrap_or_default();
                let exact = hash(b's', text.as_bytes());
                let loose = match seen.trim().parse::<f64>() {
                    Ok(number) if number.is_finite() => hash(b'n', &bits(number.trunc())),
                    _ => hash(b's', seen.as_bytes()),
                };
                Some(Self { loose, exact })
            }
            _ => None,
        }
    }
}

/// Returns true where [`RequestId::read`] reads an id. It costs less.
pub fn is_request_id(id: Raw<'_>) -> bool {
    match id.kind() {
        JsonKind::Number => true,
        JsonKind::String => id.string().is_ok(),
        _ => false,
    }
}

/// The id of a message as it is written. None where it has none, or several.
///
/// # Errors
/// The message is not strict JSON.
pub fn message_id(message: &[u8]) -> Result<Option<Raw<'_>>, JsonError> {
    let (mut reader, mut id) = (Reader::new(message)?, Member::None);
    if reader.peek()? != JsonKind::Object {
        return Ok(None);
    }
    reader.object::<JsonError>(|reader, key| {
        let value = reader.value()?;
        if is_key(key, "id")? {
            id.add(value);
        }
        Ok(())
    })?;
    reader.finish()?;
    Ok(id.one())
}

/// Returns true where an answer's id is a request's as that is written. A server may write a number in another way.
pub fn is_same_id(answer: Raw<'_>, request: &str) -> bool {
    let Some(request) = Reader::new(request.as_bytes()).and_then(|mut reader| reader.value()).ok() else { return false };
    match (answer.kind(), request.kind()) {
        (JsonKind::Number, JsonKind::Number) => {
            answer.as_str() == request.as_str()
                || matches!((answer.as_str().parse(), request.as_str().parse()), (Ok::<f64, _>(a), Ok::<f64, _>(b)) if a.to_bits() == b.to_bits())
        }
        (JsonKind::String, JsonKind::String) => {
            matches!((answer.string(), request.string()), (Ok(Some(a)), Ok(Some(b))) if a == b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_id_can_be_read_as_one() {
        for id in ["7", "-0.5e400", r#""""#, r#""\u0061""#, r#""\ud800""#, "null", "true", "[1]", r#"{"id":1}"#] {
            let id = Reader::new(id.as_bytes()).unwrap().value().unwrap();
            assert_eq!(is_request_id(id), RequestId::read(id).is_some(), "{id:?}");
        }
    }

    #[test]
    fn an_id_is_the_same_however_it_is_written() {
        for (answer, request, same) in [
            ("7", "7", true),
            ("7.0", "7", true),
            (r#""\u0061""#, r#""a""#, true),
            ("7", "8", false),
            (r#""7""#, "7", false),
            ("null", "7", false),
        ] {
            let message = format!(r#"{{"result":{{}},"id":{answer}}}"#);
            assert_eq!(is_same_id(message_id(message.as_bytes()).unwrap().unwrap(), request), same, "{answer} {request}");
        }
    }
}
