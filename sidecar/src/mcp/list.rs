//! `tools/list` shows an agent only what it may call.
//!
//! The result is edited where it stands: entries that are not shown are cut out, and every other byte stays.

use toolweir_engine::json::{JsonError, Kind, Raw, Reader};

/// What became of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// It holds no tools/list result, or one of which everything is shown.
    Same,
    /// It is to be replaced by this.
    Edited(Vec<u8>),
}

/// A replacement of a part of a text.
struct Edit {
    start: usize,
    end: usize,
    with: &'static str,
}

/// Cuts the tools out of an answer that `shows` does not show, and tells `seen` each name. An answer is known as a
/// tools/list result by its shape, since one can be replayed on any stream.
///
/// # Errors
/// It is not strict JSON: what it shows cannot be told.
pub fn filter(body: &[u8], shows: &dyn Fn(&str) -> bool, seen: &mut dyn FnMut(&str)) -> Result<Filtered, JsonError> {
    let mut edits: Vec<Edit> = Vec::new();
    let mut reader = Reader::new(body)?;
    if reader.peek()? == Kind::Array {
        // A legacy server may answer with a batch.
        reader.array::<JsonError>(|reader| answer(reader, shows, seen, &mut edits))?;
    } else {
        answer(&mut reader, shows, seen, &mut edits)?;
    }
    reader.finish()?;
    if edits.is_empty() {
        return Ok(Filtered::Same);
    }
    edits.sort_by_key(|edit| edit.start);
    let mut edited = Vec::with_capacity(body.len());
    let mut at = 0;
    for edit in edits {
        edited.extend_from_slice(body.get(at..edit.start).unwrap_or_default());
        edited.extend_from_slice(edit.with.as_bytes());
        at = edit.end;
    }
    edited.extend_from_slice(body.get(at..).unwrap_or_default());
    Ok(Filtered::Edited(edited))
}

fn answer(
    reader: &mut Reader<'_>,
    shows: &dyn Fn(&str) -> bool,
    seen: &mut dyn FnMut(&str),
    edits: &mut Vec<Edit>,
) -> Result<(), JsonError> {
    if reader.peek()? != Kind::Object {
        return reader.value().map(drop);
    }
    reader.object::<JsonError>(|reader, key| {
        if key.string()?.as_deref() != Some("result") || reader.peek()? != Kind::Object {
            return reader.value().map(drop);
        }
        let before = edits.len();
        let mut scopes: Vec<Raw<'_>> = Vec::new();
        reader.object::<JsonError>(|reader, key| match key.string()?.as_deref() {
            Some("tools") if reader.peek()? == Kind::Array => tools(reader, shows, seen, edits),
            Some("cacheScope") => {
                scopes.push(reader.value()?);
                Ok(())
            }
            _ => reader.value().map(drop),
        })?;
        // What was made for one agent must not be shown to another from a shared cache.
        if edits.len() > before {
            edits.extend(scopes.iter().map(|scope| Edit { start: scope.start, end: scope.end(), with: "\"private\"" }));
        }
        Ok(())
    })
}

/// An item of the list: where it stands, where its separator begins, and whether it stays.
struct Item {
    start: usize,
    end: usize,
    stays: bool,
}

fn tools(
    reader: &mut Reader<'_>,
    shows: &dyn Fn(&str) -> bool,
    seen: &mut dyn FnMut(&str),
    edits: &mut Vec<Edit>,
) -> Result<(), JsonError> {
    let mut items: Vec<Item> = Vec::new();
    reader.array::<JsonError>(|reader| {
        let tool = reader.value()?;
        let mut stays = true;
        if tool.kind() == Kind::Object {
            let mut named = false;
            tool.reader().object::<JsonError>(|reader, key| {
                let value = reader.value()?;
                if key.string()?.as_deref() == Some("name") {
                    named = true;
                    // Of two names a client takes one or the other: all must be shown.
                    match value.string()? {
                        Some(name) => {
                            seen(&name);
                            stays &= shows(&name);
                        }
                        None => stays = false,
                    }
                }
                Ok(())
            })?;
            stays &= named;
        }
        items.push(Item { start: tool.start, end: tool.end(), stays });
        Ok(())
    })?;
    // A run that goes takes the comma after it, or before it at the end of the list.
    let mut at = 0;
    while let Some(item) = items.get(at) {
        if item.stays {
            at += 1;
            continue;
        }
        let run = items.iter().skip(at).take_while(|item| !item.stays).count();
        let last = items.get(at + run - 1).unwrap_or(item);
        let next = items.get(at + run);
        let before = at.checked_sub(1).and_then(|before| items.get(before));
        edits.push(match (before, next) {
            (_, Some(next)) => Edit { start: item.start, end: next.start, with: "" },
            (Some(before), None) => Edit { start: before.end, end: last.end, with: "" },
            (None, None) => Edit { start: item.start, end: last.end, with: "" },
        });
        at += run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show_a(body: &str) -> String {
        match filter(body.as_bytes(), &|name| name.starts_with('a'), &mut |_| {}).unwrap() {
            Filtered::Same => body.to_owned(),
            Filtered::Edited(edited) => String::from_utf8(edited).unwrap(),
        }
    }

    #[test]
    fn cuts_out_what_is_not_shown_and_keeps_every_other_byte() {
        for (before, after) in [
            (
                r#"{"id":1,"result":{"tools":[{"name":"a"} , {"name":"b"}],"nextCursor":"x"}}"#,
                r#"{"id":1,"result":{"tools":[{"name":"a"}],"nextCursor":"x"}}"#,
            ),
            (r#"{"result":{"tools":[{"name":"b"} , {"name":"a"}]}}"#, r#"{"result":{"tools":[{"name":"a"}]}}"#),
            (r#"{"result":{"tools":[{"name":"b"},{"name":"c"}], "x":1.0}}"#, r#"{"result":{"tools":[], "x":1.0}}"#),
            (
                r#"{"result":{"tools":[{"name":"a"},{"name":"b"},{"name":"c"},{"name":"a2"},{"name":"d"}]}}"#,
                r#"{"result":{"tools":[{"name":"a"},{"name":"a2"}]}}"#,
            ),
            (r#"{"result":{"cacheScope":"public","tools":[{"name":"b"}]}}"#, r#"{"result":{"cacheScope":"private","tools":[]}}"#),
            (
                r#"{"result":{"cacheScope":"public","tools":[{"name":"a"}]}}"#,
                r#"{"result":{"cacheScope":"public","tools":[{"name":"a"}]}}"#,
            ),
            (r#"[{"result":{"tools":[{"name":"b"}]}}]"#, r#"[{"result":{"tools":[]}}]"#),
            (
                r#"{"result":{"tools":[{"n\u0061me":"\u0062"},{"name":"a","name":"b"},{"title":"x"},{"name":7}]}}"#,
                r#"{"result":{"tools":[]}}"#,
            ),
        ] {
            assert_eq!(show_a(before), after);
        }
    }

    #[test]
    fn other_answers_stay_as_they_are() {
        for body in [
            r#"{"id":1,"result":{"content":[{"name":"b"}]}}"#,
            r#"{"id":1,"error":{"code":1,"message":"x"}}"#,
            r#"{"method":"x","params":{"tools":[{"name":"b"}]}}"#,
            r#"{"result":{"tools":"b"}}"#,
            "7",
        ] {
            assert_eq!(filter(body.as_bytes(), &|_| false, &mut |_| {}), Ok(Filtered::Same), "{body}");
        }
        assert!(filter(b"{\"result\":{\"tools\":[", &|_| false, &mut |_| {}).is_err());
    }
}
