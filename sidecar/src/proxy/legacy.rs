//! The HTTP+SSE transport (MCP 2024-11-05): answers arrive on a stream that the client opened before.
//!
//! A server names in its first event where messages are to be posted. The client gets a path of the sidecar's instead,
//! with the random id of its stream; a message that comes there goes where the server said, and a denial is put into
//! the stream. There is an entry for each open stream and no other, so no client can fill this.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::Uri;
use ring::rand::{SecureRandom, SystemRandom};
use smallvec::SmallVec;
use tokio::sync::{Semaphore, mpsc};

use super::{origin::resolve, stream_lists::StreamLists};
use crate::{
    mcp::{
        answer_finder::{AnswerFinder, SseAnswerFinder},
        id::{RequestId, message_id},
    },
    outcome::Outcome,
    pending::{AnsweredRequest, MOST_OF_ALL, PendingRequests},
};

/// The open streams.
#[derive(Clone, Debug)]
pub struct LegacyStreams {
    open: Arc<Mutex<HashMap<String, LegacyStream>>>,
    random: SystemRandom,
    /// Room for requests without an answer.
    room: Arc<Semaphore>,
}

impl Default for LegacyStreams {
    fn default() -> Self {
        Self { open: Arc::default(), random: SystemRandom::new(), room: Arc::new(Semaphore::new(MOST_OF_ALL)) }
    }
}

/// An open stream, as the messages find it that are posted for it.
#[derive(Clone, Debug)]
pub struct LegacyStream {
    /// Its random id.
    pub id: String,
    /// The server's name.
    pub server: String,
    /// The URL at which it was opened.
    pub url: Uri,
    /// The URL at the server to which messages are posted.
    pub endpoint: Uri,
    /// Events to put into the stream.
    pub events: mpsc::Sender<Bytes>,
    /// Requests whose answer comes on the stream.
    pub pending: Arc<PendingRequests>,
    /// Its lists.
    pub lists: Arc<StreamLists>,
}

/// An open stream, as long as it passes. Dropped, it is forgotten.
#[derive(Debug)]
pub struct OpenLegacyStream {
    streams: LegacyStreams,
    id: Option<String>,
    server: String,
    url: Uri,
    events: mpsc::Sender<Bytes>,
    pending: Arc<PendingRequests>,
    answers: SseAnswerFinder,
    /// Requests whose answers have come in an event that has not been decided on.
    answered: Vec<(RequestId, AnsweredRequest)>,
    endpoint: Option<Uri>,
    lists: Arc<StreamLists>,
}

/// The most answers of the sidecar that wait for a client that does not read its stream.
const WAITING: usize = 16;

impl LegacyStreams {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, LegacyStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that a client opened to a server, which may turn out to be of this transport.
    pub fn open(&self, server: &str, url: &Uri) -> (OpenLegacyStream, mpsc::Receiver<Bytes>) {
        let (events, receiver) = mpsc::channel(WAITING);
        (
            OpenLegacyStream {
                streams: self.clone(),
                id: None,
                server: server.to_owned(),
                url: url.clone(),
                events,
                pending: Arc::new(PendingRequests::within(Arc::clone(&self.room))),
                answers: SseAnswerFinder::default(),
                answered: Vec::new(),
                endpoint: None,
                lists: Arc::default(),
            },
            receiver,
        )
    }

    /// The stream with this id.
    pub fn find(&self, server: &str, id: &str) -> Option<LegacyStream> {
        self.lock().get(id).filter(|stream| stream.server == server).cloned()
    }

    /// The number of open streams.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns true where none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl OpenLegacyStream {
    /// Its lists.
    pub fn lists(&self) -> &Arc<StreamLists> {
        &self.lists
    }

    /// The id of the stream, once the server has named its endpoint.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The endpoint that the server has named.
    pub fn endpoint(&self) -> Option<&Uri> {
        self.endpoint.as_ref()
    }

    /// The smallest bound on a result that is awaited on the stream. It is, as long as the event has not been decided on in which it comes.
    pub fn smallest_result_limit(&self) -> Option<u64> {
        self.id.as_ref()?;
        let come = self.answered.iter().filter_map(|(_, request)| Some(request.call()?.result_limit()?.max)).min();
        self.pending.smallest_result_limit().into_iter().chain(come).min()
    }

    /// Takes a piece of the stream, and finds the requests that it answers.
    pub fn read(&mut self, piece: &[u8]) {
        let (pending, answered) = (&self.pending, &mut self.answered);
        self.answers.push(piece, &mut |id| answered.extend(pending.take(id).map(|request| (id, request))));
    }

    /// Returns the request that a message answers whose event is decided on now.
    pub fn take_answered(&mut self, message: &[u8]) -> Option<AnsweredRequest> {
        if self.answered.is_empty() {
            return None;
        }
        let mut ids: SmallVec<[RequestId; 1]> = SmallVec::new();
        match message_id(message) {
            Ok(id) => ids.extend(RequestId::read(id?)),
            // It cannot be read, but it was found to be an answer.
            Err(_) => {
                let mut answers = AnswerFinder::default();
                answers.push(message, &mut |id| ids.push(id));
                answers.finish(&mut |id| ids.push(id));
            }
        }
        let at = self.answered.iter().position(|(known, _)| ids.iter().any(|id| known.exact == id.exact))?;
        Some(self.answered.swap_remove(at).1)
    }

    /// Ends the requests that were answered by what has passed.
    pub fn end_answered(&mut self) {
        self.answered.drain(..).for_each(|(_, request)| request.end(Outcome::Ok));
    }

    /// Takes the endpoint that the server named, and returns the path that the client is told. None when the endpoint is of
    /// another origin, where the client's credentials must not go.
    pub fn set_endpoint(&mut self, named: &str) -> Option<String> {
        let endpoint = resolve(&self.url, named)?;
        let mut random = [0_u8; 16];
        self.streams.random.fill(&mut random).ok()?;
        let id = data_encoding::HEXLOWER.encode(&random);
        let stream = LegacyStream {
            id: id.clone(),
            server: self.server.clone(),
            url: self.url.clone(),
            endpoint,
            events: self.events.clone(),
            pending: Arc::clone(&self.pending),
            lists: Arc::clone(&self.lists),
        };
        self.endpoint = Some(stream.endpoint.clone());
        let mut open = self.streams.lock();
        if let Some(before) = self.id.replace(id.clone()) {
            open.remove(&before);
        }
        open.insert(id.clone(), stream);
        Some(format!("/{}/-/messages/{id}", self.server))
    }
}

impl Drop for OpenLegacyStream {
    fn drop(&mut self) {
        self.end_answered();
        if let Some(id) = &self.id {
            self.streams.lock().remove(id);
        }
        // Who waits for a page of the sidecar's own holds them too.
        self.lists.expected.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_while_it_is_open() {
        let streams = LegacyStreams::default();
        let (mut open, _events) = streams.open("bank", &"http://h/sse".parse().unwrap());
        assert!(streams.is_empty());
        let path = open.set_endpoint("/m?s=1").unwrap();
        let id = path.strip_prefix("/bank/-/messages/").unwrap();
        assert_eq!(streams.find("bank", id).unwrap().endpoint, "http://h/m?s=1");
        assert!(streams.find("shop", id).is_none());
        open.set_endpoint("/m?s=2").unwrap();
        assert_eq!(streams.len(), 1);
        assert!(open.set_endpoint("http://other/m").is_none());
        drop(open);
        assert!(streams.is_empty());
    }
}
