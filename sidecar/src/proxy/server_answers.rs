//! Answers that servers get in their clients' names: to requests that policies keep from the clients.
//!
//! A server that waits for an answer that never comes hangs. So it gets an error, as its client would send one. A server may ask
//! without end, so these answers are bounded in number and time, and never in the way of other requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::time::timeout;

use super::{
    answer_rooms::NoAnswerRoom,
    budget::{Budget, HeldBytes},
    state::Proxy,
};
use crate::{
    in_force::ServerInForce,
    mcp::{headers::SESSION_ID, own_list::headers_for_answer},
    outcome::ServerAnswerEnd,
};

/// How long one answer may take: a server answers it with 202 and no more.
const LONGEST: Duration = Duration::from_secs(10);
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
