//! Finds which requests a server answers, in a message or in a stream of events that comes in pieces of any size.

use memchr::memchr2;

use super::{
    id::{LONGEST_ID, RequestId},
    json_pieces::{JsonLexer, JsonParts, single_value},
    sse::lines::MARK,
};

/// Finds the answers in what a server says, in pieces of any size and without holding more than an id. Also reads what no
/// strict parser reads: an answer that is too large, stands in a batch, has a byte-order mark or breaks off is the
/// end of its request all the same.
#[derive(Debug, Default)]
pub struct AnswerFinder {
    lexer: JsonLexer,
    reader: AnswerReader,
}

/// Reads what stands in a message.
#[derive(Debug, Default)]
struct AnswerReader {
    /// The number of open brackets.
    depth: usize,
    /// True where the outermost bracket is that of a batch.
    batch: bool,
    /// True where the text is no message.
    junk: bool,
    /// The bytes of a byte-order mark that were seen.
    mark: usize,
    /// The message that is open.
    message: Option<OpenMessage>,
    /// The key or id that is being read.
    reading: Reading,
    text: Vec<u8>,
}

/// An answer reader and whom it tells of the ids of answers.
struct AnswerParts<'a, F> {
    reader: &'a mut AnswerReader,
    answered: &'a mut F,
}

/// The parts of a message that were read so far.
#[derive(Debug, Default)]
struct OpenMessage {
    id: Option<RequestId>,
    answer: bool,
    request: bool,
    comes: Comes,
}

/// The part of a message that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Comes {
    #[default]
    Key,
    Id,
    /// A value that does not decide.
    Value,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Nothing,
    Key,
    Id,
}

/// The longest id as a server may write it, with every character as an escape, in bytes.
const LONGEST_WRITTEN: usize = 6 * LONGEST_ID;

/// The same of a key that decides.
const LONGEST_KEY: usize = 2 + 6 * "result".len();

impl AnswerFinder {
    /// Takes a piece of a message. `answered` is told the id of each answer that ends in it.
    pub fn push(&mut self, piece: &[u8], answered: &mut impl FnMut(RequestId)) {
        if !self.reader.junk {
            self.lexer.push(piece, &mut AnswerParts { reader: &mut self.reader, answered });
        }
    }

    /// Takes the end of a message, and is ready for the next.
    pub fn finish(&mut self, answered: &mut impl FnMut(RequestId)) {
        self.reader.end_of_token();
        self.reader.end_of_message(answered);
        *self = Self {
            reader: AnswerReader { text: std::mem::take(&mut self.reader.text), ..AnswerReader::default() },
            ..Self::default()
        };
    }
}

impl<F: FnMut(RequestId)> JsonParts for AnswerParts<'_, F> {
    fn string(&mut self, part: &[u8]) {
        self.reader.read(part);
    }

    fn end_of_string(&mut self) {
        self.reader.end_of_token();
    }

    fn outside(&mut self, byte: u8) -> bool {
        self.reader.outside(byte, self.answered);
        !self.reader.junk
    }
}

impl AnswerReader {
    /// Takes a byte that is outside of strings, or the opening quote of one.
    fn outside(&mut self, byte: u8, answered: &mut impl FnMut(RequestId)) {
        let here = self.depth == 1 + usize::from(self.batch);
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => self.end_of_token(),
            b'"' if self.depth == 0 => self.junk = true,
            b'"' => {
                if let Some(message) = self.message.as_ref().filter(|_| here) {
                    self.begin(match message.comes {
                        Comes::Key => Reading::Key,
                        Comes::Id => Reading::Id,
                        Comes::Value => Reading::Nothing,
                    });
                    self.read(b"\"");
                }
            }
            b'{' | b'[' => {
                if byte == b'{' && self.depth == usize::from(self.batch) {
                    self.message = Some(OpenMessage::default());
                } else if self.depth == 0 {
                    self.batch = true;
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.end_of_token();
                if here {
                    self.end_of_message(answered);
                }
                self.depth = self.depth.saturating_sub(1);
                self.batch &= self.depth > 0;
            }
            b':' | b',' if here => {
                self.end_of_token();
                if let Some(message) = &mut self.message {
                    match (byte, message.comes) {
                        (b',', _) => message.comes = Comes::Key,
                        // Behind what is no key.
                        (_, Comes::Key) => message.comes = Comes::Value,
                        _ => {}
                    }
                }
            }
            _ if self.depth == 0 => {
                if MARK.get(self.mark) == Some(&byte) {
                    self.mark += 1;
                } else {
                    self.junk = true;
                }
            }
            _ => {
                if here && self.reading == Reading::Nothing && self.message.as_ref().is_some_and(|now| now.comes == Comes::Id) {
                    self.begin(Reading::Id);
                }
                self.read(&[byte]);
            }
        }
    }

