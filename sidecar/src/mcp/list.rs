//! Lists show an agent only what it may use.
//!
//! The result is edited where it stands: entries that are not shown are cut out, how long it may be kept is bounded, and every
//! other byte stays. Little is kept of an entry once the next one is read, so a list of very many takes no more memory than its
//! text and what stays of it.

use std::borrow::Cow;

use smallvec::SmallVec;
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use super::{
    edits::{Edits, Filtered},
    list_kind::ListKind,
    members::{Member, is_key},
};

/// The rules by which lists are shown.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The longest time for which a client may keep a list, in milliseconds: a `ttlMs` that says more, or that is no such number, becomes this
    /// (MCP 2026-07-28, "Caching").
    pub ttl: u32,
    /// The request of the sidecar's own whose answer this is.
    pub own: Option<OwnRequest<'a>>,
}

/// A request that the sidecar sends for a client, or for a decision of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRequest<'a> {
    /// Its id, a string.
    pub id: &'a str,
    /// The id, as it is written, of the client's request for which it is sent. The client gets its answer under this id. None where no
    /// client gets it.
    pub client_id: Option<&'a str>,
}

/// An answer that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListAnswer<'a> {
    /// The message for the client.
    pub filtered: Filtered,
    /// The list that it holds, where all clients read the same one in it.
    pub page: Option<ListPage<'a>>,
}

/// A page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListPage<'a> {
    /// The list: the only one of the answer.
    pub list: ListKind,
    /// The id of the answer.
    pub id: Raw<'a>,
    /// The number of its entries.
    pub entries: usize,
    /// The number of entries that stay.
    pub shown: usize,
    /// The cursor of the next page, a string as it is written, where there is one.
    pub next: Option<Raw<'a>>,
}

/// An entry of a list, as it stands there: an object with what the list identifies its entries by.
#[derive(Debug)]
pub struct ListEntry<'a> {
    /// The list.
    pub list: ListKind,
    /// Its text.
    pub text: &'a [u8],
    /// Its names, URIs, URI templates or ids, as clients of every kind may find them: usually one.
    pub names: &'a [Cow<'a, str>],
    /// True where all clients find the same name: the only one, under the key as MCP writes it.
    pub is_plain: bool,
}

/// The most names of an entry. One that has more is not shown.
pub const MOST_NAMES: usize = 8;

/// Decides on the entries of lists.
struct Judge<'a> {
    body: &'a [u8],
    shows: &'a mut dyn FnMut(&ListEntry<'_>) -> bool,
}

/// Cuts the entries out of an answer that `shows` refuses; it is asked once for each that a client may find a name in. An answer is
/// known to hold a list by its shape, since one can be replayed on any stream; keys are known in any case, since some clients
/// read them so.
///
/// # Errors
/// The answer is not strict JSON.
pub fn filter<'a>(
    body: &'a [u8],
    rules: &Rules<'_>,
    shows: &mut dyn FnMut(&ListEntry<'_>) -> bool,
) -> Result<ListAnswer<'a>, JsonError> {
    let mut edits = Edits::of(body);
    let judge = &mut Judge { body, shows };
    let mut reader = Reader::new(body)?;
    let mut page = None;
    if reader.peek()? == JsonKind::Array {
        // A legacy server may answer with a batch.
        reader.array::<JsonError>(|reader| answer(reader, rules, judge, &mut edits).map(drop))?;
    } else {
        page = answer(&mut reader, rules, judge, &mut edits)?;
    }
    reader.finish()?;
    Ok(ListAnswer { filtered: edits.finish(), page })
}

