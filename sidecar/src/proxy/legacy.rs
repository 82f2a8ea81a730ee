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
use http::{Uri, uri::PathAndQuery};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, mpsc};

use crate::under_way::{EventAnswers, MOST_OF_ALL, UnderWay};

/// The open streams.
#[derive(Clone, Debug)]
pub struct Streams {
    open: Arc<Mutex<HashMap<String, Stream>>>,
    random: SystemRandom,
    /// Room for requests without an answer.
    room: Arc<Semaphore>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Arc::default(), random: SystemRandom::new(), room: Arc::new(Semaphore::new(MOST_OF_ALL)) }
    }
}

/// Where the messages of a stream go, and how answers get into it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its random id.
    pub id: String,
    /// The server's name.
    pub server: String,
    /// Where the server wants messages.
    pub endpoint: Uri,
    /// Events to put into the stream.
    pub events: mpsc::Sender<Bytes>,
    /// Requests whose answer comes on the stream.
    pub under_way: Arc<UnderWay>,
}

/// An open stream; dropped, it is forgotten.
#[derive(Debug)]
pub struct Open {
    streams: Streams,
    id: Option<String>,
    server: String,
    url: Uri,
    events: mpsc::Sender<Bytes>,
    under_way: Arc<UnderWay>,
    answers: EventAnswers,
}

/// How many answers of the sidecar wait for a client that does not read its stream.
const WAITING: usize = 16;

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Stream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that a client opened to a server, which may turn out to be of this transport.
    pub fn open(&self, server: &str, url: &Uri) -> (Open, mpsc::Receiver<Bytes>) {
        let (events, receiver) = mpsc::channel(WAITING);
        (
            Open {
                streams: self.clone(),
                id: None,
                server: server.to_owned(),
                url: url.clone(),
                events,
                under_way: Arc::new(UnderWay::within(Arc::clone(&self.room))),
                answers: EventAnswers::default(),
            },
            receiver,
        )
    }

    /// The stream with this id.
    pub fn find(&self, server: &str, id: &str) -> Option<Stream> {
        self.lock().get(id).filter(|stream| stream.server == server).cloned()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Open {
    /// Takes a piece of the stream: requests that it answers are no longer under way.
    pub fn seen(&mut self, piece: &[u8]) {
        self.answers.push(piece, &self.under_way);
    }

    /// Takes the endpoint that the server named, and gives the path that the client is told. Nothing when the endpoint
    /// is of another origin, where the client's credentials must not go.
    pub fn endpoint(&mut self, named: &str) -> Option<String> {
        let endpoint = resolve(&self.url, named)?;
        let mut random = [0_u8; 16];
        self.streams.random.fill(&mut random).ok()?;
        let id = data_encoding::HEXLOWER.encode(&random);
        let stream = Stream {
            id: id.clone(),
            server: self.server.clone(),
            endpoint,
            events: self.events.clone(),
            under_way: Arc::clone(&self.under_way),
        };
        let mut open = self.streams.lock();
        if let Some(before) = self.id.replace(id.clone()) {
            open.remove(&before);
        }
        open.insert(id.clone(), stream);
        Some(format!("/{}/-/messages/{id}", self.server))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.streams.lock().remove(id);
        }
    }
}

/// A reference (RFC 3986, section 4.1) against a base, if both have one origin.
pub fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.trim();
    let target = if reference.contains("://") || reference.starts_with("//") {
        let absolute: Uri = match reference.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", base.scheme_str()?).parse().ok()?,
            None => reference.parse().ok()?,
        };
        let origin = |uri: &Uri| Some((uri.scheme()?.clone(), uri.host()?.to_ascii_lowercase(), port(uri)?));
        if origin(&absolute)? != origin(base)? {
            return None;
        }
        absolute.path_and_query()?.clone()
    } else if reference.starts_with('/') {
        reference.parse::<PathAndQuery>().ok()?
    } else if reference.starts_with('?') {
        format!("{}{reference}", base.path()).parse().ok()?
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{reference}").parse().ok()?
    };
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).ok()
}

/// The port of a URI, by its scheme where it names none.
pub fn port(uri: &Uri) -> Option<u16> {
    uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_resolved_within_their_origin() {
        let base: Uri = "http://tools.svc:8000/v1/sse".parse().unwrap();
        for (reference, target) in [
            ("/messages/?session_id=7", Some("http://tools.svc:8000/messages/?session_id=7")),
            ("messages?s=1", Some("http://tools.svc:8000/v1/messages?s=1")),
            ("?s=1", Some("http://tools.svc:8000/v1/sse?s=1")),
            ("http://Tools.svc:8000/m", Some("http://tools.svc:8000/m")),
            ("//tools.svc:8000/m", Some("http://tools.svc:8000/m")),
            ("http://tools.svc/m", None),
            ("https://tools.svc:8000/m", None),
            ("http://evil.example/m", None),
            ("//evil.example/m", None),
        ] {
            assert_eq!(resolve(&base, reference).map(|uri| uri.to_string()).as_deref(), target, "{reference}");
        }
    }

    #[test]
    fn a_stream_is_known_while_it_is_open() {
        let streams = Streams::default();
        let (mut open, _events) = streams.open("bank", &"http://h/sse".parse().unwrap());
        assert!(streams.is_empty());
        let path = open.endpoint("/m?s=1").unwrap();
        let id = path.strip_prefix("/bank/-/messages/").unwrap();
        assert_eq!(streams.find("bank", id).unwrap().endpoint, "http://h/m?s=1");
        assert!(streams.find("shop", id).is_none());
        open.endpoint("/m?s=2").unwrap();
        assert_eq!(streams.len(), 1);
        assert!(open.endpoint("http://other/m").is_none());
        drop(open);
        assert!(streams.is_empty());
    }
}
