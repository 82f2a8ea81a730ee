//! Scans a message that is not taken for its id and for the form of its answer.
//!
//! A client knows an answer by its id, and most write the id first or last. So a message that is refused, or for which
//! there is no room, is scanned to its end in constant memory, whatever its length and its form.

use std::borrow::Cow;

use toolweir_engine::json::{JsonKind, same_but_for_case};

use super::{
    id::LONGEST_ID,
    json_pieces::{JsonLexer, JsonParts, single_value},
    request::{PROTOCOL_VERSION, Request},
};

/// The request that an answer of the sidecar must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyTo<'a> {
    /// Its id as the client wrote it; nothing where it has none, repeats it, it cannot be read, or what came is no request.
    pub id: Option<Cow<'a, str>>,
    /// True for a tools/call whose answer is a tool result. One of the legacy eras that asks for a task is not:
    /// a server without tasks answers it with an error, so clients know one there.
    pub takes_tool_result: bool,
    /// True for a request of MCP 2026-07-28 or later: it has a protocol version in `_meta`.
    pub modern: bool,
}

impl<'a> From<&Request<'a>> for ReplyTo<'a> {
    fn from(request: &Request<'a>) -> Self {
        Self {
            id: request.id.map(|id| Cow::Borrowed(id.as_str())),
            takes_tool_result: request.is_tool_call() && (request.is_modern() || !request.params.task),
            modern: request.is_modern(),
        }
    }
}

impl ReplyTo<'static> {
    /// The form of an answer that is given later. None for a notification.
    pub fn later(request: &Request<'_>) -> Option<Self> {
        let ReplyTo { id, takes_tool_result, modern } = ReplyTo::from(request);
        Some(Self { id: Some(Cow::Owned(id?.into_owned())), takes_tool_result, modern })
    }
}

/// The longest id as it is written, with every character as an escape, in bytes.
const LONGEST_WRITTEN_ID: usize = 2 + 6 * LONGEST_ID;
/// The same of the longest key that is looked for.
const LONGEST_KEY: usize = 2 + 6 * PROTOCOL_VERSION.len();
/// The same of the method that is looked for, and of words.
const LONGEST_WORD: usize = 2 + 6 * "tools/call".len();

/// Scans a message in pieces of any size.
#[derive(Debug, Default)]
pub struct Scan {
    lexer: JsonLexer,
    reader: MessageReader,
}

/// Reads what stands in a message.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a state of its own of a small automaton")]
struct MessageReader {
    /// True while a number or a word is being read.
    bare: bool,
    /// The part of a key, a text, a number or a word that was read.
    token: Vec<u8>,
    /// The most of it that is kept, in bytes; 0 where it is of no interest, or longer.
    keep: usize,
    /// The number of open brackets.
    depth: usize,
    /// The number of the outermost that are objects that are looked into: the message, its `params`, their `_meta`.
    known: usize,
    /// True where the innermost of these comes to a key, not to a value.
    at_key: bool,
    /// The key whose value comes there.
    key: KnownKey,
    /// True where the key or the value has come that is to come there.
    filled: bool,
    /// True once the message has ended.
    ended: bool,
    found: ScannedMessage,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether something was seen, whatever else was")]
struct ScannedMessage {
    id: Option<String>,
    /// The times that an id stands there, in whatever case.
    ids: usize,
    /// True where something stands there that is no message, or more than one.
    strange: bool,
    /// True where it has a method, as a request has.
    method: bool,
    /// True where it has a result or an error. Its id is then that of a request of the server.
    answer: bool,
    tool_call: bool,
    task: bool,
    modern: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum KnownKey {
    Id,
    Method,
    Params,
    Task,
    Meta,
    Version,
    #[default]
    Other,
}

impl Scan {
    /// Scans a message that is there in one piece.
    pub fn of(message: &[u8]) -> ReplyTo<'static> {
        let mut scan = Self::default();
        scan.push(message);
        scan.finish()
    }

    /// Takes a piece of the message.
    pub fn push(&mut self, piece: &[u8]) {
        self.lexer.push(piece, &mut self.reader);
    }

    /// Takes the end of the message.
    pub fn finish(self) -> ReplyTo<'static> {
        // A number that nothing ends may go on.
        let ScannedMessage { id, ids, strange, method, answer, tool_call, task, modern } = self.reader.found;
        ReplyTo {
            id: id.filter(|_| ids == 1 && method && !answer && !strange).map(Cow::Owned),
            takes_tool_result: tool_call && (modern || !task),
            modern,
        }
    }
}

impl JsonParts for MessageReader {
    fn string(&mut self, part: &[u8]) {
        self.read(part);
    }

    fn end_of_string(&mut self) {
        self.end_of_token();
    }

