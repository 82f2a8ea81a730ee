//! JSON that every parser reads alike.

use serde_json::{Map, Value};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use crate::{definition::DefinitionError, number};

/// Bytes of a name that an error shows.
const SHOWN: usize = 80;

/// Reads a value that leaves nothing to the parser: the text is what RFC 8259 says, no object repeats a name, and every number is finite.
/// A number that is an integer of 64 bits is read as that, in whatever notation; any other as the nearest `f64`.
///
/// # Errors
/// The text is not such a value, or nests deeper than 128 levels.
pub fn read_json(json: &[u8]) -> Result<Value, DefinitionError> {
    let mut reader = Reader::new(json)?;
    let value = read_tree(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Reads the next value of a reader as [`read_json`] reads a whole text.
///
/// # Errors
/// The same.
pub fn read_tree(reader: &mut Reader<'_>) -> Result<Value, DefinitionError> {
    Ok(match reader.peek()? {
        JsonKind::Object => {
            let mut members = Map::new();
            reader.object(|reader, name| {
                let name = text(name)?;
                let value = read_tree(reader)?;
                if members.contains_key(&name) {
                    return Err(DefinitionError::Repeated(shown(&name)));
                }
                members.insert(name, value);
                Ok(())
            })?;
            Value::Object(members)
        }
        JsonKind::Array => {
            let mut items = Vec::new();
            reader.array(|reader| {
                items.push(read_tree(reader)?);
                Ok::<(), DefinitionError>(())
            })?;
            Value::Array(items)
        }
        JsonKind::String => Value::String(text(reader.value()?)?),
        JsonKind::Number => {
            let raw = reader.value()?;
            Value::Number(number::read(raw.as_str()).ok_or_else(|| DefinitionError::NotFinite(shown(raw.as_str())))?)
        }
        JsonKind::Bool => Value::Bool(reader.value()?.as_str() == "true"),
        JsonKind::Null => {
            reader.value()?;
            Value::Null
        }
    })
}

fn text(raw: Raw<'_>) -> Result<String, DefinitionError> {
    Ok(raw.string()?.ok_or(JsonError::Syntax(raw.start))?.into_owned())
}

/// The beginning of a text, on one line.
fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(SHOWN);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text.get(..end).unwrap_or_default().escape_debug())
}
