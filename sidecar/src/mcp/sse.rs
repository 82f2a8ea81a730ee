//! Event streams (WHATWG HTML, "Server-sent events"): passed on as they come, but for the events that must be changed.
//!
//! An event is held from its first byte to its end only on streams that can carry a tools/list result. Whatever is not
//! changed leaves as the bytes that came, `retry` included; comment lines leave at once.
//!
//! Clients read streams in more ways than the specification's: some trim names, some end lines at more characters, some take
//! the last event without its blank line. An event that tells where credentials go is known in all these ways, and passes
//! only where all mean the same. Each byte is looked at once, however small the pieces are in which it comes.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// What to do with an event that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes as it came.
    Pass,
    /// Its data becomes this.
    Replace(Vec<u8>),
}

/// Whether some client takes an event for the one that names the endpoint of the HTTP+SSE transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// None does.
    No,
    /// Those that do read the same in it. Replaced, it is written so that every client does.
    Yes,
    /// Some do and others not, or they read another place in it.
    Unclear,
}

/// An event that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its name, as the specification reads it.
    pub name: &'a [u8],
    /// Its data.
    pub data: &'a [u8],
    /// Whether it names the endpoint.
    pub endpoint: Endpoint,
}

/// Decides on an event.
pub type Decide<'a> = dyn FnMut(Event<'_>) -> Result<Verdict, SseError> + 'a;

/// Why a stream ends early. It was the server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event that would have to be read is larger than is held.
    #[error("an event that holds a list of tools, or names an endpoint, is larger than {0} bytes")]
    TooLarge(usize),
    /// An event that must be read cannot be.
    #[error("an event that holds a list of tools cannot be read")]
    Unreadable,
    /// Clients would read different endpoints, or some of them none.
    #[error("an event names an endpoint in a way that clients read differently")]
    UnclearEndpoint,
    /// The endpoint is of another origin.
    #[error("an event names an endpoint that is not of the server's origin")]
    ForeignEndpoint,
    /// There is no room to hold it.
    #[error("there is no room to hold an event")]
    NoRoom,
}

/// What may be in the events of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Everything: an event that cannot be decided on ends the stream. Those are the streams that a GET opens, and the
    /// answers to tools/list.
    All,
    /// An answer that is no event stream, and that a client may take for one. Nothing is held.
    Foreign,
}

/// Rewrites a stream, chunk by chunk.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says another thing of where the stream stands")]
pub struct Rewriter {
    most: usize,
    watch: Watch,
    /// The lines of the event that goes on, and the beginning of the next line.
    held: BytesMut,
    /// Where the line that goes on begins in `held`.
    line: usize,
    /// The held lines name an endpoint.
    endpoint: Endpoint,
    /// The rest of an event that is too large to hold passes, read byte by byte.
    passing: Option<Box<Passing>>,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    /// That line has left.
    cr_left: bool,
    /// The first line has ended. Before it stands a byte-order mark, if anywhere.
    started: bool,
    /// The first line has left: what is held does not begin with it.
    first_left: bool,
    /// How many bytes were looked at.
    work: usize,
}

const MARK: &[u8] = b"\xef\xbb\xbf";

impl Rewriter {
    /// A rewriter that holds events of up to `most` bytes.
    pub fn new(most: usize, watch: Watch) -> Self {
        Self {
            most,
            watch,
            held: BytesMut::new(),
            line: 0,
            endpoint: Endpoint::No,
            passing: (watch == Watch::Foreign).then(Box::default),
            after_cr: false,
            cr_left: false,
            started: false,
            first_left: false,
            work: 0,
        }
    }

    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// How much memory it holds them in.
    pub fn room(&self) -> usize {
        self.held.capacity()
    }

    /// How many bytes it has looked at: a small multiple of those that came.
    pub fn work(&self) -> usize {
        self.work
    }

    /// Whether the stream stands between two events, so that another may be put in. A comment is no event.
    pub fn between_events(&self) -> bool {
        self.watch == Watch::Foreign
            || self.passing.is_none() && (self.held.is_empty() || (self.line == 0 && self.held.first() == Some(&b':')))
    }

