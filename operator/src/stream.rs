//! The policy stream: one HTTP/2 request of each sidecar, on which its policies come down and its acknowledgements go up.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use toolweir_crds::stream::{KEEP_ALIVE_SECONDS, LONGEST_ACK, Message, PATH, Report, SharedStore, Trust};

use crate::{
    auth::{self, Identity, Refusal, Reviewer},
    events::Told,
    index::Current,
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
}

impl Ended {
    /// Every one.
    pub const ALL: [Self; 6] = [Self::ClientGone, Self::Slow, Self::Protocol, Self::PodGone, Self::TokenExpired, Self::Stopping];

    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::Slow => "slow",
            Self::Protocol => "protocol",
            Self::PodGone => "pod_gone",
            Self::TokenExpired => "token_expired",
            Self::Stopping => "stopping",
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
        match self.admit(request.headers()).await {
            Ok((identity, expires, current)) => self.open(identity, expires, current, request.into_body()),
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
    async fn admit(&self, headers: &http::HeaderMap) -> Result<(Identity, Instant, watch::Receiver<Current>), Refusal> {
        let token = auth::bearer(headers)?;
        if !self.world.index().synced() {
            return Err(Refusal::NotSynced);
        }
        let identity = self.reviewer.review(token).await?;
        let expires = auth::expires(token).map_or(LONGEST_STREAM, |at| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Duration::from_secs(u64::try_from(at).unwrap_or_default()).saturating_sub(now).min(LONGEST_STREAM)
        });
        let subscribed = || self.world.index().subscribe(&identity.pod, &identity.uid);
        let mut changes = self.world.changes();
        let found = timeout(POD_WAIT, async {
            loop {
                if let Some(current) = subscribed() {
                    return Some(current);
                }
                changes.changed().await.ok()?;
            }
        });
        match found.await.ok().flatten() {
            Some(current) => Ok((identity, Instant::now() + expires, current)),
            None => {
                tracing::warn!(pod = %identity.pod, uid = identity.uid, "a sidecar of an unknown pod was refused");
                Err(Refusal::UnknownPod)
            }
        }
    }

    fn open<B>(
        self,
        identity: Identity,
        expires: Instant,
        current: watch::Receiver<Current>,
        acks: B,
    ) -> Response<BoxBody<Bytes, Infallible>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let (lines, body) = mpsc::channel(1);
        tokio::spawn(async move {
            let number = self.world.open(identity.pod.clone(), identity.uid.clone());
            tracing::debug!(pod = %identity.pod, stream = number, "stream opened");
            let ended = tokio::select! {
                ended = self.feed(number, expires, current, lines) => ended,
                ended = self.hear(number, &identity, acks) => ended,
            };
            self.world.close(number);
            self.world.metrics.stream_ended.with_label_values(&[ended.as_str()]).inc();
            match ended {
                Ended::Slow | Ended::Protocol => tracing::warn!(pod = %identity.pod, reason = ended.as_str(), "stream ended"),
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
        let mut held = BytesMut::new();
        loop {
            match body.frame().await {
                None | Some(Err(_)) => return Ended::ClientGone,
                Some(Ok(frame)) => held.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            }
            while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(end + 1);
                match serde_json::from_slice(&line) {
                    Ok(Report::Ack(ack)) => {
                        if !self.world.acknowledge(number, ack) {
                            tracing::debug!(stream = number, "an acknowledgement names a version that was not sent lately");
                        }
                    }
                    Ok(Report::Denials(told)) => {
                        let told = Told { pod: identity.pod.clone(), uid: identity.uid.clone(), denials: told.denials };
                        // Where events cannot be written as fast as they come, they are not waited for.
                        if self.denials.try_send(told).is_err() {
                            self.world.metrics.events.with_label_values(&["no_room"]).inc();
                        }
                    }
                    Err(_) => return Ended::Protocol,
                }
                sleep(ACK_PAUSE).await;
            }
            if held.len() > LONGEST_ACK {
                return Ended::Protocol;
            }
        }
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
