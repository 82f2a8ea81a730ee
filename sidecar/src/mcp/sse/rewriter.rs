//! Rewrites an event stream as it comes: cuts it into lines and events, and holds those that must be decided on.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use super::{
    endpoint::{EndpointLine, Naming, has_other_break, names_endpoint},
    event::{Decide, EndpointMatch, EventVerdict, RewriteMode, SseError, SseEvent},
    known_keys::{KnownKeys, known_keys},
    lines::{MARK, field, lines, place_alone, replace, trimmed, without_end},
    passing::Passing,
};

/// Rewrites a stream, chunk by chunk.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says another thing of where the stream stands")]
pub struct Rewriter {
    most: usize,
    /// The bytes of an event that are held where nothing in them says that the event has to be.
    soft: usize,
    /// Something says so in the event that goes on.
    must_hold: bool,
    mode: RewriteMode,
    /// The keys that do not pass unread.
    keys: KnownKeys,
    /// The most bytes of data of an event that passes without being held, if there is a bound.
    most_data: Option<u64>,
    /// The lines of the event that goes on, and the beginning of the next line.
    held: BytesMut,
    /// The place in `held` at which the line begins that goes on.
    line: usize,
    /// The held lines name an endpoint.
    endpoint: EndpointMatch,
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
    /// The bytes that were looked at.
    work: usize,
}

impl Rewriter {
    /// A rewriter that holds events of up to `most` bytes.
    pub fn new(most: usize, mode: RewriteMode) -> Self {
        Self {
            most,
            soft: most,
            must_hold: false,
            mode,
            keys: KnownKeys::LISTS.and(KnownKeys::ASKS),
            most_data: None,
            held: BytesMut::new(),
            line: 0,
            endpoint: EndpointMatch::No,
            passing: (mode == RewriteMode::Foreign).then(Box::default),
            after_cr: false,
            cr_left: false,
            started: false,
            first_left: false,
            work: 0,
        }
    }

    /// The same, but only these keys do not pass unread.
    #[must_use]
    pub fn looking_for(self, keys: KnownKeys) -> Self {
        Self { keys, ..self }
    }

    /// The same, but of an event no more than this is held, unless the server may ask for something in that.
    #[must_use]
    pub fn holding(self, soft: usize) -> Self {
        Self { soft: soft.min(self.most), ..self }
    }

    /// The same, but an event that is too large to hold passes with so many bytes of data at most.
    #[must_use]
    pub fn with_most_data(self, most_data: Option<u64>) -> Self {
        Self { most_data, ..self }
    }

    /// Changes how much data an event has at most that is too large to hold.
    pub fn set_most_data(&mut self, most_data: Option<u64>) {
        self.most_data = most_data;
    }

    /// The bytes that it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The bytes of memory in which it holds them.
    pub fn room(&self) -> usize {
        self.held.capacity()
    }

    /// The bytes that it has looked at: a small multiple of those that came.
    pub fn work(&self) -> usize {
        self.work
    }