    /// Takes a chunk and gives what can leave now. `decide` sees each whole event.
    pub fn push(&mut self, chunk: &[u8], decide: &mut Decide<'_>) -> Result<Bytes, SseError> {
        let mut out = BytesMut::new();
        let mut rest = chunk;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                if self.cr_left {
                    out.extend_from_slice(b"\n");
                } else {
                    self.held.extend_from_slice(b"\n");
                    self.line = self.held.len();
                }
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let end = memchr::memchr2(b'\n', b'\r', rest);
            // CR LF is one end; where it comes in halves the line ends with the first, since a client acts on that.
            let length = |end: usize| end + if rest.get(end..).is_some_and(|rest| rest.starts_with(b"\r\n")) { 2 } else { 1 };
            let (part, later) = rest.split_at(end.map_or(rest.len(), length));
            rest = later;
            self.work += part.len();
            self.after_cr = part.last() == Some(&b'\r');
            if self.passing.is_some() {
                self.pass(part, &mut out)?;
            } else {
                self.held.extend_from_slice(part);
                if end.is_some() {
                    self.line_ended(decide, &mut out)?;
                }
                if self.held.len() > self.most {
                    self.overflow(&mut out)?;
                }
            }
            self.started |= end.is_some();
        }
        Ok(out.freeze())
    }

    /// The stream has ended: some clients take what is left for an event, though no blank line ends it.
    pub fn finish(&mut self, decide: &mut Decide<'_>) -> Result<Bytes, SseError> {
        let mut out = BytesMut::new();
        if self.passing.is_none() && !self.held.is_empty() {
            if self.line < self.held.len() {
                self.read_line();
            }
            self.event(decide, false, &mut out)?;
        }
        Ok(out.freeze())
    }

    /// The line that goes on, without its end and a byte-order mark.
    fn content(&self) -> &[u8] {
        let line = without_end(self.held.get(self.line..).unwrap_or_default());
        if self.started { line } else { line.strip_prefix(MARK).unwrap_or(line) }
    }

    /// Takes note of what a line of the event says.
    fn read_line(&mut self) {
        let found = match names_endpoint(self.content()) {
            Naming::No => return,
            Naming::Whole => Endpoint::Yes,
            Naming::Part => Endpoint::Unclear,
        };
        if self.endpoint != Endpoint::Unclear {
            self.endpoint = found;
        }
    }

    fn line_ended(&mut self, decide: &mut Decide<'_>, out: &mut BytesMut) -> Result<(), SseError> {
        let content = self.content();
        if content.is_empty() {
            self.cr_left = true;
            return self.event(decide, true, out);
        }
        if content.first() == Some(&b':') {
            // A comment does not wait for the event around it. One that holds more than a comment to some clients does not
            // pass to any.
            if self.watch == Watch::All && has_other_break(content) {
                if names_endpoint(content) != Naming::No {
                    return Err(SseError::UnclearEndpoint);
                }
                if spells_tools(content) {
                    return Err(SseError::Unreadable);
                }
            }
            out.extend_from_slice(self.held.get(self.line..).unwrap_or_default());
            self.held.truncate(self.line);
            self.first_left |= self.line == 0;
            self.cr_left = true;
            return Ok(());
        }
        self.read_line();
        self.cr_left = false;
        self.line = self.held.len();
        Ok(())
    }

    /// The event is larger than is held: what has come passes, if nothing in it needs to be read.
    fn overflow(&mut self, out: &mut BytesMut) -> Result<(), SseError> {
        let mut passing = Passing::default();
        if self.watch == Watch::All && self.endpoint != Endpoint::No {
            return Err(SseError::TooLarge(self.most));
        }
        let held = std::mem::take(&mut self.held);
        self.work += held.len();
        // Only the line that goes on can still name an endpoint; in all lines the key may stand.
        let (lines, line) = held.split_at(self.line);
        passing.inside = !line.is_empty();
        let tools = passing.spelling.feed(lines);
        let (endpoint, more) = passing.feed(line);
        if self.watch == Watch::All && (endpoint || tools || more) {
            return Err(SseError::TooLarge(self.most));
        }
        self.cr_left = true;
        self.line = 0;
        self.endpoint = Endpoint::No;
        out.extend_from_slice(&held);
        self.first_left = true;
        self.passing = Some(Box::new(passing));
        Ok(())
    }

    /// Passes a part of an event that is not held: up to the end of a line, that included, or less.
    fn pass(&mut self, part: &[u8], out: &mut BytesMut) -> Result<(), SseError> {
        let Some(passing) = &mut self.passing else { return Ok(()) };
        let (endpoint, tools) = passing.feed(part);
        match self.watch {
            Watch::All if endpoint || tools => return Err(SseError::TooLarge(self.most)),
            Watch::Foreign if endpoint => return Err(SseError::UnclearEndpoint),
            Watch::Foreign if tools && passing.is_data() => return Err(SseError::Unreadable),
            _ => {}
        }
        out.extend_from_slice(part);
        self.cr_left = true;
        let blank = without_end(part).is_empty() && !part.is_empty() && !passing.inside;
        passing.inside = without_end(part).len() == part.len();
        if blank && self.watch != Watch::Foreign {
            self.passing = None;
        } else if !passing.inside {
            passing.line = Line::default();
        }
        Ok(())
    }

    /// The event that is held has ended, with a blank line or with the stream.
    fn event(&mut self, decide: &mut Decide<'_>, ended: bool, out: &mut BytesMut) -> Result<(), SseError> {
        // Not split off: what is left of a large buffer would be kept.
        let event = std::mem::take(&mut self.held);
        self.work += event.len();
        self.line = 0;
        let naming = std::mem::replace(&mut self.endpoint, Endpoint::No);
        let marked = !std::mem::replace(&mut self.first_left, true);
        let bytes = if marked { event.strip_prefix(MARK).unwrap_or(&event) } else { &event[..] };
        let (mut name, mut data): (&[u8], Option<Cow<'_, [u8]>>) = (b"message", None);
        // A client that trims the names of fields finds other data.
        let (mut endpoint, mut odd) = (naming, false);
        for line in lines(bytes) {
            let (field, value) = field(line);
            if field == b"data" {
                data = Some(match data {
                    None => Cow::Borrowed(value),
                    Some(data) => {
                        let mut data = data.into_owned();
                        data.push(b'\n');
                        data.extend_from_slice(value);
                        Cow::Owned(data)
                    }
                });
            } else if field == b"event" {
                name = if value.is_empty() { b"message" } else { value };
            }
            // A client that takes no events may read JSON that is none of their data.
            if self.watch == Watch::All && field != b"data" && spells_tools(line) {
                return Err(SseError::Unreadable);
            }
            let lenient = trimmed(line.get(..field.len()).unwrap_or_default());
            odd |= field != b"data" && lenient.eq_ignore_ascii_case(b"data");
            // Of two names some clients take the first and some the last.
            if endpoint == Endpoint::Yes && lenient.eq_ignore_ascii_case(b"event") && names_endpoint(line) != Naming::Whole {
                endpoint = Endpoint::Unclear;
            }
        }
        if odd && endpoint == Endpoint::Yes {
            endpoint = Endpoint::Unclear;
        }
        if odd && self.watch == Watch::All && spells_tools(bytes) {
            return Err(SseError::Unreadable);
        }
        let verdict = match &data {
            Some(data) => decide(Event { name, data, endpoint })?,
            None if endpoint == Endpoint::Unclear => decide(Event { name, data: b"", endpoint })?,
            None => Verdict::Pass,
        };
        match verdict {
            Verdict::Pass if out.is_empty() => *out = event,
            Verdict::Pass => out.extend_from_slice(&event),
            Verdict::Replace(new) => replace(bytes, endpoint == Endpoint::Yes, &new, ended, out),
        }
        Ok(())
    }
}

