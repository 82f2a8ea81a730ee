//! What a message of a client asks for, as policies see it.

use std::borrow::Cow;

use smallvec::SmallVec;
use toolweir_engine::{
    Operation,
    json::{JsonKind, Raw, Reader},
};

use super::request::{DecidingKeys, Refusal, Request, optional_text};

/// What a message of a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAsk<'a> {
    /// The base protocol, and lists, which show what may be used: it passes.
    Free,
    /// This is decided on.
    Operation(Operation<'a>),
    /// All of these must be such as may be used at all. It takes nothing of their limits.
    References(SmallVec<[Reference<'a>; 1]>),
}

/// What a message refers to without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A prompt.
    Prompt(Cow<'a, str>),
    /// A resource.
    Resource(Cow<'a, str>),
    /// A resource template (RFC 6570).
    Template(Cow<'a, str>),
    /// A task that was made before.
    Task(Cow<'a, str>),
}

/// The notifications of clients that belong to the base protocol. The last one is about a task that the client does for the server.
const BASE_NOTIFICATIONS: [&str; 5] = [
    "notifications/cancelled",
    "notifications/initialized",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/tasks/status",
];

/// The most resources and tasks to which one subscriptions/listen subscribes.
const MOST_SUBSCRIPTIONS: usize = 1024;

impl<'a> ClientAsk<'a> {
    /// Reads what a message asks for.
    ///
    /// # Errors
    /// What it refers to has no clear meaning.
    pub fn of(request: &'a Request<'a>) -> Result<Self, Refusal> {
        let params = &request.params;
        let (name, uri) = (params.name.as_deref().unwrap_or_default(), params.uri.as_deref().unwrap_or_default());
        let operation = match &*request.method {
            "tools/call" => Operation::tool(name),
            "prompts/get" => Operation::prompt(name),
            "resources/read" => Operation::resource(uri),
            // MCP 2026-07-28 has neither: where they name nothing, only the server can say so.
            method @ ("resources/subscribe" | "resources/unsubscribe") if params.uri.is_none() => Operation::other(method),
            method @ "resources/subscribe" => Operation::resource(uri).by(method),
            "resources/unsubscribe" => return Ok(Self::References([Reference::Resource(Cow::Borrowed(uri))].into())),
            "completion/complete" => match params.reference.map(reference).transpose()?.flatten() {
                Some(reference) => return Ok(Self::References([reference].into())),
                None => Operation::other(&request.method),
            },
            "subscriptions/listen" => {
                return Ok(Self::References(params.notifications.map(subscriptions).transpose()?.unwrap_or_default()));
            }
            "initialize"
            | "ping"
            | "server/discover"
            | "tools/list"
            | "prompts/list"
            | "resources/list"
            | "resources/templates/list"
            | "tasks/list" => return Ok(Self::Free),
            method if BASE_NOTIFICATIONS.contains(&method) && request.id.is_none() => return Ok(Self::Free),
            "tasks/get" | "tasks/result" | "tasks/cancel" | "tasks/update" => match params.task_id.as_deref() {
                Some(task) => return Ok(Self::References([Reference::Task(Cow::Borrowed(task))].into())),
                None => Operation::other(&request.method),
            },
            method => Operation::other(method),
        };
        Ok(Self::Operation(operation))
    }
}

/// Reads the reference of a completion (MCP 2025-11-25, Completion, "Reference Types"). None for one of a type that is not known.
fn reference(raw: Raw<'_>) -> Result<Option<Reference<'_>>, Refusal> {
    if raw.kind() != JsonKind::Object {
        return Ok(None);
    }
    let (mut kind, mut name, mut uri) = (None, None, None);
    let mut keys = DecidingKeys::new("`params.ref`", &["type", "name", "uri"]);
    Reader::new(raw.as_str().as_bytes())?.object::<Refusal>(|reader, key| {
        // Some servers make a text of what is none.
        match &*keys.add(key)? {
            "type" => kind = optional_text(reader, "`params.ref.type`")?,
            "name" => name = optional_text(reader, "`params.ref.name`")?,
            "uri" => uri = optional_text(reader, "`params.ref.uri`")?,
            _ => drop(reader.value()?),
        }
        Ok(())
    })?;
    Ok(match (kind.as_deref(), name, uri) {
        (Some("ref/prompt"), Some(name), _) => Some(Reference::Prompt(name)),
        (Some("ref/resource"), _, Some(uri)) if uri.contains('{') => Some(Reference::Template(uri)),
        (Some("ref/resource"), _, Some(uri)) => Some(Reference::Resource(uri)),
        _ => None,
    })
}

/// Reads the resources, and the tasks of the extension for these, to which a client subscribes (MCP 2026-07-28, Subscriptions).
fn subscriptions(raw: Raw<'_>) -> Result<SmallVec<[Reference<'_>; 1]>, Refusal> {
    let mut found = SmallVec::new();
    if raw.kind() != JsonKind::Object {
        return Ok(found);
    }
    let mut keys = DecidingKeys::new("`params.notifications`", &["resourceSubscriptions", "taskIds"]);
    Reader::new(raw.as_str().as_bytes())?.object::<Refusal>(|reader, key| {
        let (reference, what): (fn(_) -> _, _) = match &*keys.add(key)? {
            "resourceSubscriptions" => (Reference::Resource, "`params.notifications.resourceSubscriptions`"),
            "taskIds" => (Reference::Task, "`params.notifications.taskIds`"),
            _ => return reader.value().map(|_| ()).map_err(Into::into),
        };
        let unclear = || Refusal::Kind(what, "a list of at most 1024 texts");
        match reader.peek()? {
            JsonKind::Array => {}
            JsonKind::Null => return reader.value().map(|_| ()).map_err(Into::into),
            _ => return Err(unclear()),
        }
        reader.array::<Refusal>(|reader| {
            let text = reader.value()?.string()?.filter(|_| found.len() < MOST_SUBSCRIPTIONS).ok_or_else(unclear)?;
            found.push(reference(text));
            Ok(())
        })
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::request::{Message, parse};

    fn ask(text: &str) -> Result<String, String> {
        match parse(text.as_bytes()).map_err(|why| why.to_string())? {
            Message::Request(request) => ClientAsk::of(&request).map(|ask| format!("{ask:?}")).map_err(|why| why.to_string()),
            Message::Answer { .. } => Ok("answer".to_owned()),
        }
    }

    #[test]
    fn every_method_is_free_or_decided_on() {
        for (method, params, asked) in [
            ("ping", "{}", "Free"),
            ("resources/templates/list", "{}", "Free"),
            ("prompts/get", r#"{"name":"p"}"#, r#"Operation(Operation { kind: Prompt, name: "p", method: "prompts/get" })"#),
            (
                "resources/subscribe",
                r#"{"uri":"file:///a"}"#,
                r#"Operation(Operation { kind: Resource, name: "file:///a", method: "resources/subscribe" })"#,
            ),
            ("resources/unsubscribe", r#"{"uri":"file:///a"}"#, r#"References([Resource("file:///a")])"#),
            (
                "resources/subscribe",
                "{}",
                r#"Operation(Operation { kind: Other, name: "resources/subscribe", method: "resources/subscribe" })"#,
            ),
            (
                "resources/unsubscribe",
                r#"{"uri":null}"#,
                r#"Operation(Operation { kind: Other, name: "resources/unsubscribe", method: "resources/unsubscribe" })"#,
            ),
            ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"p","uri":null}}"#, r#"References([Prompt("p")])"#),
            ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"a:{b}"}}"#, r#"References([Template("a:{b}")])"#),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/other","name":"p"}}"#,
                r#"Operation(Operation { kind: Other, name: "completion/complete", method: "completion/complete" })"#,
            ),
            ("subscriptions/listen", r#"{"notifications":{"toolsListChanged":true}}"#, "References([])"),
            (
                "subscriptions/listen",
                r#"{"notifications":{"resourceSubscriptions":["a:b","c:d"]}}"#,
                r#"References([Resource("a:b"), Resource("c:d")])"#,
            ),
            ("tasks/get", r#"{"taskId":"t"}"#, r#"References([Task("t")])"#),
            (
                "logging/setLevel",
                r#"{"level":"info"}"#,
                r#"Operation(Operation { kind: Other, name: "logging/setLevel", method: "logging/setLevel" })"#,
            ),
            ("x/y", r#"{"uri":7,"taskId":[]}"#, r#"Operation(Operation { kind: Other, name: "x/y", method: "x/y" })"#),
        ] {
            let message = format!(r#"{{"id":1,"method":"{method}","params":{params}}}"#);
            assert_eq!(ask(&message).as_deref(), Ok(asked), "{method}");
        }
        assert_eq!(ask(r#"{"method":"notifications/progress"}"#).as_deref(), Ok("Free"));
        assert!(ask(r#"{"id":1,"method":"notifications/progress"}"#).unwrap().starts_with("Operation(Operation { kind: Other"));
    }

    #[test]
    fn a_reference_that_two_readers_could_take_for_others_is_refused() {
        for (method, params, why) in [
            ("prompts/get", "{}", "a prompts/get needs `params.name`, a string"),
            ("resources/read", "{}", "a resources/read needs `params.uri`, a string"),
            ("resources/read", r#"{"uri":7}"#, "`params.uri` is not a string"),
            ("resources/subscribe", r#"{"uri":["file:///a"]}"#, "`params.uri` is not a string"),
            ("resources/unsubscribe", r#"{"uri":["file:///a"]}"#, "`params.uri` is not a string"),
            ("resources/subscribe", r#"{"uri":["file:///a"],"taskId":7}"#, "`params.uri` is not a string"),
            ("resources/subscribe", r#"["file:///a"]"#, "`params` is not an object"),
            ("subscriptions/listen", r#"[{"notifications":{}}]"#, "`params` is not an object"),
            ("tasks/cancel", r#"{"taskId":["t"],"uri":7}"#, "`params.taskId` is not a string"),
            ("tasks/cancel", r#"{"taskId":["t"]}"#, "`params.taskId` is not a string"),
            ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":["p"]}}"#, "`params.ref.name` is not a string"),
            ("prompts/get", r#"{"name":"a\u0007"}"#, "the prompt's name has a control character"),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/prompt","name":"a","name":"b"}}"#,
                "`params.ref` repeats the key `name`",
            ),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/prompt","name":"a","Name":"b"}}"#,
                "differs from `name` in case alone",
            ),
            (
                "subscriptions/listen",
                r#"{"notifications":{"resourceSubscriptions":"a:b"}}"#,
                "is not a list of at most 1024 texts",
            ),
            (
                "subscriptions/listen",
                r#"{"notifications":{"resourceSubscriptions":["a:b",7]}}"#,
                "is not a list of at most 1024 texts",
            ),
            (
                "subscriptions/listen",
                r#"{"notifications":{"resourceSubscriptions":[],"ResourceSubscriptions":["a:b"]}}"#,
                "differs from `resourceSubscriptions` in case alone",
            ),
        ] {
            let error = ask(&format!(r#"{{"id":1,"method":"{method}","params":{params}}}"#)).unwrap_err();
            assert!(error.contains(why), "{method} {params}: {error}");
        }
    }
}
