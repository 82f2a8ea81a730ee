//! The lines of an event, and an event that is written anew.

use bytes::{Bytes, BytesMut};

/// The byte-order mark of UTF-8.
pub const MARK: &[u8] = b"\xef\xbb\xbf";

/// A line without its end.
pub fn without_end(line: &[u8]) -> &[u8] {
    match line {
        [rest @ .., b'\r', b'\n'] | [rest @ .., b'\n' | b'\r'] => rest,
        line => line,
    }
}

/// The lines of an event, without their ends and without the blank one.
pub fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    // CR LF makes an empty piece between its halves, which is dropped with the blank line: no other line is empty.
    event.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty())
}

/// A line's field and value, without the one blank before it.
pub fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        None => (line, b""),
        Some(at) => {
            let value = line.get(at + 1..).unwrap_or_default();
            (line.get(..at).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
        }
    }
}

/// Returns true for a byte that some client may trim: white space, a control character, or none of ASCII, such as one of a
/// byte-order mark.
pub fn is_blank(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f
}

/// A text without what some client may trim around it.
pub fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

/// An event with other data and the blank line at its end. Every other line stays, but for `id` unless `resumable`.
pub fn with_data(event: &[u8], data: &[u8], resumable: bool) -> Bytes {
    let mut out = BytesMut::new();
    if resumable {
        replace(event, false, data, true, &mut out);
    } else {
        replace(&without_id(event), false, data, true, &mut out);
    }
    out.freeze()
}

/// An event, with the blank line at its end, without what tells a client where to resume its stream and when.
pub fn without_id(event: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    for line in lines(event).filter(|line| !is_of_stream(line)) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

/// What an event says of the stream itself, without its data; nothing where it says nothing of it.
pub fn place_alone(event: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    for line in lines(event).filter(|line| is_of_stream(line)) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
    }
    if !out.is_empty() {
        out.extend_from_slice(b"\n");
    }
    out.freeze()
}

/// Returns true for a line that tells a client where to resume its stream, or when.
fn is_of_stream(line: &[u8]) -> bool {
    let name = trimmed(field(line).0);
    name.eq_ignore_ascii_case(b"id") || name.eq_ignore_ascii_case(b"retry")
}

/// Writes an event with other data to `out`. Every other line stays; the data goes where its first line stood. With `endpoint` the
/// event is named `endpoint`, whatever its name was. With `ended` a blank line ends it.
pub fn replace(event: &[u8], endpoint: bool, new: &[u8], ended: bool, out: &mut BytesMut) {
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
