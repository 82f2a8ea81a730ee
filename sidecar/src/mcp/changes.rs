//! Notifications of clients that a server's lists have changed (MCP 2025-11-25, "List Changed Notification"; MCP 2026-07-28,
//! "Subscriptions").

use serde_json::Value;
use toolweir_engine::json::{JsonError, JsonKind, Reader};

use super::members::is_key;

/// The most subscriptions of one stream that are known.
const MOST: usize = 16;
/// The largest message that is looked at, in bytes.
const LARGEST: usize = 64 * 1024;

/// What servers declare changes of, as capabilities, subscriptions and notifications name it.
const DECLARED: [&str; 3] = ["tools", "prompts", "resources"];

/// The lists of whose changes somebody is told, as the server has agreed: of `tools`, `prompts` and `resources`, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToldLists([bool; DECLARED.len()]);

impl ToldLists {
    /// Returns true where somebody is told of some list.
    pub fn any(self) -> bool {
        self.0.contains(&true)
    }

    /// The messages that tell of changes, with these parameters.
    fn messages(self, params: &str) -> impl Iterator<Item = String> {
        let told = DECLARED.into_iter().zip(self.0).filter(|(_, told)| *told);
        told.map(move |(list, _)| format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"{params}}}"#))
    }
}

/// Who on a stream is told that lists have changed, as the server has agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The session that the stream is of: the answer to `initialize` declares what it is told.
    session: ToldLists,
    /// Subscriptions that were acknowledged, by their ids as JSON.
    subscriptions: Vec<(String, ToldLists)>,
}

impl Listeners {
    /// Those of a stream whose session is told this, as far as is known.
    pub fn of(session: ToldLists) -> Self {
        Self { session, ..Self::default() }
    }

    /// Takes note of a message of the server: an answer to `initialize`, the acknowledgement of a subscription, or its end.
    pub fn server_said(&mut self, message: &[u8]) {
        if message.len() > LARGEST {
            return;
        }
        // Each of the two spells it.
        if memchr::memmem::find(message, b"istChanged").is_none() {
            if !self.subscriptions.is_empty()
                && let Ok(Value::Object(answer)) = serde_json::from_slice(message)
                && !answer.contains_key("method")
                && let Some(id) = answer.get("id")
            {
                self.end(id);
            }
            return;
        }
        let Ok(message) = serde_json::from_slice::<Value>(message) else { return };
        let is_true = |path: &str| message.pointer(path) == Some(&Value::Bool(true));
        if message.pointer("/result/capabilities").is_some() {
            self.session = ToldLists(DECLARED.map(|list| is_true(&format!("/result/capabilities/{list}/listChanged"))));
        } else if message.get("method").is_some_and(|method| method == "notifications/subscriptions/acknowledged")
            && let Some(id) = message.pointer("/params/_meta/io.modelcontextprotocol~1subscriptionId")
        {
            self.end(id);
            let told = ToldLists(DECLARED.map(|list| is_true(&format!("/params/notifications/{list}ListChanged"))));
            if told.any() && self.subscriptions.len() < MOST {
                self.subscriptions.push((id.to_string(), told));
            }
        }
    }

    /// Takes note that a client cancels a request.
    pub fn client_said(&mut self, message: &[u8]) {
        if !self.subscriptions.is_empty()
            && message.len() <= LARGEST
            && let Ok(message) = serde_json::from_slice::<Value>(message)
            && let Some(id) = message.pointer("/params/requestId")
        {
            self.end(id);
        }
    }

    fn end(&mut self, id: &Value) {
        let id = id.to_string();
        self.subscriptions.retain(|(known, _)| *known != id);
    }

    /// The messages that tell them.
    pub fn messages(&self) -> impl Iterator<Item = String> {
        let of_subscription = |(id, told): &(String, ToldLists)| {
            let params = format!(r#","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}"#);
            told.messages(&params).collect::<Vec<_>>()
        };
        self.session.messages("").chain(self.subscriptions.iter().flat_map(of_subscription))
    }
}

/// The notification that a server's list of tools has changed.
const LIST_CHANGED: &str = "notifications/tools/list_changed";

/// Returns true where a message of a server says that its list of tools has changed, or a batch has such a message.
pub fn is_list_changed(message: &[u8]) -> bool {
    memchr::memmem::find(message, b"list_changed").is_some() && names_list_changed(message).unwrap_or(false)
}

fn names_list_changed(message: &[u8]) -> Result<bool, JsonError> {
    let (mut reader, mut named) = (Reader::new(message)?, false);
    let mut of_message = |reader: &mut Reader<'_>| {
        if reader.peek()? != JsonKind::Object {
            return reader.value().map(drop);
        }
        reader.object::<JsonError>(|reader, key| {
            let value = reader.value()?;
            if is_key(key, "method")? {
                named |= value.string()?.is_some_and(|method| method == LIST_CHANGED);
            }
            Ok(())
        })
    };
    if reader.peek()? == JsonKind::Array {
        reader.array::<JsonError>(of_message)?;
    } else {
        of_message(&mut reader)?;
    }
    Ok(named)
}

