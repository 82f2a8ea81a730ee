//! An event that is too large to hold: what must not pass unread is looked for as it passes.

use super::{
    endpoint::{EndpointLine, other_break},
    known_keys::{KeyFinder, KnownKeys},
};

/// The state of an event that passes without being held.
#[derive(Debug, Default)]
pub struct Passing {
    /// Looks for the keys of lists.
    pub keys: KeyFinder,
    /// The line that goes on, to clients that end lines as the specification does, and to others.
    pub line: EndpointLine,
    other: EndpointLine,
    /// Up to two bytes that may begin a character at which other clients end a line.
    begun: [u8; 2],
    /// True once something of the line has come.
    pub inside: bool,
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
