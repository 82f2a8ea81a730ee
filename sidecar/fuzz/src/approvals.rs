//! Arguments that a person approves: one canonical form for all notations, the digest of that form, and words without content for what has
//! none.

use serde_json::Value;
use toolweir_approvals::{arguments_sha256, canonical_json};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};
use toolweir_pins::sha256;

use super::assert_one_line;

fn read(text: &str) -> Option<Raw<'_>> {
    let mut reader = Reader::new(text.as_bytes()).ok()?;
    let value = reader.value().ok()?;
    reader.finish().ok().map(|()| value)
}

/// The next value of a canonical form in another notation: members in reverse, letters escaped, more zeros, white space.
fn rewritten(reader: &mut Reader<'_>) -> Result<String, JsonError> {
    Ok(match reader.peek()? {
        JsonKind::Object => {
            let mut members: Vec<(String, String)> = Vec::new();
            reader.object(|reader, key| {
                members.push((key.string()?.expect("a key").into_owned(), rewritten(reader)?));
                Ok::<(), JsonError>(())
            })?;
            assert!(members.is_sorted_by(|(one, _), (other, _)| one.encode_utf16().lt(other.encode_utf16())), "{members:?}");
            members.reverse();
            let members = members.iter().map(|(key, value)| format!("{}\t:\n{value}", escaped(key))).collect::<Vec<_>>();
            format!("{{ {} }}", members.join(" , "))
        }
        JsonKind::Array => {
            let mut items = Vec::new();
            reader.array(|reader| {
                items.push(rewritten(reader)?);
                Ok::<(), JsonError>(())
            })?;
            format!("[\r{}]", items.join(" ,"))
        }
        JsonKind::String => escaped(&reader.value()?.string()?.expect("a string")),
        JsonKind::Number => {
            let text = reader.value()?.as_str();
            let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "+00"));
            let point = if mantissa.contains('.') { "" } else { "." };
            format!("{mantissa}{point}000E{exponent}")
        }
        JsonKind::Bool | JsonKind::Null => reader.value()?.as_str().to_owned(),
    })
}

fn escaped(text: &str) -> String {
    format!("\"{}\"", text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect::<String>())
}

/// Whether two values are the same to a reader whose only numbers are those of IEEE 754.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

/// The check.
pub fn check(data: &[u8]) {
    let Some((text, value)) = std::str::from_utf8(data).ok().and_then(|text| Some((text, read(text)?))) else { return };
    let digest = arguments_sha256(Some(value));
    let form = match canonical_json(value) {
        Ok(form) => form,
        Err(error) => {
            assert_eq!(digest.as_ref(), Err(&error));
            assert_one_line(&error.to_string());
            assert!(error.to_string().len() < 1000, "{error}");
            return;
        }
    };
    let expected: String = sha256(form.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest.as_ref(), Ok(&expected));
    let canonical = read(&form).expect("a canonical form is JSON");
    assert_eq!(canonical_json(canonical).as_ref(), Ok(&form), "the form of a form");
    let another = rewritten(&mut canonical.reader()).expect("a canonical form is JSON");
    assert_eq!(canonical_json(read(&another).expect("it was written anew")), Ok(form.clone()), "{another}");
    // Readers that nest as deep see in it what they see in the text.
    if let Ok(meant) = serde_json::from_str::<Value>(text) {
        assert!(same(&meant, &serde_json::from_str(&form).expect("a canonical form is JSON")), "{text} became {form}");
    }
}
