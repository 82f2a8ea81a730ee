//! `tools/list` shows an agent only what it may call.
//!
//! The result is edited where it stands: entries that are not shown are cut out, and every other byte stays. Nothing is kept
//! of an entry once the next one is read, so a list of very many takes no more memory than its text and what stays of it.

use toolweir_engine::json::{JsonError, Kind, Raw, Reader, same_but_for_case};

/// What became of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// It holds no tools/list result, or one of which everything is shown.
    Same,
    /// It is to be replaced by this.
    Edited(Vec<u8>),
}

/// What stays of a text of which parts are replaced, one after the other.
struct Edits<'a> {
    body: &'a [u8],
    edited: Option<Vec<u8>>,
    /// Up to where the body was taken over.
    done: usize,
}

impl Edits<'_> {
    fn replace(&mut self, start: usize, end: usize, with: &str) {
        let edited = self.edited.get_or_insert_with(|| Vec::with_capacity(self.body.len()));
        edited.extend_from_slice(self.body.get(self.done..start).unwrap_or_default());
        edited.extend_from_slice(with.as_bytes());
        self.done = end;
    }

    fn finish(mut self) -> Filtered {
        let rest = self.body.get(self.done..).unwrap_or_default();
        match &mut self.edited {
            None => return Filtered::Same,
            Some(edited) => edited.extend_from_slice(rest),
        }
        self.edited.map_or(Filtered::Same, Filtered::Edited)
    }
}

/// Cuts the tools out of an answer that `shows` does not show, and tells `seen` each name and whether it is shown. An answer
/// is known as a tools/list result by its shape, since one can be replayed on any stream; keys are known in any case, since
/// some clients read them so.
///
/// # Errors
/// It is not strict JSON: what it shows cannot be told.
pub fn filter(body: &[u8], shows: &dyn Fn(&str) -> bool, seen: &mut dyn FnMut(&str, bool)) -> Result<Filtered, JsonError> {
    let mut edits = Edits { body, edited: None, done: 0 };
    let mut reader = Reader::new(body)?;
    if reader.peek()? == Kind::Array {
        // A legacy server may answer with a batch.
        reader.array::<JsonError>(|reader| answer(reader, shows, seen, &mut edits))?;
    } else {
        answer(&mut reader, shows, seen, &mut edits)?;
    }
    reader.finish()?;
    Ok(edits.finish())
}

fn is(key: Raw<'_>, name: &str) -> Result<bool, JsonError> {
    Ok(key.string()?.is_some_and(|key| same_but_for_case(&key, name)))
}

fn answer(
    reader: &mut Reader<'_>,
    shows: &dyn Fn(&str) -> bool,
    seen: &mut dyn FnMut(&str, bool),
    edits: &mut Edits<'_>,
) -> Result<(), JsonError> {
    if reader.peek()? != Kind::Object {
        return reader.value().map(drop);
    }
    reader.object::<JsonError>(|reader, key| {
        if !is(key, "result")? || reader.peek()? != Kind::Object {
            return reader.value().map(drop);
        }
        // Once to see whether something goes, and once more to cut it out: what the result says of itself can stand before.
        let mut ahead = reader.clone();
        let mut goes = false;
        ahead.object::<JsonError>(|reader, key| {
            if is(key, "tools")? && reader.peek()? == Kind::Array {
                return reader.array::<JsonError>(|reader| {
                    goes |= !stays(reader.value()?, shows, seen)?;
                    Ok(())
                });
            }
            reader.value().map(drop)
        })?;
        if !goes {
            *reader = ahead;
            return Ok(());
        }
        reader.object::<JsonError>(|reader, key| {
            if is(key, "tools")? && reader.peek()? == Kind::Array {
                return tools(reader, shows, edits);
            }
            let value = reader.value()?;
            // What was made for one agent must not be shown to another from a shared cache.
            if is(key, "cacheScope")? {
                edits.replace(value.start, value.end(), "\"private\"");
            }
            Ok(())
        })
    })
}

/// Whether an entry of a list stays.
fn stays(tool: Raw<'_>, shows: &dyn Fn(&str) -> bool, seen: &mut dyn FnMut(&str, bool)) -> Result<bool, JsonError> {
    if tool.kind() != Kind::Object {
        return Ok(true);
    }
    let (mut stays, mut named) = (true, false);
    tool.reader().object::<JsonError>(|reader, key| {
        let value = reader.value()?;
        if is(key, "name")? {
            named = true;
            // Of two names a client takes one or the other: all must be shown.
            match value.string()? {
                Some(name) => {
                    let may = shows(&name);
                    seen(&name, may);
                    stays &= may;
                }
                None => stays = false,
            }
        }
        Ok(())
    })?;
    Ok(stays && named)
}

/// Cuts entries out of a list. A run that goes takes the comma after it, or before it at the end of the list.
fn tools(reader: &mut Reader<'_>, shows: &dyn Fn(&str) -> bool, edits: &mut Edits<'_>) -> Result<(), JsonError> {
    // Where the last entry ends that stays, and where the run begins and ends that goes.
    let (mut before, mut run): (Option<usize>, Option<(usize, usize)>) = (None, None);
    reader.array::<JsonError>(|reader| {
        let tool = reader.value()?;
        if !stays(tool, shows, &mut |_, _| {})? {
            run = Some((run.map_or(tool.start, |(start, _)| start), tool.end()));
            return Ok(());
        }
        if let Some((start, _)) = run.take() {
            edits.replace(start, tool.start, "");
        }
        before = Some(tool.end());
        Ok(())
    })?;
    if let Some((start, end)) = run {
        edits.replace(before.unwrap_or(start), end, "");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show_a(body: &str) -> String {
        match filter(body.as_bytes(), &|name| name.starts_with('a'), &mut |_, _| {}).unwrap() {
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
            assert_eq!(filter(body.as_bytes(), &|_| false, &mut |_, _| {}), Ok(Filtered::Same), "{body}");
        }
        assert!(filter(b"{\"result\":{\"tools\":[", &|_| false, &mut |_, _| {}).is_err());
    }
}
