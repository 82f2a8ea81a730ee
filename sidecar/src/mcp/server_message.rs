//! What a message of a server asks of its client, as policies see it.
//!
//! A server asks in three ways: by a request of its own (MCP 2025-11-25, Client Features), by `inputRequests` in a result or a
//! notification about a task (MCP 2026-07-28, "Multi Round-Trip Requests"; the extension for tasks), and by the error -32042 with
//! `elicitations` (MCP 2025-11-25, Elicitation, "URL Mode Elicitation Required"). Keys are known in any case, since some clients read them
//! so; a message in which two clients could find different requests is unclear.

use std::borrow::Cow;

use smallvec::SmallVec;
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use super::{
    differs_in_case,
    edits::{Edits, Filtered},
    id::is_request_id,
    members::{Member, is_key},
};

/// Something that a server asks of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAsk<'a> {
    /// The method.
    pub method: Cow<'a, str>,
    /// The parameters as they stand in the message.
    pub params: Option<Raw<'a>>,
}

/// A message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// It asks for nothing.
    Plain,
    /// It is a request.
    Request {
        /// Its id as it stands in the message.
        id: Raw<'a>,
        /// What it asks for.
        ask: ServerAsk<'a>,
    },
    /// It is a notification.
    Notification {
        /// The method.
        method: Cow<'a, str>,
        /// `uri` of its parameters.
        uri: Option<Cow<'a, str>>,
        /// What it asks for besides.
        input: InputAsks<'a>,
    },
    /// It is an answer that asks for input, or tells of a task.
    Answer {
        /// Its id as it stands in the message; none where it has none.
        id: Option<Raw<'a>>,
        /// The id of the task.
        task: Option<Cow<'a, str>>,
        /// What it asks for.
        input: InputAsks<'a>,
    },
}

/// What an answer or a notification asks for, each with its place in the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputAsks<'a> {
    asks: Vec<PlacedAsk<'a>>,
}

/// Something that is asked for, and where it stands among others: it can be cut out there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlacedAsk<'a> {
    ask: ServerAsk<'a>,
    /// The object or list in which it stands.
    group: usize,
    start: usize,
    end: usize,
}

/// Why a message of a server does not pass: clients could find different things in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnclearMessage {
    /// It is not strict JSON.
    #[error("{0}")]
    Json(#[from] JsonError),
    /// It has a member in two spellings, or both a method and an answer.
    #[error("could be read in two ways")]
    TwoWays,
    /// It asks for more than is read.
    #[error("asks for more than {MOST_ASKS} things at once")]
    Many,
}

/// The most that one message may ask for.
pub const MOST_ASKS: usize = 64;

impl<'a> InputAsks<'a> {
    /// What is asked for, in its order.
    pub fn asks(&self) -> impl Iterator<Item = &ServerAsk<'a>> {
        self.asks.iter().map(|placed| &placed.ask)
    }

    /// Returns true where nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// The message without what is not to stay. `stays` says of each, in their order, whether it does.
    pub fn without(&self, message: &[u8], stays: &[bool]) -> Filtered {
        let mut edits = Edits::of(message);
        for group in self.asks.chunk_by(|a, b| a.group == b.group) {
            let first =
                self.asks.iter().position(|ask| ask.group == group.first().map_or(0, |ask| ask.group)).unwrap_or_default();
            let kept = |at: usize| stays.get(first + at).copied().unwrap_or(false);
            // Where the last one ends that stays, and where the run begins that goes.
            let (mut before, mut run): (Option<usize>, Option<(usize, usize)>) = (None, None);
            for (at, placed) in group.iter().enumerate() {
                if !kept(at) {
                    run = Some((run.map_or(placed.start, |(start, _)| start), placed.end));
                    continue;
                }
                if let Some((start, _)) = run.take() {
                    edits.replace(start, placed.start, "");
                }
                before = Some(placed.end);
            }
            if let Some((start, end)) = run {
                edits.replace(before.unwrap_or(start), end, "");
            }
        }
        edits.finish()
    }
}

