//! Requests of servers that were let through to a client, and hold places of `maxConcurrent` until it answers.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use toolweir_engine::Permit;

use crate::{answer_rate::AnswerRate, mcp::id::RequestId};

/// The most requests that hold places. The oldest is given up first.
const MOST: usize = 1024;
/// How long a request holds places at most: a client that has not answered by then never does.
const LONGEST: Duration = Duration::from_secs(600);

/// The requests that hold places.
#[derive(Debug, Default)]
pub struct ServerRequestBook(Mutex<VecDeque<UnansweredRequest>>);

/// The most servers whose audit lines are bounded, each on its own.
const MOST_SERVERS: usize = 1024;

/// Bounds the audit lines of denied requests: a server that asks without end does not fill the log. What is left out is counted all the same.
#[derive(Debug, Default)]
pub struct DeniedLines(Mutex<HashMap<Box<str>, AnswerRate>>);

impl DeniedLines {
    /// Returns true where a line of a request of a server that was denied now is written.
    pub fn is_written(&self, server: &str, now: Instant) -> bool {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !rates.contains_key(server) {
            if rates.len() >= MOST_SERVERS {
                rates.clear();
            }
            rates.insert(server.into(), AnswerRate::new(now));
        }
        rates.get_mut(server).is_none_or(|rate| rate.take(now))
    }
}

#[derive(Debug)]
struct UnansweredRequest {
    server: Box<str>,
    session: Box<str>,
    id: RequestId,
    since: Instant,
    _places: Permit,
}

impl ServerRequestBook {
    /// Keeps the places of a request that came in this session, from now until it is answered.
    pub fn keep(&self, server: &str, session: &str, id: RequestId, places: Permit, now: Instant) {
        if !places.holds_places() {
            return;
        }
        let mut held = self.lock();
        held.retain(|request| now.saturating_duration_since(request.since) < LONGEST);
        if held.len() >= MOST {
            held.pop_front();
        }
        held.push_back(UnansweredRequest { server: server.into(), session: session.into(), id, since: now, _places: places });
    }

    /// Frees the places of all requests of a session, which has ended.
    pub fn session_ended(&self, server: &str, session: &str) {
        self.lock().retain(|request| *request.server != *server || *request.session != *session);
    }

    /// Frees the places of a request that was answered, or that its server has cancelled.
    pub fn ended(&self, server: &str, session: &str, id: RequestId) {
        let mut held = self.lock();
        let found = held
            .iter()
            .position(|request| *request.server == *server && *request.session == *session && request.id.exact == id.exact);
        drop(found.and_then(|at| held.remove(at)));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnansweredRequest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use toolweir_engine::shared::GrantedPlaces;

    use super::*;
    use crate::mcp::{id::RequestId, json_pieces::single_value};

    #[derive(Debug)]
    struct Place(#[expect(dead_code, reason = "counted")] Arc<()>);

    impl GrantedPlaces for Place {}

    #[test]
    fn a_place_comes_free_with_the_answer_or_with_time() {
        let (book, count, now) = (ServerRequestBook::default(), Arc::new(()), Instant::now());
        let id = |text: &str| RequestId::read(single_value(text.as_bytes()).unwrap()).unwrap();
        let place = || Permit::with_places(Box::new(Place(Arc::clone(&count))));
        book.keep("bank", "s", id("1"), place(), now);
        book.keep("bank", "s", id("2"), place(), now);
        book.ended("bank", "other", id("1"));
        book.ended("shop", "s", id("1"));
        assert_eq!(Arc::strong_count(&count), 3);
        book.ended("bank", "s", id("1.0"));
        assert_eq!(Arc::strong_count(&count), 2);
        book.keep("bank", "t", id("2"), place(), now);
        book.session_ended("bank", "t");
        assert_eq!(Arc::strong_count(&count), 2);
        book.keep("bank", "s", id("3"), place(), now + LONGEST);
        assert_eq!(Arc::strong_count(&count), 2);
        for number in 0..2 * MOST {
            book.keep("bank", "s", id(&number.to_string()), place(), now + LONGEST);
        }
        assert_eq!(Arc::strong_count(&count), 1 + MOST);
        book.keep("bank", "s", id("4"), Permit::default(), now);
        assert_eq!(book.lock().len(), MOST);
    }
}