/// Reads one message, and gives the page in it.
fn answer<'a>(
    reader: &mut Reader<'a>,
    rules: &Rules<'_>,
    judge: &mut Judge<'_>,
    edits: &mut Edits<'_>,
) -> Result<Option<ListPage<'a>>, JsonError> {
    if reader.peek()? != JsonKind::Object {
        return reader.value().map(|_| None);
    }
    let (mut id, mut results) = (Member::None, Member::None);
    reader.object::<JsonError>(|reader, key| {
        if is_key(key, "result")? && reader.peek()? == JsonKind::Object {
            results.add(result(reader, rules, judge, edits)?);
            return Ok(());
        }
        let value = reader.value()?;
        if is_key(key, "id")? {
            id.add(value);
            if let Some(own) = rules.own
                && let Some(client_id) = own.client_id
                && value.string()?.is_some_and(|id| id == own.id)
            {
                edits.replace(value.start, value.end(), client_id);
            }
        }
        Ok(())
    })?;
    let page = |id, found: Members<'a>| {
        let FoundList { list, entries, shown } = found.list.one()?;
        Some(ListPage { list, id, entries, shown, next: found.next.one().flatten() })
    };
    Ok(id.one().zip(results.one()).and_then(|(id, found)| page(id, found)))
}

/// The members of a result that matter.
#[derive(Default)]
struct Members<'a> {
    list: Member<FoundList>,
    /// True where an entry goes.
    goes: bool,
    next: Member<Option<Raw<'a>>>,
}

/// A list that was read: how many entries it has, and how many of them stay.
struct FoundList {
    list: ListKind,
    entries: usize,
    shown: usize,
}

/// A part of a result that may have to be replaced.
#[derive(Clone, Copy)]
struct Edit {
    start: usize,
    end: usize,
    part: EditKind,
}

#[derive(Clone, Copy)]
enum EditKind {
    /// Entries that go.
    Entries,
    /// Who may keep the list. What was made for one agent must not be shown to another from a shared cache.
    Scope,
    /// The time for which it may be kept.
    Ttl,
}

/// The most parts of a result that are remembered while it is read: more than it says of itself, so that by then something goes.
const REMEMBERED: usize = 256;

/// Reads a result. What it says of itself can stand before its list, so what changes there is known once something goes, or at
/// its end.
fn result<'a>(
    reader: &mut Reader<'a>,
    rules: &Rules<'_>,
    judge: &mut Judge<'_>,
    edits: &mut Edits<'_>,
) -> Result<Members<'a>, JsonError> {
    let ttl = rules.ttl.to_string();
    let mut apply = |Edit { start, end, part }, goes| match part {
        EditKind::Entries => edits.replace(start, end, ""),
        EditKind::Scope if goes => edits.replace(start, end, "\"private\""),
        EditKind::Scope => {}
        EditKind::Ttl => edits.replace(start, end, &ttl),
    };
    let (mut parts, mut many): (SmallVec<[Edit; 8]>, bool) = (SmallVec::new(), false);
    let found = members(reader, rules, judge, &mut |part| {
        if !many && parts.len() == REMEMBERED {
            many = true;
            parts.drain(..).for_each(|part| apply(part, true));
        }
        if many { apply(part, true) } else { parts.push(part) }
    })?;
    if !matches!(found.list, Member::None) {
        let goes = found.goes || rules.own.is_some();
        parts.into_iter().for_each(|part| apply(part, goes));
    }
    Ok(found)
}