/// Reads a message of a server, or a batch of them. A text in which no key is spelled that asks for something need not be read.
///
/// # Errors
/// Clients could find different things in it.
pub fn read(text: &[u8]) -> Result<SmallVec<[ServerMessage<'_>; 1]>, UnclearMessage> {
    let mut reader = Reader::new(text)?;
    let mut messages = SmallVec::new();
    if reader.peek()? == JsonKind::Array {
        reader.array::<UnclearMessage>(|reader| {
            messages.push(message(reader)?);
            if messages.len() > MOST_ASKS { Err(UnclearMessage::Many) } else { Ok(()) }
        })?;
    } else {
        messages.push(message(&mut reader)?);
    }
    reader.finish()?;
    Ok(messages)
}

/// How many messages of a text a client may take for answers: all but requests and notifications, since clients take ids for the same that are
/// not (`"1"` for `1`). Of a text that is not clear, any number may be.
pub fn possible_answers(text: &[u8]) -> usize {
    let may_be = |one: &&ServerMessage<'_>| !matches!(one, ServerMessage::Request { .. } | ServerMessage::Notification { .. });
    read(text).map_or(usize::MAX, |messages| messages.iter().filter(may_be).count())
}

/// The members of a message that matter.
#[derive(Default)]
struct Envelope<'a> {
    id: Member<Raw<'a>>,
    method: Member<Raw<'a>>,
    params: Member<Raw<'a>>,
    uri: Member<Option<Cow<'a, str>>>,
    answers: usize,
    input: InputReader<'a>,
}

fn message<'a>(reader: &mut Reader<'a>) -> Result<ServerMessage<'a>, UnclearMessage> {
    if reader.peek()? != JsonKind::Object {
        reader.value()?;
        return Ok(ServerMessage::Plain);
    }
    let mut found = Envelope::default();
    reader.object::<UnclearMessage>(|reader, key| {
        if is_key(key, "result")? {
            found.answers += 1;
            return found.input.result(reader);
        }
        if is_key(key, "error")? {
            found.answers += 1;
            return found.input.error(reader);
        }
        if is_key(key, "params")? {
            found.params.add(reader.clone().value()?);
            return found.input.params(reader, &mut found.uri);
        }
        let value = reader.value()?;
        if is_key(key, "id")? {
            found.id.add(value);
        } else if is_key(key, "method")? {
            found.method.add(value);
        }
        Ok(())
    })?;
    found.message()
}

impl<'a> Envelope<'a> {
    fn message(self) -> Result<ServerMessage<'a>, UnclearMessage> {
        let Self { id, method, params, uri, answers, input } = self;
        let (input, task) = (input.asks, input.task);
        let one = |member: Member<Raw<'a>>| match member {
            Member::None => Ok(None),
            Member::One(value) => Ok(Some(value)),
            Member::Several => Err(UnclearMessage::TwoWays),
        };
        let Some(method) = one(method)? else {
            let says = !input.is_empty() || task.is_some();
            return Ok(if says { ServerMessage::Answer { id: one(id)?, task, input } } else { ServerMessage::Plain });
        };
        if answers > 0 {
            return Err(UnclearMessage::TwoWays);
        }
        let method = checked_method(method.string()?.ok_or(UnclearMessage::TwoWays)?)?;
        let params = one(params)?;
        match one(id)?.filter(|id| id.kind() != JsonKind::Null) {
            // Some clients take what has no id of a request for a notification.
            Some(id) if method.starts_with("notifications/") || !is_request_id(id) => Err(UnclearMessage::TwoWays),
            Some(id) => Ok(ServerMessage::Request { id, ask: ServerAsk { method, params } }),
            None => {
                let uri = match uri {
                    Member::None => None,
                    Member::One(uri) => uri,
                    Member::Several => return Err(UnclearMessage::TwoWays),
                };
                Ok(ServerMessage::Notification { method, uri, input })
            }
        }
    }
}

/// Returns whether an elicitation says that it is of a URL; none where it says nothing of its mode.
fn url_mode(elicitation: Raw<'_>) -> Result<Option<bool>, UnclearMessage> {
    let mut mode = Member::None;
    if elicitation.kind() == JsonKind::Object {
        elicitation.reader().object::<UnclearMessage>(|reader, key| {
            let value = reader.value()?;
            if is_key(key, "mode")? {
                mode.add(value.string()?.is_some_and(|mode| mode == "url"));
            }
            Ok(())
        })?;
    }
    Ok(mode.one())
}

