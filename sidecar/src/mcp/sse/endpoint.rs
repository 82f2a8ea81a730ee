//! Lines that name the endpoint of the HTTP+SSE transport, however clients read them.

use super::lines::is_blank;

/// The ways in which a line names an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The line names none.
    No,
    /// The line does, to clients that trim.
    Whole,
    /// A part of the line does, to clients that end lines at more characters.
    Part,
}

/// Returns how a line, without its end, names an endpoint.
pub fn names_endpoint(line: &[u8]) -> Naming {
    let mut reader = EndpointLine::default();
    if reader.feed(line) | reader.ends() {
        return Naming::Whole;
    }
    if !has_other_break(line) {
        return Naming::No;
    }
    let mut reader = EndpointLine::default();
    for (at, byte) in line.iter().enumerate() {
        if other_break(line.get(at..).unwrap_or_default()) {
            if reader.ends() {
                return Naming::Part;
            }
            reader = EndpointLine::default();
        } else if reader.feed(&[*byte]) {
            return Naming::Part;
        }
    }
    if reader.ends() { Naming::Part } else { Naming::No }
}

/// Returns true where a text begins with a character at which Python's `splitlines` ends a line and the specification does not.
pub fn other_break(text: &[u8]) -> bool {
    match text {
        [0x0b | 0x0c | 0x1c..=0x1e, ..] | [0xc2, 0x85, ..] => true,
        [0xe2, 0x80, last, ..] => matches!(last, 0xa8 | 0xa9),
        _ => false,
    }
}

/// Returns true where such a character stands in a text.
pub fn has_other_break(text: &[u8]) -> bool {
    let suspect = |byte: &u8| matches!(byte, 0x0b | 0x0c | 0x1c..=0x1e | 0xc2 | 0xe2);
    text.iter().enumerate().any(|(at, byte)| suspect(byte) && other_break(text.get(at..).unwrap_or_default()))
}

/// Reads one line, byte by byte, for an event's name that some client takes for `endpoint`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointLine {
    /// Before the field's name.
    #[default]
    Before,
    /// In the field's name, after this many letters; the second says whether it may be `event`, the third `data`.
    Field(u8, bool, bool),
    /// After the field's name, where only blanks may stand.
    After(bool),
    /// In the value, before the name.
    Value,
    /// In the value, after this many letters of the name.
    Name(u8),
    /// The name is there, and blanks may follow.
    Named,
    /// A line of data.
    Data,
    /// Of no interest.
    Other,
}

impl EndpointLine {
    /// Takes a part of the line. True where the line already names an endpoint, whatever blanks follow.
    pub fn feed(&mut self, part: &[u8]) -> bool {
        for byte in part {
            *self = match (*self, *byte) {
                (Self::Data | Self::Other, _) => return false,
                (_, b'\n' | b'\r') => return *self == Self::Named,
                (Self::Before, byte) if is_blank(byte) => Self::Before,
                (Self::Before, byte) => Self::Field(0, true, true).letter(byte),
                (Self::Field(5, true, _) | Self::After(true), b':') => Self::Value,
                (Self::Field(4, _, true) | Self::After(false), b':') => Self::Data,
                (Self::Field(5, true, _), byte) if is_blank(byte) => Self::After(true),
                (Self::Field(4, _, true), byte) if is_blank(byte) => Self::After(false),
                (after @ Self::After(_), byte) if is_blank(byte) => after,
                (field @ Self::Field(..), byte) => field.letter(byte),
                (Self::Value, byte) if is_blank(byte) => Self::Value,
                (Self::Value, byte) => Self::Name(0).letter(byte),
                (name @ Self::Name(_), byte) => name.letter(byte),
                (Self::Named, byte) if is_blank(byte) => Self::Named,
                (Self::After(_) | Self::Named, _) => Self::Other,
            };
        }
        *self == Self::Named
    }

    /// Returns true where the line names an endpoint if it ends here.
    pub fn ends(self) -> bool {
        self == Self::Named
    }

    fn letter(self, byte: u8) -> Self {
        let is = |word: &[u8], at: u8| word.get(usize::from(at)).is_some_and(|letter| letter.eq_ignore_ascii_case(&byte));
        match self {
            Self::Field(at, event, data) => {
                let (event, data) = (event && is(b"event", at), data && is(b"data", at));
                if event || data { Self::Field(at + 1, event, data) } else { Self::Other }
            }
            Self::Name(7) if is(b"endpoint", 7) => Self::Named,
            Self::Name(at) if is(b"endpoint", at) => Self::Name(at + 1),
            _ => Self::Other,
        }
    }
}
