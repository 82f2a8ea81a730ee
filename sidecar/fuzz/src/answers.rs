//! Messages of a server, as one message and as a stream of events: which requests they end.

use serde_json::Value;
use toolweir_engine::json::Reader;
use toolweir_sidecar::{
    mcp::{
        answer_finder::{AnswerFinder, SseAnswerFinder},
        id::LONGEST_ID,
    },
    pending::PendingRequests,
};

use super::events::events;

const IDS: [&str; 3] = ["1", "2.5", "\"x\""];

/// Requests without an answer.
fn requests() -> PendingRequests {
    let pending = PendingRequests::default();
    for id in IDS {
        let id = Reader::new(id.as_bytes()).and_then(|mut text| text.value()).expect("an id");
        pending.register(id).expect("there is room").mark_sent();
    }
    pending
}

/// The number of requests that a message leaves, in pieces of a size.
fn message(data: &[u8], size: usize) -> usize {
    let (pending, mut answers) = (requests(), AnswerFinder::default());
    data.chunks(size).for_each(|piece| answers.push(piece, &mut |id| pending.answered(id)));
    answers.finish(&mut |id| pending.answered(id));
    pending.len()
}

/// The same for a stream of events.
fn stream(data: &[u8], size: usize) -> usize {
    let (pending, mut answers) = (requests(), SseAnswerFinder::default());
    data.chunks(size).for_each(|piece| answers.push(piece, &mut |id| pending.answered(id)));
    pending.len()
}

/// Which of the ids a message answers, in JSON.
fn answered(message: &Value) -> Option<usize> {
    let message = message.as_object()?;
    if message.contains_key("method") || !(message.contains_key("result") || message.contains_key("error")) {
        return None;
    }
    match message.get("id")? {
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(0),
        Value::Number(number) if number.as_f64() == Some(2.5) => Some(1),
        Value::String(text) if text == "x" => Some(2),
        _ => None,
    }
}

/// The check.
pub fn check(data: &[u8]) {
    let left = message(data, data.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(message(data, size), left, "pieces of {size}");
    }
    // An id of any length is passed over.
    if let Some(read) = serde_json::from_slice::<Value>(data).ok().filter(|_| data.len() <= LONGEST_ID) {
        let messages = read.as_array().map_or_else(|| std::slice::from_ref(&read), Vec::as_slice);
        let mut ended: Vec<usize> = messages.iter().filter_map(answered).collect();
        ended.sort_unstable();
        ended.dedup();
        assert_eq!(left, IDS.len() - ended.len(), "{}", String::from_utf8_lossy(data));
    }

    let left = stream(data, data.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(stream(data, size), left, "pieces of {size} of a stream");
    }
    // What a client dispatches counts; an event that has not ended may count before.
    let dispatched = requests();
    events(data).iter().for_each(|event| dispatched.read_message(&event.data));
    assert!(left <= dispatched.len(), "an answer on a stream was not seen");
}