/// Writes an event with other data. Every other line stays; the data goes where its first line stood.
fn replace(event: &[u8], endpoint: bool, new: &[u8], ended: bool, out: &mut BytesMut) {
    out.reserve(event.len().min(new.len() + 1024));
    if endpoint {
        out.extend_from_slice(b"event: endpoint\n");
    }
    let mut replaced = false;
    for line in lines(event) {
        let (field, _) = field(line);
        if field == b"data" {
            if !std::mem::replace(&mut replaced, true) {
                for line in new.split(|byte| matches!(byte, b'\n' | b'\r')) {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(line);
                    out.extend_from_slice(b"\n");
                }
            }
        } else if !(endpoint && trimmed(field).eq_ignore_ascii_case(b"event")) {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\n");
        }
    }
    if ended {
        out.extend_from_slice(b"\n");
    }
}

/// How a line names an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    No,
    /// The line does, to clients that trim.
    Whole,
    /// A part of the line does, to clients that end lines at more characters.
    Part,
}

fn names_endpoint(line: &[u8]) -> Naming {
    let mut reader = Line::default();
    if reader.feed(line) | reader.ends() {
        return Naming::Whole;
    }
    if !has_other_break(line) {
        return Naming::No;
    }
    let mut reader = Line::default();
    for (at, byte) in line.iter().enumerate() {
        if other_break(line.get(at..).unwrap_or_default()) {
            if reader.ends() {
                return Naming::Part;
            }
            reader = Line::default();
        } else if reader.feed(&[*byte]) {
            return Naming::Part;
        }
    }
    if reader.ends() { Naming::Part } else { Naming::No }
}

