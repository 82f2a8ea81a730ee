//! Answers that servers get in their clients' names: to requests that policies keep from the clients.
//!
//! A server that waits for an answer that never comes hangs. So it gets an error, as its client would send one. A server may ask
//! without end, so these answers are bounded in number and time, and never in the way of other requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    budget::{Budget, HeldBytes},
    state::Proxy,
};
use crate::{
    answer_rate::AnswerRate,
    in_force::ServerInForce,
    mcp::{headers::SESSION_ID, own_list::headers_for_answer},
    outcome::ServerAnswerEnd,
};

/// The most answers that are under way to one server. A server that does not take them has no more of the sidecar's connections than
/// that.
const MOST_UNDER_WAY: usize = 16;
/// How long one answer may take: a server answers it with 202 and no more.
const LONGEST: Duration = Duration::from_secs(10);
/// How often it is logged that answers were left out.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// The most servers that are remembered.
const MOST_SERVERS: usize = 1024;

/// The room for answers to each server.
#[derive(Debug, Default)]
pub struct ServerAnswers(Mutex<HashMap<String, AnswerRoom>>);

#[derive(Debug)]
struct AnswerRoom {
    places: Arc<Semaphore>,
    rate: AnswerRate,
    told: Option<Instant>,
}

/// Why an answer is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswerRoom {
    /// True where that is to be logged: it was not for a while.
    pub is_news: bool,
}

impl AnswerRoom {
    fn new(now: Instant) -> Self {
        Self { places: Arc::new(Semaphore::new(MOST_UNDER_WAY)), rate: AnswerRate::new(now), told: None }
    }

    fn begin(&mut self, now: Instant) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.rate.take(now).then_some(place)
    }
}

impl ServerAnswers {
    /// Takes the place of an answer to a server, which it has until it is dropped.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn begin(&self, server: &str, now: Instant) -> Result<OwnedSemaphorePermit, NoAnswerRoom> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !rooms.contains_key(server) {
            if rooms.len() >= MOST_SERVERS {
                rooms.retain(|_, room| room.places.available_permits() < MOST_UNDER_WAY);
            }
            rooms.insert(server.to_owned(), AnswerRoom::new(now));
        }
        let Some(room) = rooms.get_mut(server) else { return Err(NoAnswerRoom { is_news: true }) };
        room.begin(now).ok_or_else(|| {
            let is_news = room.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
            if is_news {
                room.told = Some(now);
            }
            NoAnswerRoom { is_news }
        })
    }
}

/// Where a server takes answers in the name of one client, and how that client sends them.
#[derive(Debug)]
pub struct AnswerPath {
    server: String,
    /// The URL at which the client has reached the server.
    url: Uri,
    headers: HeaderMap,
    _room: HeldBytes,
}

impl AnswerPath {
    /// The path of a client that sent these headers to a server's URL. `opened` is the session that the server's answer opens, if it
    /// does. None where there is no room to keep it, or no URL.
    pub fn new(asked: &HeaderMap, opened: Option<&HeaderValue>, server: &ServerInForce, budget: &Budget) -> Option<Arc<Self>> {
        let url = server.url.clone()?;
        let mut headers = headers_for_answer(asked);
        if let Some(session) = opened {
            headers.entry(SESSION_ID).or_insert_with(|| session.clone());
        }
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let room = budget.try_hold(bytes)?;
        Some(Arc::new(Self { server: server.name.clone(), url, headers, _room: room }))
    }
}

impl Proxy {
    /// Sends a server answers in the name of its client, one by one and for as long as there is room; nobody waits for that. `endpoint` is
    /// where that client posts its messages, if it has an HTTP+SSE stream.
    pub(super) fn answer_server(
        &self,
        server: &str,
        path: Option<&Arc<AnswerPath>>,
        endpoint: Option<&Uri>,
        answers: impl IntoIterator<Item = Bytes>,
    ) {
        for answer in answers {
            let place = match self.state.server_answers.begin(server, Instant::now()) {
                Ok(place) => place,
                Err(NoAnswerRoom { is_news }) => {
                    if is_news {
                        tracing::warn!(server, "the server asks for more than it is answered; requests go without an answer");
                    }
                    self.count_answer(server, ServerAnswerEnd::Dropped);
                    continue;
                }
            };
            let Some(path) = path.cloned() else {
                self.count_answer(server, ServerAnswerEnd::Dropped);
                continue;
            };
            let (proxy, endpoint) = (self.clone(), endpoint.cloned());
            tokio::spawn(async move {
                let end = timeout(LONGEST, proxy.post_answer(&path, endpoint, answer)).await;
                drop(place);
                proxy.count_answer(&path.server, end.unwrap_or(ServerAnswerEnd::Timeout));
            });
        }
    }

    async fn post_answer(&self, path: &AnswerPath, endpoint: Option<Uri>, answer: Bytes) -> ServerAnswerEnd {
        let server = self.state.governor.in_force().server(&path.server).cloned();
        // The credential of one URL is not for the server of another.
        let Some(server) = server.filter(|server| server.credential.is_none() || server.url.as_ref() == Some(&path.url)) else {
            return ServerAnswerEnd::Failed;
        };
        let url = endpoint.unwrap_or_else(|| path.url.clone());
        let (sent, _) = self.exchange(&Method::POST, &path.headers, url, answer, &server).await;
        match sent {
            Ok(response) if response.status().is_success() => ServerAnswerEnd::Ok,
            Ok(_) => ServerAnswerEnd::Rejected,
            Err(failure) => {
                tracing::debug!(server = path.server, failure = failure.in_general(), "an answer to the server failed");
                ServerAnswerEnd::Failed
            }
        }
    }

    fn count_answer(&self, server: &str, end: ServerAnswerEnd) {
        self.state.governor.metrics.servers.server_answers.with_label_values(&[server, end.as_str()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer_rate::{BURST, PER_SECOND};

    #[test]
    fn answers_are_bounded_at_once_and_over_time_and_it_is_told_once_in_a_while() {
        let (answers, now) = (ServerAnswers::default(), Instant::now());
        let under_way: Vec<_> = (0..MOST_UNDER_WAY).map(|_| answers.begin("bank", now).unwrap()).collect();
        assert_eq!(answers.begin("bank", now).unwrap_err(), NoAnswerRoom { is_news: true });
        assert_eq!(answers.begin("bank", now).unwrap_err(), NoAnswerRoom { is_news: false });
        assert!(answers.begin("shop", now).is_ok());
        drop(under_way);
        let taken = (0..1000).filter(|_| answers.begin("bank", now).is_ok()).count();
        assert_eq!(taken + MOST_UNDER_WAY, usize::try_from(BURST).unwrap());
        for (later, free) in [(Duration::from_secs(1), PER_SECOND), (Duration::from_secs(3600), BURST)] {
            let begun: Vec<_> = (0..1000).map(|_| answers.begin("bank", now + later).map(drop)).collect();
            assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), usize::try_from(free).unwrap());
            let news = begun.iter().filter(|begun| begun.is_err_and(|why| why.is_news)).count();
            assert_eq!(news, usize::from(later > TOLD_EVERY));
        }
    }
}