    fn begin(&mut self, reading: Reading) {
        self.reading = reading;
        self.text.clear();
    }

    /// Takes a part of the key or id that is being read.
    fn read(&mut self, part: &[u8]) {
        let longest = match self.reading {
            Reading::Nothing => return,
            Reading::Key => LONGEST_KEY,
            Reading::Id => LONGEST_WRITTEN,
        };
        if self.text.len() + part.len() > longest {
            // It is none that is looked for. Of a key that is no longer known, the value is not the id.
            self.reading = Reading::Nothing;
            if let Some(message) = &mut self.message {
                message.comes = Comes::Value;
            }
            return;
        }
        self.text.extend_from_slice(part);
    }

    fn end_of_token(&mut self) {
        let reading = std::mem::take(&mut self.reading);
        let Some(message) = self.message.as_mut().filter(|_| reading != Reading::Nothing) else { return };
        let Ok(value) = single_value(&self.text) else { return };
        if reading == Reading::Id {
            message.id = RequestId::read(value);
            return;
        }
        let key = value.string().ok().flatten();
        message.comes = Comes::Value;
        if key.as_deref() == Some("id") {
            message.comes = Comes::Id;
            // Of two, the last counts.
            message.id = None;
        }
        message.answer |= matches!(key.as_deref(), Some("result" | "error"));
        message.request |= key.as_deref() == Some("method");
    }

    fn end_of_message(&mut self, answered: &mut impl FnMut(RequestId)) {
        if let Some(OpenMessage { id: Some(id), answer: true, request: false, .. }) = self.message.take() {
            answered(id);
        }
    }
}

/// Finds the answers in an event stream (WHATWG HTML, "Server-sent events"), whatever its events are called.
#[derive(Debug, Default)]
pub struct SseAnswerFinder {
    answers: AnswerFinder,
    /// The field's name so far.
    name: Vec<u8>,
    /// True once the first line is over. A byte-order mark may open it.
    started: bool,
    line: SseLine,
    /// The last byte was CR: an LF belongs to it.
    after_cr: bool,
}

/// The place in a line at which the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SseLine {
    #[default]
    Begins,
    Name,
    Data,
    Other,
}