    fn outside(&mut self, byte: u8) -> bool {
        let here = self.depth == self.known;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => self.end_of_bare(),
            b'"' => {
                self.end_of_bare();
                self.begin();
                self.read(b"\"");
            }
            b'{' | b'[' => {
                self.end_of_bare();
                self.open(byte == b'{');
            }
            b'}' | b']' => {
                self.end_of_bare();
                self.depth = self.depth.saturating_sub(1);
                if self.known > self.depth {
                    (self.known, self.at_key, self.key, self.filled) = (self.depth, false, KnownKey::Other, true);
                }
                self.ended |= self.depth == 0;
            }
            b':' | b',' => {
                self.end_of_bare();
                if here {
                    (self.at_key, self.filled) = (byte == b',', false);
                }
                if here && byte == b',' {
                    self.key = KnownKey::Other;
                }
            }
            _ => {
                if !std::mem::replace(&mut self.bare, true) {
                    self.begin();
                }
                self.read(&[byte]);
            }
        }
        true
    }
}

impl MessageReader {
    /// Takes the beginning of an object or array.
    fn open(&mut self, object: bool) {
        if self.depth == 0 {
            self.found.strange |= self.ended || !object;
            (self.known, self.at_key) = (1, true);
        } else if self.depth == self.known {
            self.fill();
            match (self.key, self.depth) {
                _ if self.at_key => {}
                (KnownKey::Params, 1) | (KnownKey::Meta, 2) if object => {
                    (self.known, self.at_key, self.filled) = (self.known + 1, true, false);
                }
                (KnownKey::Task, _) => self.found.task = true,
                _ => {}
            }
        }
        self.depth += 1;
    }

    /// Takes the beginning of a text, a number or a word.
    fn begin(&mut self) {
        self.token.clear();
        self.found.strange |= self.depth == 0;
        self.keep = match self.key {
            _ if self.depth == 0 || self.depth != self.known => 0,
            _ if self.at_key => LONGEST_KEY,
            KnownKey::Id => LONGEST_WRITTEN_ID,
            KnownKey::Method | KnownKey::Task | KnownKey::Version => LONGEST_WORD,
            KnownKey::Params | KnownKey::Meta | KnownKey::Other => 0,
        };
    }

    /// Takes a key or value of the innermost object that is looked into. A second one in its place is none of JSON.
    fn fill(&mut self) {
        self.found.strange |= std::mem::replace(&mut self.filled, true);
    }

    fn read(&mut self, part: &[u8]) {
        if self.token.len() + part.len() <= self.keep {
            self.token.extend_from_slice(part);
        } else {
            self.keep = 0;
        }
    }

    fn end_of_bare(&mut self) {
        if std::mem::take(&mut self.bare) {
            self.end_of_token();
        }
    }

