//! Finds where a server asks for something in a message that passes in pieces and is never held.

use super::{
    json_pieces::{JsonLexer, JsonParts},
    sse::{KnownKeys, known_keys},
};

/// Looks in a message, which comes in pieces of any size, for the keys by which a server asks for something: only where they stand in
/// a message, not in what a tool gives.
#[derive(Debug, Default)]
pub struct AskFinder {
    lexer: JsonLexer,
    reader: AskReader,
}

/// Reads what stands in a message.
#[derive(Debug, Default)]
struct AskReader {
    /// The number of open brackets.
    depth: usize,
    /// True where the outermost bracket is that of a batch.
    batch: bool,
    /// The string that was read last, with its quotes; empty where it is longer than any key that is looked for, or no key.
    text: Vec<u8>,
    /// True in a string that may still be one.
    inside: bool,
    found: bool,
}

/// The longest key that is looked for, with every character as an escape, in bytes.
const LONGEST: usize = 2 + 6 * "inputRequests".len();

impl AskFinder {
    /// Takes a piece of the message. Returns true once something is asked for in what has come.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        // A text with a NUL is one of another encoding to some clients.
        self.reader.found |= memchr::memchr(0, piece).is_some();
        self.lexer.push(piece, &mut self.reader);
        self.reader.found
    }
}

impl JsonParts for AskReader {
    fn string(&mut self, part: &[u8]) {
        if !self.inside {
            return;
        }
        if self.text.len() + part.len() > LONGEST {
            self.text.clear();
            self.inside = false;
            return;
        }
        self.text.extend_from_slice(part);
    }

    fn end_of_string(&mut self) {
        self.inside = false;
    }

    fn outside(&mut self, byte: u8) -> bool {
        match byte {
            b'"' => {
                self.text.clear();
                self.text.push(byte);
                self.inside = true;
                return !self.found;
            }
            b' ' | b'\t' | b'\r' | b'\n' => return !self.found,
            b':' => self.found |= self.asks(),
            b'{' | b'[' => {
                self.batch |= self.depth == 0 && byte == b'[';
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.batch &= self.depth > 0;
            }
            _ => {}
        }
        self.text.clear();
        !self.found
    }
}

impl AskReader {
    /// Returns true where the key that was read asks for something where it stands: in the message itself; in its `result` or `params`, or
    /// in a `task` there; in the `data` of its error.
    fn asks(&self) -> bool {
        let keys = || known_keys(&self.text);
        match self.depth - usize::from(self.batch) {
            1 => keys().any_of(KnownKeys::METHOD),
            2 => keys().any_of(KnownKeys::INPUT_REQUESTS),
            3 => keys().any_of(KnownKeys::INPUT_REQUESTS.and(KnownKeys::ELICITATIONS)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> bool {
        let found: Vec<bool> = (1..=text.len())
            .map(|piece| {
                let mut finder = AskFinder::default();
                text.as_bytes().chunks(piece).any(|part| finder.push(part))
            })
            .collect();
        assert!(found.iter().all(|one| *one == found[0]), "{text}");
        found[0]
    }

    #[test]
    fn what_is_asked_for_is_found_in_a_message_and_not_in_what_a_tool_gives() {
        for text in [
            r#"{"id":1,"method":"roots/list"}"#,
            r#"{"id":1 , "m\u0065THOD" : "roots/list"}"#,
            r#"[{"id":1,"result":{}},{"method":"x"}]"#,
            r#"{"id":1,"result":{"inputRequests":{}}}"#,
            r#"{"id":1,"result":{"task":{"InputRequests":{}}}}"#,
            r#"{"params":{"inputRequests":{}}}"#,
            r#"{"id":1,"error":{"data":{"elicitations":[]}}}"#,
            r#"[{"id":1,"error":{"data":{"elicitations":[]}}}]"#,
        ] {
            assert!(asks(text), "{text}");
        }
        for text in
            [
                r#"{"id":1,"result":{"content":[{"type":"text","text":"{\"method\":1}"}],"structuredContent":{"method":"GET"}}}"#,
                r#"{"id":1,"result":{"structuredContent":{"a":{"inputRequests":1},"elicitations":["method"]},"method":1}}"#
                    .replace("elicitations", "x")
                    .as_str(),
                r#"{"id":"method","result":{"a":"inputRequests"}}"#,
                r#"{"id":1,"result":{"taskId":"t"}}"#,
                "7",
            ]
        {
            assert!(!asks(text), "{text}");
        }
        let long = format!(r#"{{"{}method":1}}"#, "x".repeat(LONGEST));
        assert!(!asks(&long));
    }
}