/// Reads the members of a result, and tells `part` what may have to be replaced, in its order.
fn members<'a>(
    reader: &mut Reader<'a>,
    rules: &Rules<'_>,
    judge: &mut Judge<'_>,
    part: &mut dyn FnMut(Edit),
) -> Result<Members<'a>, JsonError> {
    let mut found = Members::default();
    reader.object::<JsonError>(|reader, key| {
        if reader.peek()? == JsonKind::Array
            && let Some(list) = ListKind::of_key(key)?
        {
            let read = entries(reader, list, judge, part)?;
            found.goes |= read.shown < read.entries;
            found.list.add(read);
            return Ok(());
        }
        let value = reader.value()?;
        let (start, end) = (value.start, value.end());
        if is_key(key, "cacheScope")? {
            part(Edit { start, end, part: EditKind::Scope });
        } else if is_key(key, "ttlMs")? {
            if !is_at_most(value, rules.ttl) {
                part(Edit { start, end, part: EditKind::Ttl });
            }
        } else if is_key(key, "nextCursor")? {
            found.next.add(Some(value).filter(|value| value.kind() == JsonKind::String && key.as_str() == "\"nextCursor\""));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Returns true where a value is a number from 0 to `most`.
fn is_at_most(value: Raw<'_>, most: u32) -> bool {
    value.kind() == JsonKind::Number
        && !value.as_str().starts_with('-')
        && value.as_str().parse::<f64>().is_ok_and(|number| number <= f64::from(most))
}

/// Reads a list, and tells `part` what goes of it. A run that goes takes the comma after it, or before it at the end of the list.
fn entries(
    reader: &mut Reader<'_>,
    list: ListKind,
    judge: &mut Judge<'_>,
    part: &mut dyn FnMut(Edit),
) -> Result<FoundList, JsonError> {
    let mut cut = |start, end| part(Edit { start, end, part: EditKind::Entries });
    let (mut entries, mut shown) = (0, 0);
    // Where the last entry ends that stays, and where the run begins and ends that goes.
    let (mut before, mut run): (Option<usize>, Option<(usize, usize)>) = (None, None);
    reader.array::<JsonError>(|reader| {
        let kind = reader.peek()?;
        let start = reader.place();
        let stays = if kind == JsonKind::Object { stays(reader, list, judge)? } else { reader.value().map(|_| true)? };
        entries += 1;
        if !stays {
            run = Some((run.map_or(start, |(start, _)| start), reader.place()));
            return Ok(());
        }
        shown += 1;
        if let Some((first, _)) = run.take() {
            cut(first, start);
        }
        before = Some(reader.place());
        Ok(())
    })?;
    if let Some((start, end)) = run {
        cut(before.unwrap_or(start), end);
    }
    Ok(FoundList { list, entries, shown })
}

/// Reads an entry of a list, and gives whether it stays.
fn stays(reader: &mut Reader<'_>, list: ListKind, judge: &mut Judge<'_>) -> Result<bool, JsonError> {
    let (start, member) = (reader.place(), list.member());
    let (mut names, mut is_plain, mut stays): (SmallVec<[Cow<'_, str>; 1]>, _, _) = (SmallVec::new(), true, true);
    reader.object::<JsonError>(|reader, key| {
        let value = reader.value()?;
        if is_key(key, member)? {
            is_plain &= key.string()?.is_some_and(|key| key == member);
            // Of two names a client takes one or the other: all must be shown.
            match value.string()?.filter(|_| names.len() < MOST_NAMES) {
                Some(name) => names.push(name),
                None => stays = false,
            }
        }
        Ok(())
    })?;
    if names.is_empty() {
        return Ok(false);
    }
    let text = judge.body.get(start..reader.place()).unwrap_or_default();
    let is_plain = is_plain && stays && names.len() == 1;
    Ok((judge.shows)(&ListEntry { list, text, names: &names, is_plain }) && stays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show_a(body: &str) -> String {
        let rules = Rules { ttl: 5000, own: None };
        let mut shows = |entry: &ListEntry<'_>| entry.names.iter().all(|name| name.starts_with('a'));
        match filter(body.as_bytes(), &rules, &mut shows).unwrap().filtered {
            Filtered::Same => body.to_owned(),
            Filtered::Edited(edited) => String::from_utf8(edited).unwrap(),
        }
    }

    const RULES: Rules<'static> = Rules { ttl: 5000, own: None };

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
    fn an_entry_is_told_once_with_its_text_and_with_every_name_that_a_client_may_find() {
        let told = |entry: &str| {
            let mut told = Vec::new();
            let body = format!(r#"{{"result":{{"tools":[ {entry} ]}}}}"#);
            let read = filter(body.as_bytes(), &RULES, &mut |entry| {
                told.push((entry.text.to_vec(), entry.names.join(" "), entry.is_plain));
                true
            });
            let stays = read.unwrap().filtered == Filtered::Same;
            assert!(told.len() <= 1 && told.iter().all(|(text, ..)| text == entry.as_bytes()), "{told:?}");
            (told.pop().map(|(_, names, is_plain)| (names, is_plain)), stays)
        };
        let named = |names: &str, is_plain| Some((names.to_owned(), is_plain));
        assert_eq!(told(r#"{"name" : "\u0061","x":{"name":"y"}}"#), (named("a", true), true));
        assert_eq!(told(r#"{"n\u0061me":"a"}"#), (named("a", true), true));
        assert_eq!(told(r#"{"Name":"a"}"#), (named("a", false), true));
        assert_eq!(told(r#"{"name":"a","NAME":"b"}"#), (named("a b", false), true));
        assert_eq!(told(r#"{"name":"a","name":5}"#), (named("a", false), false));
        assert_eq!(told(r#"{"name":5}"#), (None, false));
        assert_eq!(told(r#"{"title":"a"}"#), (None, false));
        let many = [r#""name":"a""#; MOST_NAMES + 1].join(",");
        assert!(!told(&format!("{{{many}}}")).1);
    }

    #[test]
    fn an_entry_of_each_list_is_judged_by_what_the_list_knows_it_by() {
        for list in ListKind::ALL {
            let (key, member) = (list.key(), list.member());
            let body = |entries: &str| format!(r#"{{"id":1,"result":{{"ttlMs":1,"{key}":[{entries}]}}}}"#);
            let others: String = ["name", "uri", "uriTemplate", "taskId"]
                .iter()
                .filter(|other| **other != member)
                .map(|other| format!(r#""{other}":"a","#))
                .collect();
            let before = format!(
                r#"{{"{member}":"a"}},{{{others}"{member}":"b"}},{{{others}"x":1}},{{"{member}":7}},"a",{{"{member}":"a2"}}"#
            );
            let after = format!(r#"{{"{member}":"a"}},"a",{{"{member}":"a2"}}"#);
            assert_eq!(show_a(&body(&before)), body(&after), "{key}");
            // In whatever case.
            let loud = |text: &str| text.replace(key, &key.to_uppercase()).replace(member, &member.to_uppercase());
            assert_eq!(show_a(&loud(&body(&before))), loud(&body(&after)), "{key}");
            let mut told = Vec::new();
            let body = body(&format!(r#"{{"{member}":"a"}},{{"{}":"b"}}"#, member.to_uppercase()));
            let read = filter(body.as_bytes(), &RULES, &mut |entry| {
                told.push((entry.list, entry.is_plain));
                false
            });
            assert_eq!(told, [(list, true), (list, false)]);
            let page = read.unwrap().page.unwrap();
            assert_eq!((page.list, page.entries, page.shown), (list, 2, 0));
        }
    }

    #[test]
    fn other_answers_stay_as_they_are() {
        for body in [
            r#"{"id":1,"result":{"content":[{"name":"b"}]}}"#,
            r#"{"id":1,"error":{"code":1,"message":"x"}}"#,
            r#"{"method":"x","params":{"tools":[{"name":"b"}]}}"#,
            r#"{"result":{"tools":"b","ttlMs":60000}}"#,
            r#"{"result":{"ttlMs":60000,"contents":[{"uri":"b","name":"b","text":""}],"tasks":{"list":{}}}}"#,
            r#"{"id":1,"result":{"content":[],"structuredContent":{"resources":[{"uri":"b"}],"prompts":[{"name":"b"}]}}}"#,
            r#"{"id":1,"result":{"capabilities":{"tools":{},"prompts":{"listChanged":true},"resources":{}}}}"#,
            "7",
        ] {
            let read = filter(body.as_bytes(), &RULES, &mut |_| false);
            assert_eq!(read, Ok(ListAnswer { filtered: Filtered::Same, page: None }), "{body}");
        }
        assert!(filter(b"{\"result\":{\"tools\":[", &RULES, &mut |_| false).is_err());
    }

    #[test]
    fn a_list_is_kept_no_longer_than_it_may_be() {
        for (before, after) in [
            ("60000", "5000"),
            ("5000.5", "5000"),
            ("1e400", "5000"),
            ("-1", "5000"),
            ("null", "5000"),
            ("\"60000\"", "5000"),
            ("{\"x\":1}", "5000"),
            ("5000", "5000"),
            ("5e3", "5e3"),
            ("0", "0"),
            ("0.5", "0.5"),
        ] {
            let list = |ttl: &str| {
                [
                    format!(r#"{{"result":{{"ttlMs" : {ttl} ,"tools":[{{"name":"a"}}]}}}}"#),
                    format!(r#"{{"result":{{"tools":[],"\u0074tlMS":{ttl}}}}}"#),
                ]
            };
            assert_eq!(list(before).map(|list| show_a(&list)), list(after), "{before}");
        }
        let both = r#"{"result":{"ttlMs":9999,"cacheScope":"public","tools":[{"name":"b"},{"name":"a"}],"ttlMs":null}}"#;
        let cut = r#"{"result":{"ttlMs":5000,"cacheScope":"private","tools":[{"name":"a"}],"ttlMs":5000}}"#;
        assert_eq!(show_a(both), cut);
    }

    #[test]
    fn what_is_cut_is_the_same_however_much_of_a_result_it_is() {
        for pairs in [1, REMEMBERED - 1, REMEMBERED, REMEMBERED + 1, 3 * REMEMBERED] {
            let list = |pair: &str, scope: &str, ttl: u32| {
                let tools = vec![pair; pairs].join(",");
                format!(r#"{{"result":{{"ttlMs":{ttl},"cacheScope":"{scope}","tools":[{tools}],"cacheScope":"{scope}"}}}}"#)
            };
            let before = list(r#"{"name":"b"},{"name":"a"}"#, "public", 9000);
            assert_eq!(show_a(&before), list(r#"{"name":"a"}"#, "private", 5000), "{pairs}");
        }
    }

    #[test]
    fn a_page_is_what_every_client_reads() {
        let page = |body: &'static str| filter(body.as_bytes(), &RULES, &mut |_| false).unwrap().page;
        let found = page(r#"{"result":{"nextCursor":"\u0032","tools":[{"name":"a"},7]},"id":1}"#).unwrap();
        assert_eq!((found.entries, found.shown, found.id.as_str()), (2, 1, "1"));
        assert_eq!(found.next.map(Raw::as_str), Some(r#""\u0032""#));
        for body in [
            r#"{"id":1,"result":{"tools":[],"nextCursor":"a","nextCursor":"b"}}"#,
            r#"{"id":1,"result":{"tools":[],"nextCursor":"a","NextCursor":"b"}}"#,
            r#"{"id":1,"result":{"tools":[],"NextCursor":"b"}}"#,
            r#"{"id":1,"result":{"tools":[],"nextCursor":2}}"#,
        ] {
            assert_eq!(page(body).unwrap().next, None, "{body}");
        }
        for body in [
            r#"{"id":1,"ID":2,"result":{"tools":[]}}"#,
            r#"{"id":1,"result":{"tools":[],"tools":[]}}"#,
            r#"{"id":1,"result":{"tools":[],"prompts":[]}}"#,
            r#"{"id":1,"result":{"tools":[]},"result":{"tools":[]}}"#,
            r#"{"result":{"tools":[]}}"#,
            r#"[{"id":1,"result":{"tools":[]}}]"#,
        ] {
            assert_eq!(page(body), None, "{body}");
        }
    }

    #[test]
    fn the_answer_to_a_request_of_the_sidecar_gets_the_id_of_the_client_and_is_private() {
        let rules = Rules { ttl: 5000, own: Some(OwnRequest { id: "t-1", client_id: Some("7.0") }) };
        let body = br#"{"id":"t-1","result":{"cacheScope":"public","tools":[{"name":"a"}]},"x":"t-1"}"#;
        let Filtered::Edited(edited) = filter(body, &rules, &mut |_| true).unwrap().filtered else { panic!("it was not edited") };
        let edited = String::from_utf8(edited).unwrap();
        assert_eq!(edited, r#"{"id":7.0,"result":{"cacheScope":"private","tools":[{"name":"a"}]},"x":"t-1"}"#);
    }
}