    fn end_of_token(&mut self) {
        if self.depth != self.known {
            return;
        }
        self.fill();
        let whole = if self.keep > 0 { single_value(&self.token).ok() } else { None };
        if self.at_key {
            let name = whole.and_then(|value| value.string().ok().flatten()).unwrap_or_default();
            self.found.ids += usize::from(self.depth == 1 && (name == "id" || same_but_for_case("id", &name)));
            self.found.method |= self.depth == 1 && name == "method";
            self.found.answer |= self.depth == 1 && matches!(&*name, "result" | "error");
            self.key = match (self.depth, &*name) {
                (1, "id") => KnownKey::Id,
                (1, "method") => KnownKey::Method,
                (1, "params") => KnownKey::Params,
                (2, "task") => KnownKey::Task,
                (2, "_meta") => KnownKey::Meta,
                (3, PROTOCOL_VERSION) => KnownKey::Version,
                _ => KnownKey::Other,
            };
            return;
        }
        match self.key {
            // One that has half of a surrogate pair is not written again.
            KnownKey::Id => {
                let id = whole.filter(|id| matches!(id.kind(), JsonKind::String | JsonKind::Number) && id.string().is_ok());
                self.found.id = id.map(|id| id.as_str().to_owned());
            }
            KnownKey::Method => {
                let named = whole.and_then(|value| value.string().ok().flatten());
                self.found.tool_call |= named.as_deref() == Some("tools/call");
            }
            KnownKey::Task => self.found.task |= whole.is_none_or(|value| value.kind() != JsonKind::Null),
            KnownKey::Version => self.found.modern |= whole.is_none_or(|value| value.kind() == JsonKind::String),
            KnownKey::Params | KnownKey::Meta | KnownKey::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mcp::request::{Message, parse};

    /// The scan of a message, in pieces of any size.
    fn told(message: &str) -> ReplyTo<'static> {
        let whole = Scan::of(message.as_bytes());
        for size in 1..message.len() {
            let mut scan = Scan::default();
            message.as_bytes().chunks(size).for_each(|piece| scan.push(piece));
            assert_eq!(scan.finish(), whole, "{message} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        for (message, id) in [
            (r#"{"jsonrpc":"2.0","id":7.0,"method":"ping"}"#, "7.0"),
            (r#"{"method":"ping","params":{"id":1,"x":[{"id":2}]},"id":"a\"7"}"#, r#""a\"7""#),
            (r#"{"method":"ping" , "id" : -1e3 }"#, "-1e3"),
            (r#"{"i\u0064":1,"method":"a","method":"b"}"#, "1"),
            // Not strict JSON, or cut off behind the id.
            (r#"{"id":1,"method":"ping",}"#, "1"),
            ("{\"id\":1,\"method\":\"\u{0}\",", "1"),
            (r#"{"id":1,"method":NaN}"#, "1"),
        ] {
            assert_eq!(told(message).id.as_deref(), Some(id), "{message}");
        }
    }

    #[test]
    fn an_id_that_repeats_or_that_cannot_be_one_is_none() {
        for message in [
            r#"{"method":"a","id":1,"id":1}"#,
            r#"{"method":"a","id":1,"ID":2}"#,
            r#"{"method":"a","ID":2}"#,
            r#"{"method":"a","id":1,"\u0069d":2}"#,
            r#"{"method":"a","id":null}"#,
            r#"{"method":"a","id":true}"#,
            r#"{"method":"a","id":{"id":1}}"#,
            r#"{"method":"a","id":[1]}"#,
            r#"{"method":"a","id":"\ud800"}"#,
            r#"{"method":"a","id":01}"#,
            r#"{"method":"a","id":"#,
            r#"[{"method":"a","id":1}]"#,
            r#"{"method":"a","id":1}{"method":"a","id":1}"#,
            r#"{"method":"a","id":1} x"#,
            r#"x{"method":"a","id":1}"#,
            r#"{"params":{"method":"a","id":1}}"#,
            // Cut off inside: it may go on. A key or a value too many.
            r#"{"method":"a","id":12"#,
            r#"{"method":"a","id":5 6}"#,
            r#"{"method":"a","id":5 "6"}"#,
            r#"{"method":"a","params""id":94,"x":1}"#,
            r#"{"method":"a","params"{}"id":94}"#,
            // An answer, or what could be one.
            r#"{"id":1,"result":{}}"#,
            r#"{"method":"a","id":1,"error":{}}"#,
            r#"{"id":1}"#,
            r#""id""#,
            r#"{"method":"id",1:2}"#,
            "",
        ] {
            assert_eq!(told(message).id, None, "{message}");
        }
        let long = format!(r#"{{"method":"a","id":"{}"}}"#, "x".repeat(LONGEST_WRITTEN_ID));
        assert_eq!(Scan::of(long.as_bytes()).id, None);
    }

    #[test]
    fn what_was_asked_and_its_era_are_told_as_a_strict_reader_tells_them() {
        for params in [
            r#"{"name":"pay"}"#,
            r#"{"name":"pay","task":{}}"#,
            r#"{"name":"pay","task":null}"#,
            r#"{"name":"pay","task":1}"#,
            r#"{"name":"pay","arguments":{"task":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
            r#"{"name":"pay","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#,
            r#"{"name":"pay","task":{},"_meta":{"x":{"io.modelcontextprotocol/protocolVersion":""},"io.modelcontextprotocol\/protocolVersion":"2026-07-28"}}"#,
            r#"{"name":"pay","_meta":{"io.modelcontextprotocol/protocolVersion":null}}"#,
            r#"{"name":"pay","_meta":[]}"#,
            "[]",
        ] {
            for method in ["tools/call", "tools\\/call", "tools/list"] {
                let message = format!(r#"{{"params":{params},"method":"{method}","id":1}}"#);
                let Ok(Message::Request(request)) = parse(message.as_bytes()) else {
                    assert!(params == "[]" && method != "tools/list", "{message}");
                    continue;
                };
                assert_eq!(told(&message), ReplyTo::from(&*request), "{message}");
            }
        }
        let long = format!(r#"{{"params":{{"_meta":{{"{PROTOCOL_VERSION}":"{}"}}}}}}"#, "2".repeat(1000));
        assert!(Scan::of(long.as_bytes()).modern);
    }

    #[test]
    fn a_message_of_any_length_takes_no_more_memory() {
        let mut scan = Scan::default();
        scan.push(br#"{"method":"tools/call","params":{"arguments":{"x":""#);
        (0..1000).for_each(|_| scan.push(&[b'y'; 10_000]));
        scan.push(format!(r#""}}}},"{}":1,"id":3}}"#, "k".repeat(100_000)).as_bytes());
        assert!(scan.reader.token.capacity() <= 2 * LONGEST_WRITTEN_ID);
        assert_eq!(scan.finish().id.as_deref(), Some("3"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_hold_more_than_an_id(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..64)) {
            let mut scan = Scan::default();
            for piece in &pieces {
                scan.push(piece);
                prop_assert!(scan.reader.token.len() <= LONGEST_WRITTEN_ID);
            }
            scan.finish();
        }

        #[test]
        fn what_a_strict_reader_takes_is_told_the_same(text in r#"[\{\}\[\],:"a-z0-9 ]{0,40}"#) {
            let message = format!(r#"{{"jsonrpc":"2.0","id":4,"method":"ping","x":{text}}}"#);
            if let Ok(Message::Request(request)) = parse(message.as_bytes()) {
                prop_assert_eq!(Scan::of(message.as_bytes()), ReplyTo::from(&*request));
            }
        }
    }
}
