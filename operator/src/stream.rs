//! The policy stream: one HTTP/2 request of each sidecar, on which its policies come down and its acknowledgements go up.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout, timeout_at},
};
use toolweir_crds::stream::{KEEP_ALIVE_SECONDS, LONGEST_ACK, Message, PATH, Report, SharedStore, Trust};

use crate::{
    auth::{self, Identity, Refusal, Reviewer},
    events::{self, Told},
    index::{Current, Index},
    room::{self, Bell},
    seats::Seat,
    shared,
    world::World,
};

/// How long a sidecar may take to make room for the next line. Then its stream ends, so that nothing piles up here.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for the word of a pod whose sidecar is here already: the watch may be behind the kubelet.
const POD_WAIT: Duration = Duration::from_secs(3);
/// How long a stream lasts whose token does not say when it expires.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);
/// Between two acknowledgements of one sidecar, so that none keeps this busy.
const ACK_PAUSE: Duration = Duration::from_millis(10);
/// The most streams that are open at once.
const STREAMS: usize = 20_000;
/// The most streams of one pod: one that is about to end, and the one that takes its place.
const STREAMS_OF_POD: usize = 2;
/// How many requests wait at once for word of their pod.
const WAITING: usize = 64;
/// An acknowledgement that is longer needs one of [`LONG_ACKS`] places, and must end within [`PATIENCE`].
const SHORT_ACK: usize = 8 * 1024;
/// How many long acknowledgements are read at once.
const LONG_ACKS: usize = 32;

/// What streams may take. There is one of these in a process.
#[derive(Debug)]
pub struct Bounds {
    /// The streams of each pod, by its uid, the oldest first.
    pods: Mutex<HashMap<String, VecDeque<(u64, Bell)>>>,
    waiting: Semaphore,
    long_acks: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { pods: Mutex::default(), waiting: Semaphore::new(WAITING), long_acks: Semaphore::new(LONG_ACKS) }
    }
}

impl Bounds {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, VecDeque<(u64, Bell)>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod has one more stream. The bell of its oldest rings where it has too many.
    fn opened(&self, uid: &str, number: u64) -> Bell {
        let bell = room::bell();
        let mut pods = self.pods();
        let streams = pods.entry(uid.to_owned()).or_default();
        streams.push_back((number, bell.clone()));
        while streams.len() > STREAMS_OF_POD {
            if let Some((_, oldest)) = streams.pop_front() {
                oldest.send_replace(true);
            }
        }
        bell
    }

    fn closed(&self, uid: &str, number: u64) {
        let mut pods = self.pods();
        if let Some(streams) = pods.get_mut(uid) {
            streams.retain(|(other, _)| *other != number);
            if streams.is_empty() {
                pods.remove(uid);
            }
        }
    }
}

/// Why a stream ended: the closed set of the label `reason` of `toolweir_operator_stream_ended_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The sidecar hung up.
    ClientGone,
    /// The sidecar did not read for too long.
    Slow,
    /// What the sidecar sent is no acknowledgement.
    Protocol,
    /// The pod is gone.
    PodGone,
    /// The token that opened it has expired; the sidecar comes back with a fresh one.
    TokenExpired,
    /// This replica stops.
    Stopping,
    /// The pod opened more streams, and this was the oldest.
    Replaced,
}

impl Ended {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::ClientGone, Self::Slow, Self::Protocol, Self::PodGone, Self::TokenExpired, Self::Stopping, Self::Replaced];

    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::Slow => "slow",
            Self::Protocol => "protocol",
            Self::PodGone => "pod_gone",
            Self::TokenExpired => "token_expired",
            Self::Stopping => "stopping",
            Self::Replaced => "replaced",
        }
    }
}

/// What serves the streams.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The index and the acknowledgements.
    pub world: Arc<World>,
    /// Who says whose a token is.
    pub reviewer: Reviewer,
    /// The authorities to trust, in PEM.
    pub trust: watch::Receiver<Arc<str>>,
    /// Where counts are shared.
    pub store: watch::Receiver<shared::Told>,
    /// Where denials are told.
    pub denials: mpsc::Sender<Told>,
    /// Turns true when this replica stops.
    pub stopping: watch::Receiver<bool>,
}