/// Returns a method that is none of the known ones in another case, which some clients would take for it.
fn checked_method(method: Cow<'_, str>) -> Result<Cow<'_, str>, UnclearMessage> {
    if differs_in_case(&method).is_some() { Err(UnclearMessage::TwoWays) } else { Ok(method) }
}

/// Collects what an answer or a notification asks for.
#[derive(Default)]
struct InputReader<'a> {
    asks: InputAsks<'a>,
    groups: usize,
    /// The task of the result; the last that is named.
    task: Option<Cow<'a, str>>,
}

impl<'a> InputReader<'a> {
    /// Reads a result: `inputRequests` in it, or in the task in it.
    fn result(&mut self, reader: &mut Reader<'a>) -> Result<(), UnclearMessage> {
        self.holder(reader, true, &mut |_, _| Ok(false))
    }

    /// Reads the parameters of a notification or request in the same way, and `uri` in them.
    fn params(&mut self, reader: &mut Reader<'a>, uri: &mut Member<Option<Cow<'a, str>>>) -> Result<(), UnclearMessage> {
        self.holder(reader, true, &mut |reader, key| {
            let is_uri = is_key(key, "uri")?;
            if is_uri {
                uri.add(reader.value()?.string()?);
            }
            Ok(is_uri)
        })
    }

    /// Reads an object that can hold `inputRequests`, or a task that does. `other` reads a member of its own, and returns true if it did.
    fn holder(
        &mut self,
        reader: &mut Reader<'a>,
        has_task: bool,
        other: &mut dyn FnMut(&mut Reader<'a>, Raw<'a>) -> Result<bool, UnclearMessage>,
    ) -> Result<(), UnclearMessage> {
        if reader.peek()? != JsonKind::Object {
            reader.value()?;
            return Ok(());
        }
        let mut times = 0;
        reader.object::<UnclearMessage>(|reader, key| {
            if other(reader, key)? {
                return Ok(());
            }
            if is_key(key, "inputRequests")? {
                times += 1;
                return if times > 1 { Err(UnclearMessage::TwoWays) } else { self.requests(reader) };
            }
            if is_key(key, "taskId")? {
                self.task = reader.value()?.string()?.or(self.task.take());
                return Ok(());
            }
            if has_task && is_key(key, "task")? {
                return self.holder(reader, false, &mut |_, _| Ok(false));
            }
            reader.value()?;
            Ok(())
        })
    }

    /// Reads `inputRequests`: requests by the names that the server gives them.
    fn requests(&mut self, reader: &mut Reader<'a>) -> Result<(), UnclearMessage> {
        match reader.peek()? {
            JsonKind::Object => {}
            JsonKind::Array => return Err(UnclearMessage::TwoWays),
            _ => return reader.value().map(|_| ()).map_err(Into::into),
        }
        let group = self.next_group();
        reader.object::<UnclearMessage>(|reader, key| {
            let (mut method, mut params) = (Member::None, Member::None);
            if reader.peek()? == JsonKind::Object {
                reader.object::<UnclearMessage>(|reader, key| {
                    let value = reader.value()?;
                    if is_key(key, "method")? {
                        method.add(value);
                    } else if is_key(key, "params")? {
                        params.add(value);
                    }
                    Ok(())
                })?;
            } else {
                reader.value()?;
            }
            // What is no request is one of no known method.
            let text = match method {
                Member::None => Cow::Borrowed(""),
                Member::One(method) => checked_method(method.string()?.unwrap_or_default())?,
                Member::Several => return Err(UnclearMessage::TwoWays),
            };
            let params = if matches!(params, Member::Several) { return Err(UnclearMessage::TwoWays) } else { params.one() };
            self.add(ServerAsk { method: text, params }, group, key.start, reader.place())
        })
    }

