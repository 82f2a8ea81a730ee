//! Event streams (WHATWG HTML, "Server-sent events"): passed on as they come, but for the events that must be changed.
//!
//! An event is held from its first byte to its end only on streams that can carry a tools/list result. Whatever is not
//! changed leaves as the bytes that came, comments and `retry` included.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// What to do with an event that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes as it came.
    Pass,
    /// Its data becomes this.
    Replace(Vec<u8>),
}

/// Decides on an event by its name and data.
pub type Decide<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Verdict, SseError> + 'a;

/// Why a stream ends early. It was the server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event that would have to be read is larger than is held.
    #[error("an event that holds a list of tools is larger than {0} bytes")]
    TooLarge(usize),
    /// An event that must be read cannot be.
    #[error("an event that holds a list of tools cannot be read")]
    Unreadable,
}

/// Rewrites a stream, chunk by chunk.
#[derive(Debug)]
pub struct Rewriter {
    held: BytesMut,
    /// Up to where `held` was searched for the end of the event.
    searched: usize,
    most: usize,
    /// The rest of an event that is too large to hold and need not be read.
    passing: bool,
    /// The byte before `held`, where it is of the same event.
    before: Option<u8>,
    started: bool,
    /// The last chunk ended in CR after the end of an event: an LF that follows belongs to it.
    after_cr: bool,
}

impl Rewriter {
    /// A rewriter that holds events of up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { held: BytesMut::new(), searched: 0, most, passing: false, before: None, started: false, after_cr: false }
    }

    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the stream stands between two events, so that another may be put in.
    pub fn between_events(&self) -> bool {
        self.held.is_empty() && !self.passing
    }

    /// Takes a chunk and gives what can leave now. `decide` sees the name and data of each whole event.
    pub fn push(&mut self, chunk: &[u8], decide: &mut Decide<'_>) -> Result<Bytes, SseError> {
        self.held.extend_from_slice(chunk);
        let mut out = BytesMut::new();
        if self.after_cr && self.held.first() == Some(&b'\n') {
            out.extend_from_slice(&self.held.split_to(1));
        }
        if !self.held.is_empty() {
            self.after_cr = false;
        }
        while let Some(end) = self.end_of_event() {
            let event = self.held.split_to(end).freeze();
            self.after_cr = self.held.is_empty() && event.last() == Some(&b'\r');
            self.searched = 0;
            self.before = None;
            if std::mem::take(&mut self.passing) {
                self.need_not_be_read(&event)?;
                out.extend_from_slice(&event);
            } else {
                self.event(&event, decide, &mut out)?;
            }
            self.started = true;
        }
        if self.passing {
            self.need_not_be_read(&self.held)?;
            // Keep what could be the first part of the key, or of the end.
            let leave = self.held.len().saturating_sub(LONGEST_TOOLS - 1);
            let left = self.held.split_to(leave);
            self.before = left.last().copied().or(self.before);
            out.extend_from_slice(&left);
            self.searched = 0;
        } else if self.held.len() > self.most {
            self.passing = true;
            return self.push(&[], decide).map(|rest| {
                out.extend_from_slice(&rest);
                out.freeze()
            });
        }
        Ok(out.freeze())
    }

    /// Refuses an event that is not held, if it could hold a tools/list result.
    fn need_not_be_read(&self, part: &[u8]) -> Result<(), SseError> {
        if spells_tools(part) { Err(SseError::TooLarge(self.most)) } else { Ok(()) }
    }

    /// What is left when the stream ends: an event without an end, which no client dispatches.
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Where the event ends that `held` begins with: after its blank line.
    fn end_of_event(&mut self) -> Option<usize> {
        let bytes = &self.held;
        let mut at = self.searched;
        if at == 0 && self.before == Some(b'\r') && bytes.first() == Some(&b'\n') {
            // The second half of a line's end whose first has left.
            at = 1;
        }
        while let Some(found) = memchr::memchr2(b'\n', b'\r', bytes.get(at..)?) {
            let mut end = at + found + 1;
            // One line ends here; a second end right after it makes a blank line.
            if bytes.get(end - 1) == Some(&b'\r') {
                match bytes.get(end) {
                    Some(b'\n') => end += 1,
                    Some(_) => {}
                    // It may be half of CR LF: but an event that ends in CR ends here, since the client acts on it.
                    None if self.blank_before(at + found) => return Some(end),
                    None => break,
                }
            }
            if self.blank_before(at + found) {
                return Some(end);
            }
            at = end;
        }
        self.searched = at;
        None
    }

    /// Whether the line that ends at `at` is blank.
    fn blank_before(&self, at: usize) -> bool {
        match at.checked_sub(1) {
            None => self.before.is_none_or(|before| matches!(before, b'\n' | b'\r')),
            Some(before) => {
                // A byte-order mark may open the stream.
                let bom = !self.started && self.before.is_none() && self.held.get(..at) == Some(b"\xef\xbb\xbf");
                bom || matches!(self.held.get(before), Some(b'\n' | b'\r'))
            }
        }
    }

    fn event(&self, event: &Bytes, decide: &mut Decide<'_>, out: &mut BytesMut) -> Result<(), SseError> {
        let bytes = if self.started { event } else { event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event) };
        let (mut name, mut data): (&[u8], Option<Vec<u8>>) = (b"message", None);
        for line in lines(bytes) {
            let (field, value) = field(line);
            if field == b"data" {
                if let Some(data) = &mut data {
                    data.push(b'\n');
                }
                data.get_or_insert_default().extend_from_slice(value);
            } else if field == b"event" {
                name = if value.is_empty() { b"message" } else { value };
            }
        }
        let Verdict::Replace(new) = (match data {
            Some(data) => decide(name, &data)?,
            None => Verdict::Pass,
        }) else {
            out.extend_from_slice(event);
            return Ok(());
        };
        // Every other line stays; the data goes where its first line stood.
        let mut replaced = false;
        for line in lines(bytes) {
            if field(line).0 != b"data" {
                out.extend_from_slice(line);
                out.extend_from_slice(b"\n");
            } else if !std::mem::replace(&mut replaced, true) {
                for line in new.split(|byte| matches!(byte, b'\n' | b'\r')) {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(line);
                    out.extend_from_slice(b"\n");
                }
            }
        }
        out.extend_from_slice(b"\n");
        Ok(())
    }
}

