//! A client's request for a list, edited where it stands to ask for another page of the list (MCP 2025-11-25, "Pagination").

use toolweir_engine::json::{JsonError, JsonKind, Reader};

use super::{
    edits::{Edits, Filtered},
    members::is_key,
};

/// A client's request for a list with another id and another cursor, which is given as it is written in JSON. Every other byte stays.
/// None where servers could read another cursor in it.
pub fn for_page(request: &[u8], id: &str, cursor: &str) -> Option<Vec<u8>> {
    let mut edits = Edits::of(request);
    let mut reader = Reader::new(request).ok()?;
    let (mut named, mut unclear) = (false, false);
    let read = reader.object::<JsonError>(|reader, key| {
        match key.string()?.as_deref() {
            Some("id") => {
                let value = reader.value()?;
                edits.replace(value.start, value.end(), &format!("\"{id}\""));
            }
            Some("params") => {
                named = true;
                match reader.peek()? {
                    JsonKind::Object => unclear |= !set_cursor(reader, cursor, &mut edits)?,
                    kind => {
                        let value = reader.value()?;
                        unclear |= kind != JsonKind::Null;
                        edits.replace(value.start, value.end(), &format!("{{\"cursor\":{cursor}}}"));
                    }
                }
            }
            _ => drop(reader.value()?),
        }
        Ok(())
    });
    read.ok()?;
    if !named {
        let end = reader.place().checked_sub(1)?;
        edits.replace(end, end, &format!(",\"params\":{{\"cursor\":{cursor}}}"));
    }
    reader.finish().ok()?;
    match edits.finish() {
        Filtered::Edited(request) if !unclear => Some(request),
        _ => None,
    }
}

/// Sets the cursor among the parameters of a request; false where another key could be taken for it.
fn set_cursor(reader: &mut Reader<'_>, cursor: &str, edits: &mut Edits<'_>) -> Result<bool, JsonError> {
    let (mut set, mut clear, mut empty) = (false, true, true);
    reader.object::<JsonError>(|reader, key| {
        empty = false;
        let value = reader.value()?;
        if key.string()?.as_deref() == Some("cursor") {
            clear &= !set;
            set = true;
            edits.replace(value.start, value.end(), cursor);
        } else {
            clear &= !is_key(key, "cursor")?;
        }
        Ok(())
    })?;
    if !set {
        let end = reader.place().saturating_sub(1);
        edits.replace(end, end, &format!("{}\"cursor\":{cursor}", if empty { "" } else { "," }));
    }
    Ok(clear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_another_page_differs_in_id_and_cursor_alone() {
        for (request, page) in [
            (
                r#" {"method":"tools/list", "params" : {"_meta":{"a":1.0}} ,"id":7} "#,
                Some(r#" {"method":"tools/list", "params" : {"_meta":{"a":1.0},"cursor":"c\/2"} ,"id":"t-1"} "#),
            ),
            (
                r#"{"id":"x","params":{"cursor": "1" ,"x":2},"method":"tools/list"}"#,
                Some(r#"{"id":"t-1","params":{"cursor": "c\/2" ,"x":2},"method":"tools/list"}"#),
            ),
            (r#"{"id":1,"method":"tools/list" }"#, Some(r#"{"id":"t-1","method":"tools/list" ,"params":{"cursor":"c\/2"}}"#)),
            (r#"{"id":1,"params":{ },"m":1}"#, Some(r#"{"id":"t-1","params":{ "cursor":"c\/2"},"m":1}"#)),
            (r#"{"id":1,"params":null}"#, Some(r#"{"id":"t-1","params":{"cursor":"c\/2"}}"#)),
            (r#"{"id":1,"params":[]}"#, None),
            (r#"{"id":1,"params":{"Cursor":"1"}}"#, None),
        ] {
            let made = for_page(request.as_bytes(), "t-1", r#""c\/2""#).map(|made| String::from_utf8(made).unwrap());
            assert_eq!(made.as_deref(), page, "{request}");
        }
    }
}
