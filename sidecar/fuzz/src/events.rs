//! Event streams as the standard has them (WHATWG HTML, "Server-sent events", 9.2.6), the whole stream at once.

/// An event that a client dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its type.
    pub name: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
    /// The last event id when it is dispatched.
    pub id: Vec<u8>,
}

/// The events of a stream.
pub fn events(stream: &[u8]) -> Vec<Event> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut events, mut name, mut data, mut id) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut rest = stream;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        let line = &rest[..at];
        rest = &rest[at + if rest[at..].starts_with(b"\r\n") { 2 } else { 1 }..];
        if line.is_empty() {
            // An empty buffer dispatches nothing.
            if data.pop().is_some() {
                let name = if name.is_empty() { b"message".to_vec() } else { name };
                events.push(Event { name, data, id: id.clone() });
            }
            (name, data) = (Vec::new(), Vec::new());
            continue;
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
            None => (line, &b""[..]),
        };
        match field {
            b"event" => name = value.to_vec(),
            b"data" => data.extend([value, b"\n"].concat()),
            b"id" if !value.contains(&0) => id = value.to_vec(),
            _ => {}
        }
    }
    events
}