/// The key of the list in a tools/list result.
const TOOLS: &[u8] = b"\"tools\"";

/// How long the key is where every letter is an escape.
const LONGEST_TOOLS: usize = 2 + 5 * 6;

/// Whether an event could hold a tools/list result: whether the key stands in it.
pub fn holds_tools(data: &[u8]) -> bool {
    memmem::find(data, TOOLS).is_some() || memmem::find(data, b"\\u00").is_some()
}

/// Whether the key stands in a text, be it as an escape spells it.
pub fn spells_tools(text: &[u8]) -> bool {
    const LETTERS: [(u8, &[u8]); 5] =
        [(b't', b"\\u0074"), (b'o', b"\\u006f"), (b'o', b"\\u006f"), (b'l', b"\\u006c"), (b's', b"\\u0073")];
    memchr::memchr_iter(b'"', text).any(|quote| {
        let mut at = quote + 1;
        let spelled = LETTERS.iter().all(|(letter, escape)| {
            let escaped = text.get(at..at + escape.len()).is_some_and(|found| found.eq_ignore_ascii_case(escape));
            at += if escaped { escape.len() } else { 1 };
            escaped || text.get(at - 1) == Some(letter)
        });
        spelled && text.get(at) == Some(&b'"')
    })
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
        let (mut rewriter, mut out, mut seen) = (Rewriter::new(most), Vec::new(), Seen::new());
        for chunk in stream.chunks(piece) {
            out.extend_from_slice(&rewriter.push(chunk, &mut |name, data| {
                seen.push((String::from_utf8_lossy(name).into(), String::from_utf8_lossy(data).into()));
                Ok(if data == b"old" { Verdict::Replace(b"new".to_vec()) } else { Verdict::Pass })
            })?);
        }
        out.extend_from_slice(&rewriter.finish());
        Ok((String::from_utf8_lossy(&out).into(), seen))
    }

    #[test]
    fn the_key_tools_is_known_however_it_is_spelled() {
        for text in [r#"{"tools":"#, r#"{"x":"","t\u006fol\u0073":"#, r#""\u0074\u006F\u006f\u006C\u0073""#] {
            assert!(spells_tools(text.as_bytes()), "{text}");
        }
        for text in ["", "\"", "\"tool", "\"tools", r#""tools ""#, r#""\u0074""#, r#"\"tools\""#, r#""Tools""#, r#""\u0074\u006"#]
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
                let expected = [("endpoint", "/x"), ("message", "a\nb")].map(|(a, b)| (a.to_owned(), b.to_owned()));
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

    #[test]
    fn events_are_read_as_clients_read_them() {
        let (_, seen) = rewrite(b"event: endpoint\nevent:\ndata:\ndata\ndata: x\n\nevent: a\n\ndata\n\n", 1000, 1000).unwrap();
        assert_eq!(seen, [("message", "\n\nx"), ("message", "")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
