//! Calls whose answer arrives elsewhere than on their own request: on a stream, or on a server's stdout. Their places
//! among the calls under way come free with the answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use toolweir_engine::{
    Permit,
    json::{Kind, Raw, Reader},
};

/// The calls without an answer yet. Only calls that hold a place are kept, so `maxConcurrent` bounds them.
#[derive(Debug, Default)]
pub struct UnderWay {
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    kept: Vec<(u64, String, Permit)>,
    next: u64,
}

/// A call that is kept until its answer comes; dropped, it is forgotten, unless the server took it.
#[derive(Debug)]
pub struct Kept<'a> {
    calls: &'a UnderWay,
    number: Option<u64>,
}

impl UnderWay {
    /// Keeps a call's permit. Call it before the call is sent: its answer can be quick. Two calls may have one id: each
    /// keeps its place.
    pub fn keep(&self, id: Raw<'_>, permit: Permit) -> Kept<'_> {
        let number = permit.holds_places().then(|| {
            let mut calls = self.lock();
            calls.next += 1;
            let number = calls.next;
            calls.kept.push((number, normal(id), permit));
            number
        });
        Kept { calls: self, number }
    }

    /// Takes a message of the server: if it is the answer to a call, the call's place comes free.
    pub fn answered(&self, message: &[u8]) {
        let mut calls = self.lock();
        if calls.kept.is_empty() {
            return;
        }
        if let Some(at) = answer_id(message).and_then(|id| calls.kept.iter().position(|(_, known, _)| *known == id)) {
            calls.kept.remove(at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept<'_> {
    /// The server took the call: its answer will come.
    pub fn taken(mut self) {
        self.number = None;
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.calls.lock().kept.retain(|(kept, ..)| *kept != number);
        }
    }
}

/// The id of an answer; nothing for other messages.
fn answer_id(message: &[u8]) -> Option<String> {
    let (mut id, mut answer) = (None, false);
    let mut reader = Reader::new(message).ok()?;
    if reader.peek().ok()? != Kind::Object {
        return None;
    }
    let read = reader.object::<toolweir_engine::json::JsonError>(|reader, key| {
        let value = reader.value()?;
        match key.string()?.as_deref() {
            Some("id") => id = Some(value),
            Some("result" | "error") => answer = true,
            _ => {}
        }
        Ok(())
    });
    read.ok()?;
    id.filter(|_| answer).map(normal)
}

/// An id as it is after a server has read and written it: `7.0` may come back as `7`.
fn normal(id: Raw<'_>) -> String {
    match id.string() {
        Ok(Some(text)) => format!("s{text}"),
        _ => id.as_str().parse::<f64>().map_or_else(|_| id.as_str().to_owned(), |number| number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_by_their_id() {
        assert_eq!(answer_id(br#"{"id":7.0,"result":{}}"#), answer_id(br#"{"error":{},"id":7}"#));
        assert_ne!(answer_id(br#"{"id":"7","result":{}}"#), answer_id(br#"{"id":7,"result":{}}"#));
        assert_eq!(answer_id(br#"{"id":7,"method":"ping"}"#), None);
        assert_eq!(answer_id(b"x"), None);
    }
}