    /// Reads an error: `elicitations` in its `data`.
    fn error(&mut self, reader: &mut Reader<'a>) -> Result<(), UnclearMessage> {
        if reader.peek()? != JsonKind::Object {
            reader.value()?;
            return Ok(());
        }
        reader.object::<UnclearMessage>(|reader, key| {
            if !is_key(key, "data")? || reader.peek()? != JsonKind::Object {
                reader.value()?;
                return Ok(());
            }
            reader.object::<UnclearMessage>(|reader, key| {
                if !is_key(key, "elicitations")? || reader.peek()? != JsonKind::Array {
                    reader.value()?;
                    return Ok(());
                }
                let group = self.next_group();
                reader.array::<UnclearMessage>(|reader| {
                    let value = reader.value()?;
                    // Clients take one that does not say so for one with a URL too, and conditions must see what it is.
                    if url_mode(value)? != Some(true) {
                        return Err(UnclearMessage::TwoWays);
                    }
                    let ask = ServerAsk { method: Cow::Borrowed("elicitation/create"), params: Some(value) };
                    self.add(ask, group, value.start, value.end())
                })
            })
        })
    }

    fn next_group(&mut self) -> usize {
        self.groups += 1;
        self.groups
    }

    fn add(&mut self, ask: ServerAsk<'a>, group: usize, start: usize, end: usize) -> Result<(), UnclearMessage> {
        if self.asks.asks.len() >= MOST_ASKS {
            return Err(UnclearMessage::Many);
        }
        self.asks.asks.push(PlacedAsk { ask, group, start, end });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<ServerMessage<'_>, UnclearMessage> {
        read(text.as_bytes()).map(|mut read| read.swap_remove(0))
    }

    fn methods(text: &str) -> Vec<String> {
        match one(text).unwrap() {
            ServerMessage::Plain => Vec::new(),
            ServerMessage::Request { ask, .. } => vec![ask.method.into_owned()],
            ServerMessage::Notification { input, .. } | ServerMessage::Answer { input, .. } => {
                input.asks().map(|ask| ask.method.clone().into_owned()).collect()
            }
        }
    }