impl SseAnswerFinder {
    /// Takes a piece of the stream. `answered` is told the id of each answer that ends in it.
    pub fn push(&mut self, mut piece: &[u8], answered: &mut impl FnMut(RequestId)) {
        while let Some((&byte, rest)) = piece.split_first() {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                piece = rest;
                continue;
            }
            if matches!(self.line, SseLine::Data | SseLine::Other) {
                let end = memchr2(b'\n', b'\r', piece).unwrap_or(piece.len());
                let (text, rest) = piece.split_at(end);
                if self.line == SseLine::Data {
                    self.answers.push(text, answered);
                }
                piece = rest;
                if !rest.is_empty() {
                    // The next line of an event's data goes on behind a line's end.
                    if self.line == SseLine::Data {
                        self.answers.push(b"\n", answered);
                    }
                    self.after_cr = rest.first() == Some(&b'\r');
                    piece = rest.get(1..).unwrap_or_default();
                    self.line = SseLine::Begins;
                }
                continue;
            }
            piece = rest;
            match byte {
                b'\n' | b'\r' => {
                    if self.line == SseLine::Begins {
                        self.answers.finish(answered);
                    }
                    self.after_cr = byte == b'\r';
                    self.line = SseLine::Begins;
                    self.started = true;
                    self.name.clear();
                }
                b':' => {
                    let marked = self.name.strip_prefix(MARK).filter(|_| !self.started);
                    self.line = if marked.unwrap_or(&self.name) == b"data" { SseLine::Data } else { SseLine::Other };
                    self.started = true;
                    self.name.clear();
                }
                _ => {
                    self.line = SseLine::Name;
                    self.name.push(byte);
                    if self.name.len() > MARK.len() + b"data".len() {
                        self.line = SseLine::Other;
                        self.started = true;
                        self.name.clear();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::{
        RegisterError,
        tests::{keep, raw},
    };

    /// The number of the requests 1, 2 and "x" that an answer leaves, pushed in pieces of any size.
    fn leaves(message: &[u8]) -> usize {
        let mut found = Vec::new();
        for piece in 1..=message.len().max(1) {
            let pending = keep(&["1", "2", "\"x\""]);
            let mut answers = AnswerFinder::default();
            message.chunks(piece).for_each(|piece| answers.push(piece, &mut |id| pending.answered(id)));
            answers.finish(&mut |id| pending.answered(id));
            found.push(pending.len());
        }
        assert!(found.iter().all(|left| left == &found[0]), "{}: {found:?}", String::from_utf8_lossy(message));
        found[0]
    }

    #[test]
    fn only_the_answer_to_a_request_ends_it() {
        for (answer, left) in [
            (r#"{"id":1,"result":{}}"#, 2),
            (r#" {"error":{},"id":1.0}"#, 2),
            (r#"{"i\u0064":"\u0078","\u0072esult":{}}"#, 2),
            (r#"{"id":1,"method":"ping"}"#, 3),
            (r#"{"id":1,"method":"ping","result":{}}"#, 3),
            (r#"{"id":"1","result":{}}"#, 3),
            (r#"{"id":1}"#, 3),
            (r#"{"id":null,"error":{}}"#, 3),
            (r#"{"id":3,"result":{"id":1,"result":{}}}"#, 3),
            (r#"{"id":3,"result":"{\"id\":1,\"result\":{}}"}"#, 3),
            (r#"{"id":[1],"result":{}}"#, 3),
            (r#"{"id":{"id":1},"result":{}}"#, 3),
            (r#"{"x":"id","y":1,"result":{}}"#, 3),
            (r#"{"jsonrpc":"2.0","params":{"id":1},"result":["id",1]}"#, 3),
            (r#""{\"id\":1,\"result\":{}}""#, 3),
            (r#"sent {"id":1,"result":{}}"#, 3),
            ("", 3),
            ("x", 3),
        ] {
            assert_eq!(leaves(answer.as_bytes()), left, "{answer}");
        }
    }

    #[test]
    fn an_answer_ends_its_request_however_it_is_written() {
        for (answer, left) in [
            (br#"[{"id":1,"result":{}},{"id":"x","error":{}}]"#.as_slice(), 1),
            (br#"[{"id":3,"result":[{"id":1,"result":{}}]}]"#, 3),
            (br#"[[{"id":1,"result":{}}]]"#, 3),
            (b"\xef\xbb\xbf{\"id\":1,\"result\":{}}", 2),
            (b"\xef\xbb\xbf [{\"id\":1,\"result\":{}}]", 2),
            (br#"{"id":1,"result":{"x":NaN,}}"#, 2),
            (b"{\"id\":1,\"result\":\"\xff\x00\n\"}", 2),
            (br#"{"result":{"x":[1,2,{"y":"z\"}"}]},"id":1"#, 2),
            (br#"{"id":1,"result":{"x":"#, 2),
            (br#"{"id":1 ,"result":{"x":["#, 2),
            (b"{\"id\":1,\"result\":{}}\n{\"id\":2,\"result\":{}}", 1),
        ] {
            assert_eq!(leaves(answer), left, "{}", String::from_utf8_lossy(answer));
        }
        let deep = format!(r#"{{"result":{}1{},"id":1}}"#, "[".repeat(1000), "]".repeat(1000));
        let pending = keep(&["1"]);
        pending.read_message(deep.as_bytes());
        assert_eq!(pending.len(), 0);
        // A key or an id of any length is passed over.
        let long = format!(r#"{{"{}":1,"id":"{}","id":1,"result":{{}}}}"#, "k".repeat(10_000), "i".repeat(10_000));
        let pending = keep(&["1"]);
        let mut answers = AnswerFinder::default();
        answers.push(long.as_bytes(), &mut |id| pending.answered(id));
        answers.finish(&mut |id| pending.answered(id));
        assert_eq!(pending.len(), 0);
        assert!(answers.reader.text.capacity() <= 2 * LONGEST_WRITTEN);
    }

    #[test]
    fn answers_are_found_in_a_stream_whatever_ends_its_lines_and_however_they_come() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = [
                "\u{feff}data: {\"id\":3,",
                "data:\"result\":{}}",
                "",
                ": {\"id\":1,\"result\":{}}",
                "id: 1",
                "retry: 1",
                "datas: {\"id\":1,\"result\":{}}",
                "",
                "event: message",
                "data: {\"id\":2,",
                "",
                "data: \"result\":{}}",
                "",
                "da ta: x",
                " data: x",
                "\u{feff}data: x",
                "data",
                "data: [{\"id\":\"x\",\"error\":{}}]",
                "",
                "",
            ]
            .join(end);
            for piece in 1..=stream.len() {
                let pending = keep(&["1", "2", "3", "\"x\""]);
                let mut events = SseAnswerFinder::default();
                stream.as_bytes().chunks(piece).for_each(|piece| events.push(piece, &mut |id| pending.answered(id)));
                // What is cut in two by the end of an event is no answer.
                for id in ["1", "2"] {
                    assert_eq!(pending.register(raw(id)).unwrap_err(), RegisterError::InUse, "{end:?} {piece}");
                }
                assert_eq!(pending.len(), 2, "{end:?} {piece}");
            }
        }
    }
}
