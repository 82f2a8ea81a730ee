//! An event that is too large to hold: what must not pass unread is looked for as it passes.

use super::{
    endpoint::{EndpointLine, other_break},
    known_keys::{KeyFinder, KnownKeys},
};
use crate::mcp::ask_finder::AskFinder;

/// The state of an event that passes without being held.
#[derive(Debug, Default)]
pub struct Passing {
    /// Looks for keys that must not pass.
    pub keys: KeyFinder,
    /// The line that goes on, to clients that end lines as the specification does, and to others.
    pub line: EndpointLine,
    other: EndpointLine,
    /// Up to two bytes that may begin a character at which other clients end a line.
    begun: [u8; 2],
    /// True once something of the line has come.
    pub inside: bool,
    /// Counts what has come of the event's data, and looks for what the server asks for in it.
    pub data: DataCounter,
}

/// Counts the bytes of an event's data, which comes in pieces, and looks for what the server asks for in it: in the message that the data
/// is, and in lines of which only some clients make data.
#[derive(Debug, Default)]
pub struct DataCounter {
    line: DataLine,
    lines: u64,
    bytes: u64,
    message: AskFinder,
    others: KeyFinder,
    asks: bool,
}

/// Where a line of an event stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DataLine {
    /// At its beginning.
    #[default]
    Start,
    /// After so many letters of `data:`.
    Name(usize),
    /// Behind the colon, where one blank may stand.
    Blank,
    /// In the value.
    Value,
    /// It is no line of data.
    Other,
}

impl DataCounter {
    /// Takes a piece of the event.
    pub fn feed(&mut self, mut piece: &[u8]) {
        const NAME: &[u8] = b"data:";
        while let Some((&byte, rest)) = piece.split_first() {
            if matches!(self.line, DataLine::Value | DataLine::Other) {
                let end = memchr::memchr2(b'\n', b'\r', piece).unwrap_or(piece.len());
                let text = piece.get(..end).unwrap_or_default();
                if self.line == DataLine::Value {
                    self.bytes += end as u64;
                    self.asks |= self.message.push(text);
                } else {
                    self.asks |= self.others.feed(text).any_of(KnownKeys::ASKS);
                }
                if end < piece.len() {
                    // The lines of data are one text, with a line's end between them.
                    self.asks |= self.line == DataLine::Value && self.message.push(b"\n");
                    self.line = DataLine::Start;
                }
                piece = piece.get(end + 1..).unwrap_or_default();
                continue;
            }
            let at = if let DataLine::Name(at) = self.line { at } else { 0 };
            self.line = match (self.line, byte) {
                (_, b'\n' | b'\r') => DataLine::Start,
                (DataLine::Blank, b' ') => DataLine::Value,
                (DataLine::Blank, _) => {
                    self.line = DataLine::Value;
                    continue;
                }
                _ if NAME.get(at) != Some(&byte) => DataLine::Other,
                _ if at + 1 == NAME.len() => {
                    self.lines += 1;
                    DataLine::Blank
                }
                _ => DataLine::Name(at + 1),
            };
            piece = rest;
        }
    }

    /// Returns true where the server asks for something in what has come.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The bytes of the data so far, with those that join its lines.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.lines.saturating_sub(1)
    }
}

impl Passing {
    /// Takes a part of a line. Returns whether it names an endpoint, and the keys that end in it.
    pub fn feed(&mut self, part: &[u8]) -> (bool, KnownKeys) {
        let mut endpoint = self.line.feed(part);
        for byte in part {
            let [first, second] = self.begun;
            let breaks = matches!(byte, b'\n' | b'\r')
                || other_break(&[*byte, 0, 0])
                || (second == 0xc2 && *byte == 0x85)
                || (first == 0xe2 && second == 0x80 && matches!(byte, 0xa8 | 0xa9));
            self.begun = [second, *byte];
            if breaks {
                self.other = EndpointLine::Before;
            } else if self.other != EndpointLine::Other && self.other != EndpointLine::Data {
                endpoint |= self.other.feed(&[*byte]);
            }
        }
        (endpoint, self.keys.feed(part))
    }

    /// Returns true in a line of data, to some client.
    pub fn is_data(&self) -> bool {
        self.line == EndpointLine::Data || self.other == EndpointLine::Data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_data_are_those_that_a_client_reads_however_they_come() {
        for (event, bytes) in [
            ("data: abc\nid: 7\ndata:de\r\ndata:  f\n", 9),
            ("data:\n", 0),
            ("data\ndatas: x\n:data: y\n data: z\n", 0),
            ("event: m\ndata: abc", 3),
        ] {
            for piece in 1..=event.len() {
                let mut counter = DataCounter::default();
                event.as_bytes().chunks(piece).for_each(|part| counter.feed(part));
                assert_eq!(counter.bytes(), bytes, "{event:?} {piece}");
            }
        }
    }
}