    /// Returns true where the stream stands between two events, so that another may be put in. A comment is no event.
    pub fn between_events(&self) -> bool {
        self.mode == RewriteMode::Foreign
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
                if self.held.len() > self.most || (self.held.len() > self.soft && !self.has_to_be_held()) {
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

    /// Returns true where a key that does not pass unread stands in a text.
    fn spells(&self, text: &[u8]) -> bool {
        known_keys(text).any_of(self.keys)
    }

    /// Takes note of what a line of the event says.
    fn read_line(&mut self) {
        let found = match names_endpoint(self.content()) {
            Naming::No => return,
            Naming::Whole => EndpointMatch::Yes,
            Naming::Part => EndpointMatch::Unclear,
        };
        if self.endpoint != EndpointMatch::Unclear {
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
            if self.mode == RewriteMode::All && has_other_break(content) {
                if names_endpoint(content) != Naming::No {
                    return Err(SseError::UnclearEndpoint);
                }
                if self.spells(content) {
                    return Err(SseError::Unreadable);
                }
            }
            // Taken out behind a line that CR alone ends, it would leave that CR before an LF that ends a line of its own.
            if !self.held.get(..self.line).is_some_and(|before| before.ends_with(b"\r")) {
                out.extend_from_slice(self.held.get(self.line..).unwrap_or_default());
                self.held.truncate(self.line);
                self.first_left |= self.line == 0;
                self.cr_left = true;
                return Ok(());
            }
        }
        self.read_line();
        self.cr_left = false;
        self.line = self.held.len();
        Ok(())
    }

    /// The keys that do not pass wherever they stand.
    fn lists(&self) -> KnownKeys {
        self.keys.without(KnownKeys::ASKS)
    }

    /// Returns true where the event has to be held to its end. It is looked at for that once.
    fn has_to_be_held(&mut self) -> bool {
        if !self.must_hold {
            self.work += self.held.len();
            self.must_hold = self.endpoint != EndpointMatch::No || known_keys(&self.held).any_of(self.keys);
        }
        self.must_hold
    }

    /// The event is larger than is held: what has come passes, if nothing in it needs to be read.
    fn overflow(&mut self, out: &mut BytesMut) -> Result<(), SseError> {
        let mut passing = Passing::default();
        if self.mode == RewriteMode::All && self.endpoint != EndpointMatch::No {
            return Err(SseError::TooLarge(self.most));
        }
        let held = std::mem::take(&mut self.held);
        self.work += held.len();
        // Only the line that goes on can still name an endpoint; in all lines the key may stand.
        let (lines, line) = held.split_at(self.line);
        passing.inside = !line.is_empty();
        let keys = passing.keys.feed(lines);
        let (endpoint, more) = passing.feed(line);
        passing.data.feed(&held);
        check_data(&passing, self.most_data)?;
        if self.mode == RewriteMode::All && (endpoint || keys.and(more).any_of(self.lists()) || passing.data.asks()) {
            return Err(SseError::TooLarge(self.most));
        }
        self.must_hold = false;
        self.cr_left = true;
        self.line = 0;
        self.endpoint = EndpointMatch::No;
        out.extend_from_slice(&held);
        self.first_left = true;
        self.passing = Some(Box::new(passing));
        Ok(())
    }

    /// Passes a part of an event that is not held: up to the end of a line, that included, or less.
    fn pass(&mut self, part: &[u8], out: &mut BytesMut) -> Result<(), SseError> {
        let lists = self.lists();
        let Some(passing) = &mut self.passing else { return Ok(()) };
        let (endpoint, keys) = passing.feed(part);
        passing.data.feed(part);
        check_data(passing, self.most_data)?;
        let (list, asks) = (keys.any_of(self.keys), passing.data.asks());
        match self.mode {
            RewriteMode::All if endpoint || asks || keys.any_of(lists) => return Err(SseError::TooLarge(self.most)),
            RewriteMode::Foreign if endpoint => return Err(SseError::UnclearEndpoint),
            RewriteMode::Foreign if list && passing.is_data() => return Err(SseError::Unreadable),
            _ => {}
        }
        out.extend_from_slice(part);
        self.cr_left = true;
        let blank = without_end(part).is_empty() && !part.is_empty() && !passing.inside;
        passing.inside = without_end(part).len() == part.len();
        if blank && self.mode != RewriteMode::Foreign {
            self.passing = None;
        } else if !passing.inside {
            passing.line = EndpointLine::default();
        }
        Ok(())
    }

    /// The event that is held has ended, with a blank line or with the stream.
    fn event(&mut self, decide: &mut Decide<'_>, ended: bool, out: &mut BytesMut) -> Result<(), SseError> {
        // Not split off: what is left of a large buffer would be kept.
        let event = std::mem::take(&mut self.held);
        self.must_hold = false;
        self.work += event.len();
        self.line = 0;
        let naming = std::mem::replace(&mut self.endpoint, EndpointMatch::No);
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
            if self.mode == RewriteMode::All && field != b"data" && self.spells(line) {
                return Err(SseError::Unreadable);
            }
            let lenient = trimmed(line.get(..field.len()).unwrap_or_default());
            odd |= field != b"data" && lenient.eq_ignore_ascii_case(b"data");
            // Of two names some clients take the first and some the last.
            if endpoint == EndpointMatch::Yes && lenient.eq_ignore_ascii_case(b"event") && names_endpoint(line) != Naming::Whole {
                endpoint = EndpointMatch::Unclear;
            }
        }
        if odd && endpoint == EndpointMatch::Yes {
            endpoint = EndpointMatch::Unclear;
        }
        if odd && self.mode == RewriteMode::All && self.spells(bytes) {
            return Err(SseError::Unreadable);
        }
        let verdict = match &data {
            Some(data) => decide(SseEvent { name, data, text: bytes, endpoint })?,
            None if endpoint == EndpointMatch::Unclear => decide(SseEvent { name, data: b"", text: bytes, endpoint })?,
            None => EventVerdict::Pass,
        };
        match verdict {
            EventVerdict::Pass if out.is_empty() => *out = event,
            EventVerdict::Pass => out.extend_from_slice(&event),
            EventVerdict::Take => {}
            EventVerdict::TakeData => out.extend_from_slice(&place_alone(bytes)),
            EventVerdict::Replace(new) => replace(bytes, endpoint == EndpointMatch::Yes, &new, ended, out),
        }
        Ok(())
    }
}

/// Checks that what has come of an event's data is no more than may pass.
fn check_data(passing: &Passing, most: Option<u64>) -> Result<(), SseError> {
    most.map_or(Ok(()), |most| if passing.data.bytes() > most { Err(SseError::DataTooLarge(most)) } else { Ok(()) })
}

#[cfg(test)]
mod tests;