impl Streams {
    /// Answers a request on the stream's port.
    pub async fn answer<B>(self, request: Request<B>) -> Response<BoxBody<Bytes, Infallible>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, &format!("there is {PATH}"));
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        }
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        match self.admit(request.headers(), seat.as_ref()).await {
            Ok((identity, expires, current)) => self.open(identity, expires, current, seat.as_ref(), request.into_body()),
            Err(refusal) => {
                self.world.metrics.stream_refused.with_label_values(&[refusal.as_str()]).inc();
                let mut response = text(refusal.status(), &refusal.to_string());
                let headers = response.headers_mut();
                if refusal.status() == StatusCode::UNAUTHORIZED {
                    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                }
                if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                }
                response
            }
        }
    }

    /// Who asks, when the stream must end, and what holds for the pod.
    async fn admit(
        &self,
        headers: &http::HeaderMap,
        seat: Option<&Arc<Seat>>,
    ) -> Result<(Identity, Instant, watch::Receiver<Current>), Refusal> {
        let token = auth::bearer(headers)?;
        if !self.world.index().synced() {
            return Err(Refusal::NotSynced);
        }
        if self.world.acks().streams() >= STREAMS {
            return Err(Refusal::Busy);
        }
        // The token's own word is enough to turn it away: the API server is not asked about pods that there are not.
        let claimed = auth::claimed(token);
        if let Some(claimed) = &claimed
            && self.wait_for(|index| index.has(&claimed.pod, &claimed.uid).then_some(())).await?.is_none()
        {
            tracing::debug!(pod = %claimed.pod, "a token of an unknown pod was refused");
            return Err(Refusal::UnknownPod);
        }
        let identity = self.reviewer.review(token, claimed.as_ref(), seat).await?;
        let expires = auth::expires(token).map_or(LONGEST_STREAM, |at| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Duration::from_secs(u64::try_from(at).unwrap_or_default()).saturating_sub(now).min(LONGEST_STREAM)
        });
        match self.wait_for(|index| index.subscribe(&identity.pod, &identity.uid)).await? {
            Some(current) => Ok((identity, Instant::now() + expires, current)),
            None => {
                tracing::warn!(pod = %identity.pod, uid = identity.uid, "a sidecar of an unknown pod was refused");
                Err(Refusal::UnknownPod)
            }
        }
    }

    /// Looks into the index until something is there, for a while.
    async fn wait_for<T>(&self, look: impl Fn(&mut Index) -> Option<T>) -> Result<Option<T>, Refusal> {
        let mut changes = self.world.changes();
        if let Some(found) = look(&mut self.world.index()) {
            return Ok(Some(found));
        }
        let _waits = self.world.bounds.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        let found = timeout(POD_WAIT, async {
            loop {
                changes.changed().await.ok()?;
                let found = look(&mut self.world.index());
                if found.is_some() {
                    return found;
                }
            }
        });
        Ok(found.await.ok().flatten())
    }

    fn open<B>(
        self,
        identity: Identity,
        expires: Instant,
        current: watch::Receiver<Current>,
        seat: Option<&Arc<Seat>>,
        acks: B,
    ) -> Response<BoxBody<Bytes, Infallible>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let (lines, body) = mpsc::channel(1);
        // A connection on which a stream is open is no stranger's.
        let hold = seat.map(Seat::hold);
        tokio::spawn(async move {
            let _hold = hold;
            let number = self.world.open(identity.pod.clone(), identity.uid.clone());
            let replaced = self.world.bounds.opened(&identity.uid, number);
            tracing::debug!(pod = %identity.pod, stream = number, "stream opened");
            let ended = tokio::select! {
                ended = self.feed(number, expires, current, lines) => ended,
                ended = self.hear(number, &identity, acks) => ended,
                () = room::rung(&replaced) => Ended::Replaced,
            };
            self.world.bounds.closed(&identity.uid, number);
            self.world.close(number);
            self.world.metrics.stream_ended.with_label_values(&[ended.as_str()]).inc();
            match ended {
                Ended::Slow | Ended::Protocol | Ended::Replaced => {
                    tracing::warn!(pod = %identity.pod, reason = ended.as_str(), "stream ended");
                }
                _ => tracing::debug!(pod = %identity.pod, reason = ended.as_str(), "stream ended"),
            }
        });
        let mut response = Response::new(Lines(body).boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Sends whom to trust, where counts are shared, what holds, and every change of these. Where counts are shared is told to
    /// those alone whose policies share some: the password is in it. What is not sent yet is replaced by what is newer, so
    /// that a slow sidecar costs one line, and nobody else anything.
    async fn feed(
        &self,
        number: u64,
        expires: Instant,
        mut current: watch::Receiver<Current>,
        lines: mpsc::Sender<Bytes>,
    ) -> Ended {
        let (mut trust, mut store, mut stopping) = (self.trust.clone(), self.store.clone(), self.stopping.clone());
        trust.mark_changed();
        // Before the first snapshot: policies are compiled with it.
        store.mark_changed();
        let mut shares = current.borrow().as_ref().is_some_and(|prepared| prepared.shares);
        let mut told: Option<Option<Arc<SharedStore>>> = None;
        current.mark_changed();
        let every = Duration::from_secs(KEEP_ALIVE_SECONDS);
        let mut keep_alive = interval_at(Instant::now() + every, every);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return Ended::Stopping,
                () = lines.closed() => return Ended::ClientGone,
                () = tokio::time::sleep_until(expires) => return Ended::TokenExpired,
                changed = trust.changed() => {
                    if changed.is_err() {
                        return Ended::Stopping;
                    }
                    let certificates = trust.borrow_and_update().to_string();
                    line(&Message::<()>::Trust(Trust { certificates }))
                }
                changed = store.changed() => {
                    if changed.is_err() {
                        return Ended::Stopping;
                    }
                    let store = match &*store.borrow_and_update() {
                        shared::Told::Unread if shares => continue,
                        shared::Told::At(store) if shares => Some(Arc::clone(store)),
                        _ => None,
                    };
                    if told.as_ref() == Some(&store) {
                        continue;
                    }
                    if told.as_ref().map(Option::is_some) != Some(store.is_some()) {
                        // Policies that came before are compiled again.
                        current.mark_changed();
                    }
                    told = Some(store.clone());
                    line(&Message::<()>::SharedStore(store.map(|store| SharedStore::clone(&store))))
                }
                changed = current.changed() => {
                    let prepared = current.borrow_and_update().clone();
                    let (Ok(()), Some(prepared)) = (changed, prepared) else { return Ended::PodGone };
                    if prepared.shares && !shares {
                        // Where before what. It stays told until the stream ends.
                        shares = true;
                        store.mark_changed();
                        current.mark_changed();
                        continue;
                    }
                    self.world.acks().sent(number, &prepared);
                    self.world.metrics.snapshots.inc();
                    prepared.line.clone()
                }
                _ = keep_alive.tick() => line(&Message::<()>::KeepAlive),
            };
            match timeout(PATIENCE, lines.send(line)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ended::ClientGone,
                Err(_) => return Ended::Slow,
            }
        }
    }

    /// Takes in what the sidecar acknowledges, and what it tells of calls that were turned away, for as long as the stream lasts.
    async fn hear<B>(&self, number: u64, identity: &Identity, mut body: B) -> Ended
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut held = Vec::new();
        // Of a long line: its place, and until when it must have ended.
        let mut long: Option<(SemaphorePermit<'_>, Instant)> = None;
        loop {
            let frame = match &long {
                Some((_, until)) => match timeout_at(*until, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => return Ended::Slow,
                },
                None => body.frame().await,
            };
            let Some(Ok(frame)) = frame else { return Ended::ClientGone };
            let Ok(data) = frame.into_data() else { continue };
            let mut rest = data.as_ref();
            // Each byte is looked at once, however the line is cut.
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(end + 1);
                rest = after;
                if held.len() + line.len() > LONGEST_ACK {
                    return Ended::Protocol;
                }
                held.extend_from_slice(line);
                if !self.take_in(number, identity, &held) {
                    return Ended::Protocol;
                }
                held = Vec::new();
                long = None;
                sleep(ACK_PAUSE).await;
            }
            if held.len() + rest.len() > LONGEST_ACK {
                return Ended::Protocol;
            }
            if held.len() + rest.len() > SHORT_ACK && long.is_none() {
                let place = timeout(PATIENCE, self.world.bounds.long_acks.acquire()).await;
                let Ok(Ok(place)) = place else { return Ended::Slow };
                long = Some((place, Instant::now() + PATIENCE));
            }
            held.extend_from_slice(rest);
        }
    }

    /// Takes in a line of a sidecar's. False where it is none.
    fn take_in(&self, number: u64, identity: &Identity, line: &[u8]) -> bool {
        match serde_json::from_slice(line) {
            Ok(Report::Ack(ack)) => {
                if !self.world.acknowledge(number, ack) {
                    tracing::debug!(stream = number, "an acknowledgement names a version that was not sent lately");
                }
            }
            Ok(Report::Denials(told)) => {
                let denials = events::shorten(told.denials);
                let told = Told { pod: identity.pod.clone(), uid: identity.uid.clone(), denials };
                // Where events cannot be written as fast as they come, they are not waited for.
                if self.denials.try_send(told).is_err() {
                    self.world.metrics.events.with_label_values(&["no_room"]).inc();
                }
            }
            Err(_) => return false,
        }
        true
    }
}

/// A line of the stream.
fn line(message: &Message<()>) -> Bytes {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// An answer in words.
pub fn text(status: StatusCode, words: &str) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{words}\n"))).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The lines as the body of a response.
#[derive(Debug)]
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
