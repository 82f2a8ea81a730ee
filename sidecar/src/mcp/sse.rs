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
    started: bool,
    /// The last chunk ended in CR after the end of an event: an LF that follows belongs to it.
    after_cr: bool,
}

impl Rewriter {
    /// A rewriter that holds events of up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { held: BytesMut::new(), searched: 0, most, passing: false, started: false, after_cr: false }
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
    pub fn push(
        &mut self,
        chunk: &[u8],
        decide: &mut dyn FnMut(&[u8], &[u8]) -> Result<Verdict, SseError>,
    ) -> Result<Bytes, SseError> {
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
            if std::mem::take(&mut self.passing) {
                out.extend_from_slice(&event);
            } else {
                self.event(&event, decide, &mut out)?;
            }
            self.started = true;
        }
        if self.passing {
            // Keep what could be the first half of the end.
            let keep = self.held.len().min(3);
            let leave = self.held.len() - keep;
            out.extend_from_slice(&self.held.split_to(leave));
            self.searched = 0;
        } else if self.held.len() > self.most {
            if holds_tools(&self.held) {
                return Err(SseError::TooLarge(self.most));
            }
            self.passing = true;
            return self.push(&[], decide).map(|rest| {
                out.extend_from_slice(&rest);
                out.freeze()
            });
        }
        Ok(out.freeze())
    }

    /// What is left when the stream ends: an event without an end, which no client dispatches.
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Where the event ends that `held` begins with: after its blank line.
    fn end_of_event(&mut self) -> Option<usize> {
        let bytes = &self.held;
        let mut at = self.searched;
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
            None => true,
            Some(before) => {
                // A byte-order mark may open the stream.
                let bom = !self.started && self.held.get(..at) == Some(b"\xef\xbb\xbf");
                bom || matches!(self.held.get(before), Some(b'\n' | b'\r'))
            }
        }
    }

    fn event(
        &self,
        event: &Bytes,
        decide: &mut dyn FnMut(&[u8], &[u8]) -> Result<Verdict, SseError>,
        out: &mut BytesMut,
    ) -> Result<(), SseError> {
        let bytes = if self.started { event } else { event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event) };
        let (mut name, mut data): (&[u8], Option<Vec<u8>>) = (b"message", None);
        for line in lines(bytes) {
            let (field, value) = field(line);
            if field == b"data" {
                let data = data.get_or_insert_default();
                if !data.is_empty() {
                    data.push(b'\n');
                }
                data.extend_from_slice(value);
            } else if field == b"event" && !value.is_empty() {
                name = value;
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

/// Whether an event could hold a tools/list result: whether the key stands in it.
pub fn holds_tools(data: &[u8]) -> bool {
    memmem::find(data, b"\"tools\"").is_some() || memmem::find(data, b"\\u00").is_some()
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
    }
}