/// Looks for the answer to `initialize` in a body that passes, JSON or events, without holding it back.
#[derive(Debug, Default)]
pub struct Declaration {
    seen: Vec<u8>,
}

impl Declaration {
    /// Takes a piece. Gives what clients are told, once the answer has come and declares it.
    pub fn push(&mut self, piece: &[u8]) -> ToldLists {
        if self.seen.len() + piece.len() > LARGEST {
            return ToldLists::default();
        }
        self.seen.extend_from_slice(piece);
        let mut listeners = Listeners::default();
        listeners.server_said(&self.seen);
        for line in self.seen.split(|byte| matches!(byte, b'\n' | b'\r')) {
            if let Some(data) = line.strip_prefix(b"data:") {
                listeners.server_said(data);
            }
        }
        listeners.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_promised_it_is_told() {
        let told = |messages: &[&str]| {
            let mut listeners = Listeners::default();
            for message in messages {
                listeners.server_said(message.as_bytes());
            }
            listeners.messages().collect::<Vec<_>>()
        };
        let declares = r#"{"id":1,"result":{"capabilities":{"tools":{"listChanged":true}}}}"#;
        let plain = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        assert_eq!(told(&[declares]), [plain]);
        assert_eq!(told(&[declares, &declares.replace("true", "false")]), [""; 0]);
        let prompts = plain.replace("tools", "prompts");
        let others = r#"{"id":1,"result":{"capabilities":{"resources":{"listChanged":true,"subscribe":true},"tools":{},"prompts":{"listChanged":true}}}}"#;
        assert_eq!(told(&[declares, others]), [prompts.clone(), plain.replace("tools", "resources")]);
        for other in [
            r#"{"id":1,"result":{"capabilities":{"tasks":{"listChanged":true},"prompts":{"listChanged":"true"}}}}"#,
            r#"{"id":1,"result":{"content":[{"text":"\"listChanged\":true"}]}}"#,
        ] {
            assert_eq!(told(&[other]), [""; 0], "{other}");
        }
        let acknowledged = |id: &str, notifications: &str| {
            format!(
                r#"{{"method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}},"notifications":{notifications}}}}}"#
            )
        };
        let (one, two) =
            (acknowledged("7", r#"{"toolsListChanged":true}"#), acknowledged("\"b\"", r#"{"toolsListChanged":true}"#));
        let with_id = |id: &str| {
            plain.replace('}', &format!(r#","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}}}"#))
        };
        assert_eq!(told(&[&one, &two, &one]), [with_id("\"b\""), with_id("7")]);
        // Its answer ends a subscription.
        assert_eq!(told(&[&one, r#"{"id":7,"result":{}}"#, &two]), [with_id("\"b\"")]);
        let three = acknowledged("7", r#"{"promptsListChanged":true,"toolsListChanged":false,"resourcesListChanged":true}"#);
        assert_eq!(told(&[&one, &three]), ["prompts", "resources"].map(|list| with_id("7").replace("tools", list)));
        assert_eq!(told(&[&acknowledged("7", r#"{"resourceSubscriptions":["a:listChanged"]}"#)]), [""; 0]);
        let mut listeners = Listeners::default();
        listeners.server_said(one.as_bytes());
        listeners.client_said(br#"{"method":"notifications/cancelled","params":{"requestId":7}}"#);
        assert_eq!(listeners, Listeners::default());
    }

    #[test]
    fn a_change_of_the_list_is_known_by_its_method_alone() {
        for (message, is_it) in [
            (r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#, true),
            (r#"{"params":{"x":[{}]},"Method":"notifications\/tools\/list_changed"}"#, true),
            (r#"[{"id":1,"result":{}},{"method":"notifications/tools/list_changed"}]"#, true),
            (r#"{"method":"notifications/prompts/list_changed"}"#, false),
            (r#"{"id":1,"result":{"method":"notifications/tools/list_changed"}}"#, false),
            (r#"{"id":1,"result":{"content":[{"text":"notifications/tools/list_changed"}]}}"#, false),
            (r#"{"method":"notifications/tools/list_changed""#, false),
            ("", false),
        ] {
            assert_eq!(is_list_changed(message.as_bytes()), is_it, "{message}");
        }
    }

    #[test]
    fn a_declaration_is_found_in_json_and_in_events_in_pieces_of_any_size() {
        let answer = r#"{"id":1,"result":{"capabilities":{"tools":{"listChanged":true}}}}"#;
        for body in [answer.to_owned(), format!(": c\n\nid: 1\r\ndata: {answer}\r\n\r\n")] {
            for piece in 1..=body.len() {
                let mut declaration = Declaration::default();
                assert!(body.as_bytes().chunks(piece).any(|piece| declaration.push(piece).any()), "{piece}");
            }
        }
    }
}