    #[test]
    fn what_a_server_asks_for_is_found_wherever_it_may_stand() {
        for (text, asked) in [
            (r#"{"id":1,"method":"sampling/createMessage","params":{}}"#, vec!["sampling/createMessage"]),
            (r#"{"ID":1,"m\u0065thod":"roots\/list"}"#, vec!["roots/list"]),
            (
                r#"{"id":1,"result":{"content":[{"method":"x"}],"structuredContent":{"inputRequests":{"a":{"method":"x"}}}}}"#,
                vec![],
            ),
            (
                r#"{"id":1,"result":{"inputRequests":{"a":{"method":"elicitation/create"},"b":{"method":"roots/list"},"c":7}}}"#,
                vec!["elicitation/create", "roots/list", ""],
            ),
            (r#"{"id":1,"result":{"task":{"InputRequests":{"a":{"method":"roots/list"}}}}}"#, vec!["roots/list"]),
            (r#"{"method":"notifications/tasks","params":{"inputRequests":{"a":{"method":"roots/list"}}}}"#, vec!["roots/list"]),
            (
                r#"{"id":1,"error":{"code":-32042,"data":{"elicitations":[{"mode":"url","url":"http://x"},{"url":"http://y","mode":"url"}]}}}"#,
                vec!["elicitation/create", "elicitation/create"],
            ),
            (r#"{"id":1,"error":{"code":1,"message":"m","data":{"x":[]}}}"#, vec![]),
            ("7", vec![]),
        ] {
            assert_eq!(methods(text), asked, "{text}");
        }
    }

    #[test]
    fn what_two_clients_could_read_differently_is_unclear() {
        for text in [
            r#"{"id":1,"method":"ping","method":"roots/list"}"#,
            r#"{"id":1,"method":"ping","Method":"roots/list"}"#,
            r#"{"id":1,"id":2,"method":"roots/list"}"#,
            r#"{"id":1,"method":"roots/list","result":{}}"#,
            r#"{"id":1,"method":7}"#,
            r#"{"id":true,"method":"sampling/createMessage"}"#,
            r#"{"id":[1],"method":"notifications/resources/updated","params":{"uri":"a:b"}}"#,
            r#"{"id":5,"method":"notifications/resources/updated","params":{"uri":"a:b"}}"#,
            r#"{"id":1,"result":{"inputRequests":[{"method":"roots/list"}]}}"#,
            r#"{"id":1,"error":{"code":-32042,"data":{"elicitations":[{"url":"http://x"}]}}}"#,
            r#"{"id":1,"error":{"code":-32042,"data":{"elicitations":[{"mode":"form","mode":"url"}]}}}"#,
            r#"{"id":1,"method":"Sampling/CreateMessage"}"#,
            r#"{"method":"notifications/Resources/updated","params":{"uri":"a:b"}}"#,
            r#"{"id":1,"result":{"inputRequests":{"a":{"method":"ROOTS/list"}}}}"#,
            r#"{"id":1,"result":{"inputRequests":{},"inputrequests":{"a":{"method":"roots/list"}}}}"#,
            r#"{"id":1,"result":{"inputRequests":{"a":{"method":"ping","method":"roots/list"}}}}"#,
            r#"{"method":"notifications/resources/updated","params":{"uri":"a:b","URI":"c:d"}}"#,
        ] {
            assert_eq!(one(text), Err(UnclearMessage::TwoWays), "{text}");
        }
        assert!(matches!(one(r#"{"id":1,"method":"roots/list""#), Err(UnclearMessage::Json(_))));
        let many = vec![r#""a":{"method":"roots/list"}"#; MOST_ASKS + 1].join(",");
        let many = format!(r#"{{"id":1,"result":{{"inputRequests":{{{many}}}}}}}"#);
        assert_eq!(one(&many), Err(UnclearMessage::Many));
    }

    #[test]
    fn what_is_denied_is_cut_out_and_every_other_byte_stays() {
        let without = |text: &str, stays: &[bool]| match one(text).unwrap() {
            ServerMessage::Answer { input, .. } => match input.without(text.as_bytes(), stays) {
                Filtered::Edited(edited) => String::from_utf8(edited).unwrap(),
                Filtered::Same => text.to_owned(),
            },
            other => panic!("{other:?}"),
        };
        let text = r#"{"id":1,"result":{"inputRequests": {"a" : {"method":"x"} , "b":{"method":"y"},"c":{"method":"z"}}, "requestState":"s"}}"#;
        for (stays, left) in [
            ([true, true, true], r#"{"a" : {"method":"x"} , "b":{"method":"y"},"c":{"method":"z"}}"#),
            ([false, true, true], r#"{"b":{"method":"y"},"c":{"method":"z"}}"#),
            ([true, false, true], r#"{"a" : {"method":"x"} , "c":{"method":"z"}}"#),
            ([true, true, false], r#"{"a" : {"method":"x"} , "b":{"method":"y"}}"#),
            ([false, false, true], r#"{"c":{"method":"z"}}"#),
            ([true, false, false], r#"{"a" : {"method":"x"}}"#),
            ([false, false, false], "{}"),
        ] {
            let left = format!(r#"{{"id":1,"result":{{"inputRequests": {left}, "requestState":"s"}}}}"#);
            assert_eq!(without(text, &stays), left, "{stays:?}");
        }
        let text = r#"{"id":1,"error":{"data":{"elicitations":[{"mode":"url","url":1},{"mode":"url","url":2}]}}}"#;
        assert_eq!(without(text, &[false, true]), r#"{"id":1,"error":{"data":{"elicitations":[{"mode":"url","url":2}]}}}"#);
    }

    #[test]
    fn the_task_of_an_answer_is_found_in_both_eras() {
        let task = |text| match one(text).unwrap() {
            ServerMessage::Answer { task, .. } => task.map(Cow::into_owned),
            _ => None,
        };
        assert_eq!(task(r#"{"id":1,"result":{"task":{"taskId":"t1","status":"working"}}}"#).as_deref(), Some("t1"));
        assert_eq!(task(r#"{"id":1,"result":{"resultType":"task","taskId":"t2"}}"#).as_deref(), Some("t2"));
        assert_eq!(task(r#"{"id":1,"result":{"structuredContent":{"taskId":"t3"}}}"#), None);
    }

    #[test]
    fn a_batch_is_read_one_by_one() {
        let read = read(br#"[{"id":1,"result":{}},{"id":2,"method":"roots/list"}]"#).unwrap();
        assert_eq!(read.len(), 2);
        assert!(matches!(read[1], ServerMessage::Request { .. }));
    }
}