/// Whether a byte is white space, a control character or none of ASCII, such as a byte-order mark: what some client may trim.
fn is_blank(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f
}

fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

/// Whether here begins a character at which Python's `splitlines` ends a line and the specification does not.
fn other_break(text: &[u8]) -> bool {
    match text {
        [0x0b | 0x0c | 0x1c..=0x1e, ..] | [0xc2, 0x85, ..] => true,
        [0xe2, 0x80, last, ..] => matches!(last, 0xa8 | 0xa9),
        _ => false,
    }
}

fn has_other_break(text: &[u8]) -> bool {
    let suspect = |byte: &u8| matches!(byte, 0x0b | 0x0c | 0x1c..=0x1e | 0xc2 | 0xe2);
    text.iter().enumerate().any(|(at, byte)| suspect(byte) && other_break(text.get(at..).unwrap_or_default()))
}

/// Reads one line, byte by byte, for an event's name that some client takes for `endpoint`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
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

impl Line {
    /// Takes a part of the line. True where the line already names an endpoint, whatever blanks follow.
    fn feed(&mut self, part: &[u8]) -> bool {
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

    /// Whether the line names an endpoint if it ends here.
    fn ends(self) -> bool {
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

/// What is known of an event that passes without being held.
#[derive(Debug, Default)]
struct Passing {
    spelling: Spelling,
    /// The line that goes on, to clients that end lines as the specification does, and to others.
    line: Line,
    other: Line,
    /// Up to two bytes that may begin a character at which other clients end a line.
    begun: [u8; 2],
    /// Something of the line has come.
    inside: bool,
}

impl Passing {
    /// Takes a part of a line. Says whether it names an endpoint, and whether the key of a list stands in it.
    fn feed(&mut self, part: &[u8]) -> (bool, bool) {
        let mut endpoint = self.line.feed(part);
        for byte in part {
            let [first, second] = self.begun;
            let breaks = matches!(byte, b'\n' | b'\r')
                || other_break(&[*byte, 0, 0])
                || (second == 0xc2 && *byte == 0x85)
                || (first == 0xe2 && second == 0x80 && matches!(byte, 0xa8 | 0xa9));
            self.begun = [second, *byte];
            if breaks {
                self.other = Line::Before;
            } else if self.other != Line::Other && self.other != Line::Data {
                endpoint |= self.other.feed(&[*byte]);
            }
        }
        (endpoint, self.spelling.feed(part))
    }

    fn is_data(&self) -> bool {
        self.line == Line::Data || self.other == Line::Data
    }
}

/// Looks for the key of the list in a tools/list result, however it is spelled and in whatever case, in a text that comes in
/// parts.
#[derive(Clone, Copy, Debug, Default)]
struct Spelling {
    /// Nothing, or the opening quote and how many letters are there.
    found: Option<u8>,
    /// Of a letter that is not written as itself: what has come of it.
    part: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    None,
    /// After the backslash.
    Backslash,
    /// After `\u` and this many digits, which make this number.
    Escape(u8, u32),
    /// After the first byte of the long s, which some parsers take for an s.
    LongS,
}

impl Spelling {
    /// Takes a part of the text. True when the key has come in it.
    fn feed(&mut self, text: &[u8]) -> bool {
        let (mut at, mut spelled) = (0, false);
        while let Some(byte) = text.get(at) {
            let Some(letters) = self.found else {
                // Most of a text is none of it.
                let Some(quote) = memchr::memchr(b'"', text.get(at..).unwrap_or_default()) else { return spelled };
                at += quote + 1;
                (self.found, self.part) = (Some(0), Part::None);
                continue;
            };
            at += 1;
            if *byte == b'"' {
                spelled |= letters == 5 && self.part == Part::None;
                (self.found, self.part) = (Some(0), Part::None);
                continue;
            }
            let next = match (self.part, *byte) {
                (Part::None, b'\\') => Some(Part::Backslash),
                (Part::None, 0xc5) => Some(Part::LongS),
                (Part::Backslash, b'u') => Some(Part::Escape(0, 0)),
                (Part::Escape(count @ 0..3, number), byte) => {
                    char::from(byte).to_digit(16).map(|digit| Part::Escape(count + 1, number * 16 + digit))
                }
                _ => None,
            };
            if let Some(part) = next {
                self.part = part;
                continue;
            }
            let letter = match (self.part, *byte) {
                (Part::None, byte) => Some(char::from(byte)),
                (Part::Escape(_, number), byte) => {
                    char::from(byte).to_digit(16).and_then(|digit| char::from_u32(number * 16 + digit))
                }
                (Part::LongS, 0xbf) => Some('\u{17f}'),
                _ => None,
            };
            self.part = Part::None;
            let wanted = b"tools".get(usize::from(letters)).map(|letter| char::from(*letter));
            let fits = letter.is_some_and(|letter| {
                Some(letter.to_ascii_lowercase()) == wanted || (letter == '\u{17f}' && wanted == Some('s'))
            });
            self.found = fits.then_some(letters + 1);
        }
        spelled
    }
}

/// Whether the key stands in a text, be it as an escape spells it and in whatever case.
pub fn spells_tools(text: &[u8]) -> bool {
    Spelling::default().feed(text)
}

fn without_end(line: &[u8]) -> &[u8] {
    match line {
        [rest @ .., b'\r', b'\n'] | [rest @ .., b'\n' | b'\r'] => rest,
        line => line,
    }
}

/// The lines of an event, without their ends and without the blank one.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    // CR LF makes an empty piece between its halves, which is dropped with the blank line: no other line is empty.
    event.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty())
}

/// A line's field and value.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        None => (line, b""),
        Some(at) => {
            let value = line.get(at + 1..).unwrap_or_default();
            (line.get(..at).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = Vec<(String, String)>;

    /// Pushes a stream in pieces of a size; replaces data `old` by `new`.
    fn rewrite(stream: &[u8], piece: usize, most: usize) -> Result<(String, Seen), SseError> {
        let (mut rewriter, mut out, mut seen) = (Rewriter::new(most, Watch::All), Vec::new(), Seen::new());
        let mut decide = |event: Event<'_>| {
            seen.push((String::from_utf8_lossy(event.name).into(), String::from_utf8_lossy(event.data).into()));
            Ok(if event.data == b"old" { Verdict::Replace(b"new".to_vec()) } else { Verdict::Pass })
        };
        for chunk in stream.chunks(piece) {
            out.extend_from_slice(&rewriter.push(chunk, &mut decide)?);
        }
        out.extend_from_slice(&rewriter.finish(&mut decide)?);
        Ok((String::from_utf8_lossy(&out).into(), seen))
    }

    #[test]
    fn the_key_tools_is_known_however_it_is_spelled() {
        for text in [
            "{\"TOOL\u{17f}\"",
            r#""tool\u017F""#,
            "\"tool\"tools\"",
            r#"{"tools":"#,
            r#"{"x":"","t\u006fol\u0073":"#,
            r#""\u0074\u006F\u006f\u006C\u0073""#,
        ] {
            assert!(spells_tools(text.as_bytes()), "{text}");
        }
        for text in
            ["", "\"", "\"tool", "\"tools", r#""tools ""#, r#""\u0074""#, r#"\"tools\""#, r#""\u0074\u006"#, "\"too\u{17f}ls\""]
        {
            assert!(!spells_tools(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn events_are_found_whatever_ends_their_lines_and_however_they_come() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = [
                "\u{feff}: hello",
                "retry: 5",
                "",
                "event: endpoint",
                "data: /x",
                "",
                "",
                "data: a",
                "data:b",
                "id: 1",
                "",
                "data: tail",
            ]
            .join(end);
            for piece in 1..=stream.len() {
                let (out, seen) = rewrite(stream.as_bytes(), piece, 1000).unwrap();
                assert_eq!(out, stream, "{end:?} {piece}");
                let expected =
                    [("endpoint", "/x"), ("message", "a\nb"), ("message", "tail")].map(|(a, b)| (a.to_owned(), b.to_owned()));
                assert_eq!(seen, expected, "{end:?} {piece}");
            }
        }
    }

    #[test]
    fn only_the_data_of_a_replaced_event_changes() {
        for piece in 1..40 {
            let (out, _) = rewrite(b": c\nevent: message\nid: 7\ndata: old\nretry: 3\n\ndata: keep\n\n", piece, 1000).unwrap();
            assert_eq!(out, ": c\nevent: message\nid: 7\ndata: new\nretry: 3\n\ndata: keep\n\n");
        }
    }

    #[test]
    fn an_event_too_large_to_hold_passes_unless_it_could_hold_tools() {
        let large = format!("data: {}\n\ndata: old\n\n", "x".repeat(100));
        for piece in 1..60 {
            let (out, seen) = rewrite(large.as_bytes(), piece, 50).unwrap();
            assert_eq!(out, large.replace("old", "new"), "{piece}");
            assert_eq!(seen.last().unwrap().1, "old");
        }
        let tools = format!("data: {{\"tools\":{}\n\n", "x".repeat(100));
        assert_eq!(rewrite(tools.as_bytes(), 7, 50), Err(SseError::TooLarge(50)));
        // An escape of another letter is no reason to end the stream; one of the key is, wherever a piece ends.
        let accent = large.replace("xx", r"\u00e9");
        assert_eq!(rewrite(accent.as_bytes(), 7, 50).unwrap().0, accent.replace("old", "new"));
        let escaped = large.replace("xxxx\n", "\"\\u0074\\u006f\\u006f\\u006c\\u0073\":1\n");
        for piece in 1..60 {
            assert_eq!(rewrite(escaped.as_bytes(), piece, 50), Err(SseError::TooLarge(50)), "{piece}");
        }
    }

    #[test]
    fn an_event_too_large_to_hold_does_not_pass_when_the_key_comes_late() {
        for (before, after) in [(100, 100), (100, 0), (44, 100), (46, 0)] {
            let stream = format!("data: {}{{\"tools\":1}}{}\n\ndata: b\n\n", "x".repeat(before), "x".repeat(after));
            for piece in 1..10 {
                assert_eq!(rewrite(stream.as_bytes(), piece, 50), Err(SseError::TooLarge(50)), "{before} {after} {piece}");
            }
        }
    }

    #[test]
    fn the_rest_of_an_event_too_large_to_hold_is_no_event_of_its_own() {
        for end in ["\n", "\r\n", "\r"] {
            let x = "x".repeat(60);
            for large in
                [format!("data: {x}{end}ab{end}data: y{end}{end}"), format!("data: {x}{end}a{end}b{end}c{end}data: d{end}{end}")]
            {
                let stream = format!("{large}data: old{end}{end}");
                for piece in 1..20 {
                    let (_, seen) = rewrite(stream.as_bytes(), piece, 50).unwrap();
                    assert_eq!(seen, [("message".to_owned(), "old".to_owned())], "{end:?} {piece}");
                }
            }
        }
    }

    #[test]
    fn a_byte_order_mark_in_the_rest_of_an_event_too_large_to_hold_opens_no_stream() {
        let stream = format!("data: {}\u{feff}\ndata: {}\n\ndata: old\n\n", "x".repeat(80), "y".repeat(40));
        for piece in 1..20 {
            let (_, seen) = rewrite(stream.as_bytes(), piece, 50).unwrap();
            assert_eq!(seen, [("message".to_owned(), "old".to_owned())], "{piece}");
        }
    }

    /// What a client sees of a stream, an endpoint being replaced by `/ours` and ending the stream where it is unclear, as
    /// on a stream that a GET opened.
    fn get(stream: &[u8], piece: usize, most: usize, watch: Watch) -> Result<String, SseError> {
        let (mut rewriter, mut out) = (Rewriter::new(most, watch), Vec::new());
        let mut decide = |event: Event<'_>| match event.endpoint {
            Endpoint::No => Ok(Verdict::Pass),
            Endpoint::Yes => Ok(Verdict::Replace(b"/ours".to_vec())),
            Endpoint::Unclear => Err(SseError::UnclearEndpoint),
        };
        for chunk in stream.chunks(piece) {
            out.extend_from_slice(&rewriter.push(chunk, &mut decide)?);
        }
        out.extend_from_slice(&rewriter.finish(&mut decide)?);
        Ok(String::from_utf8_lossy(&out).into())
    }

    #[test]
    fn an_endpoint_is_known_however_its_name_is_written() {
        for name in [
            "event: endpoint",
            "event:endpoint",
            "event:   endpoint  ",
            "event:\tendpoint\t",
            " event : endpoint ",
            "event:\u{a0}endpoint\u{a0}",
            "event:\u{2003}endpoint\u{3000}",
            "event: \u{feff}endpoint",
            "event: endpoint\0",
            "EVENT: Endpoint",
            "event : ENDPOINT",
            "\u{feff}event: endpoint",
            "event:\x0bendpoint",
        ] {
            for stream in [format!("{name}\ndata: http://evil/\n\n"), format!(": c\n\ndata: http://evil/\n{name}\nid: 7\n\n")] {
                for piece in 1..stream.len() {
                    let out = get(stream.as_bytes(), piece, 1000, Watch::All).unwrap();
                    assert!(
                        out.ends_with("event: endpoint\ndata: /ours\n\n") || out.ends_with("data: /ours\nid: 7\n\n"),
                        "{out:?}"
                    );
                    assert!(!out.contains("evil"), "{name:?} {piece}");
                }
            }
        }
        for other in [
            "event: endpoints",
            "event: end point",
            "events: endpoint",
            "data: event: endpoint",
            "event endpoint",
            ": event: endpoint",
        ] {
            let stream = format!("{other}\ndata: x\n\n");
            assert_eq!(get(stream.as_bytes(), 7, 1000, Watch::All), Ok(stream.clone()), "{other:?}");
        }
    }

    #[test]
    fn an_endpoint_that_clients_read_differently_passes_to_none() {
        for stream in [
            "event: endpoint\nevent: message\ndata: http://evil/\n\n",
            "event: message\nevent: endpoint\ndata: http://evil/\n\n",
            "event: endpoint\nevent:\ndata: http://evil/\n\n",
            "event: endpoint\ndata: /m\n data: http://evil/\n\n",
            "event: endpoint\ndata : http://evil/\n\n data: x",
            "data: {}\u{2028}event: endpoint\u{2028}data: http://evil/\n\n",
            "id: \u{85}event: endpoint\ndata: http://evil/\n\n",
            ": c\x0cevent: endpoint\x0cdata: http://evil/\n",
            ": c\x1eevent: endpoint",
            ": c\u{2029}data: {\"result\":{\"tools\":[]}}\u{2029}\u{2029}\n",
            " data: {\"result\":{\"tools\":[]}}\n\n",
        ] {
            for piece in 1..stream.len() {
                match get(stream.as_bytes(), piece, 1000, Watch::All) {
                    Err(_) => {}
                    Ok(out) => panic!("{stream:?} {piece}: {out:?}"),
                }
            }
        }
    }

    #[test]
    fn an_event_too_large_to_hold_does_not_pass_where_it_names_an_endpoint() {
        let x = "x".repeat(200);
        for stream in [
            format!("event: endpoint\ndata: {x}\n\n"),
            format!("data: {x}\nevent: endpoint\n\n"),
            format!("data: {x}\n event : EndPoint\r\n\r\n"),
            format!("data: {x}\r\u{feff}event:{}endpoint\r\r", " ".repeat(300)),
            format!("event:{}endpoint\ndata: http://evil/\n\n", " ".repeat(300)),
            format!("{}event: endpoint\ndata: http://evil/\n\n", " ".repeat(300)),
            format!("data: {x}\nevent: endpoint"),
            format!("data: {x}\u{2028}event: endpoint\u{2028}data: http://evil/\n\n"),
        ] {
            for piece in 1..stream.len() {
                assert_eq!(get(stream.as_bytes(), piece, 100, Watch::All), Err(SseError::TooLarge(100)), "{stream:?} {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_event_stream_passes_unless_a_client_could_find_an_endpoint_in_it() {
        for body in ["{\"tools\":[]}", "<h1>event: endpoint</h1>", "a\n\nb\r\n", "x: \"tools\"\n"] {
            for piece in 1..=body.len() {
                assert_eq!(get(body.as_bytes(), piece, 5, Watch::Foreign).as_deref(), Ok(body), "{piece}");
            }
        }
        for body in ["event: endpoint\ndata: http://evil/\n\n", "x\n event :endpoint", "{}\ndata: {\"result\":{\"tools\":[]}}"] {
            for piece in 1..=body.len() {
                assert!(get(body.as_bytes(), piece, 1000, Watch::Foreign).is_err(), "{body:?} {piece}");
            }
        }
        // Nothing of it is held.
        let mut rewriter = Rewriter::new(1000, Watch::Foreign);
        assert_eq!(rewriter.push(b"{\"a\":", &mut |_| Ok(Verdict::Pass)).unwrap(), "{\"a\":");
        assert!(rewriter.between_events());
    }

    #[test]
    fn the_last_event_is_decided_on_though_no_blank_line_ends_it() {
        for end in ["", "\n", "\r", "\r\n"] {
            let stream = format!("data: a\n\ndata: old{end}");
            for piece in 1..=stream.len() {
                assert_eq!(rewrite(stream.as_bytes(), piece, 1000).unwrap().0, "data: a\n\ndata: new\n", "{end:?} {piece}");
            }
            let endpoint = format!("event: endpoint\ndata: http://evil/{end}");
            assert_eq!(get(endpoint.as_bytes(), 5, 1000, Watch::All).unwrap(), "event: endpoint\ndata: /ours\n");
        }
    }

    #[test]
    fn a_comment_does_not_wait_for_the_event_around_it() {
        let mut rewriter = Rewriter::new(1000, Watch::All);
        let mut push = |chunk: &str| {
            let out = rewriter.push(chunk.as_bytes(), &mut |_| Ok(Verdict::Pass)).unwrap();
            (String::from_utf8(out.to_vec()).unwrap(), rewriter.between_events())
        };
        for (chunk, out, between) in [
            (":hb\n", ":hb\n", true),
            (":h", "", true),
            ("b\r", ":hb\r", true),
            ("\n", "\n", true),
            ("data: a\n", "", false),
            (": still\n", ": still\n", false),
            (":and\r", ":and\r", false),
            ("\ndata: b\n", "\n", false),
            ("\n", "data: a\ndata: b\n\n", true),
        ] {
            assert_eq!(push(chunk), (out.to_owned(), between), "{chunk:?}");
        }
    }

    #[test]
    fn a_stream_that_comes_in_single_bytes_costs_no_more_work_than_one_that_comes_whole() {
        let x = "x".repeat(50_000);
        let lines = "data: y\n".repeat(5_000);
        for (stream, watch) in [
            (format!("data: {x}\n\n"), Watch::All),
            (format!("{lines}\n{lines}"), Watch::All),
            (format!(": {x}\n"), Watch::All),
            (format!("data: {x}{x}{x}\n\n"), Watch::All),
            (format!("data: {}\n\n", "\"tool".repeat(20_000)), Watch::All),
            (format!("{x}{x}"), Watch::Foreign),
        ] {
            for piece in [1, 2, 1000, stream.len()] {
                let mut rewriter = Rewriter::new(100_000, watch);
                for chunk in stream.as_bytes().chunks(piece) {
                    rewriter.push(chunk, &mut |_| Ok(Verdict::Pass)).unwrap();
                }
                rewriter.finish(&mut |_| Ok(Verdict::Pass)).unwrap();
                assert!(rewriter.work() <= 3 * stream.len(), "{piece}: {} for {}", rewriter.work(), stream.len());
            }
        }
    }

    #[test]
    fn events_are_read_as_clients_read_them() {
        let (_, seen) = rewrite(b"event: endpoint\nevent:\ndata:\ndata\ndata: x\n\nevent: a\n\ndata\n\n", 1000, 1000).unwrap();
        assert_eq!(seen, [("message", "\n\nx"), ("message", "")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
