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
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout, timeout_at},
};
use toolweir_crds::{
    approval_request::ApprovalNews,
    stream::{KEEP_ALIVE_SECONDS, LONGEST_ACK, PATH, Report, SharedStore, StreamMessage, TrustBundle},
};

use crate::{
    approvals::{records::RequestingPod, service::ApprovalService, session},
    auth::{self, PodIdentity, StreamRefusal, TokenReviewer},
    cluster_state::ClusterState,
    events::{self, DenialReport, EventMetrics, EventReport},
    evicting_semaphore::{EvictionSignal, evicted, eviction_signal},
    index::{CurrentSnapshot, Index},
    metrics::OperatorRegistry,
    next_line::{NextLine, SentContent, StreamContent},
    response::{PortResponse, plain_text},
    seats::Seat,
    shared_store::health::SidecarStore,
};

/// The time that a sidecar may take to read the next line. Then its stream ends, so that nothing piles up here.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time to wait for a pod whose sidecar connects before the watch has seen it: the watch may be behind the kubelet.
const POD_WAIT: Duration = Duration::from_secs(3);
/// The longest time that a stream lasts whose token does not say when it expires.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);
/// The pause between two lines of one sidecar, so that none keeps the operator busy.
const ACK_PAUSE: Duration = Duration::from_millis(10);
/// The most streams that are open at once.
const STREAMS: usize = 20_000;
/// The most streams of one pod: one that is about to end, and the one that takes its place.
const STREAMS_OF_POD: usize = 2;
/// The most requests that wait at once for their pod.
const WAITING: usize = 64;
/// An acknowledgement that is longer needs one of [`LONG_ACKS`] places, and must end within [`PATIENCE`].
const SHORT_ACK: usize = 8 * 1024;
/// The most long acknowledgements that are read at once.
const LONG_ACKS: usize = 32;

/// The limits on streams.
#[derive(Debug)]
pub struct StreamBounds {
    /// The streams of each pod, by its uid, the oldest first.
    pods: Mutex<HashMap<String, VecDeque<(u64, EvictionSignal)>>>,
    waiting: Semaphore,
    long_acks: Semaphore,
}

impl Default for StreamBounds {
    fn default() -> Self {
        Self { pods: Mutex::default(), waiting: Semaphore::new(WAITING), long_acks: Semaphore::new(LONG_ACKS) }
    }
}

impl StreamBounds {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, VecDeque<(u64, EvictionSignal)>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream of a pod. Evicts its oldest one where it has too many.
    fn opened(&self, uid: &str, number: u64) -> EvictionSignal {
        let eviction = eviction_signal();
        let mut pods = self.pods();
        let streams = pods.entry(uid.to_owned()).or_default();
        streams.push_back((number, eviction.clone()));
        while streams.len() > STREAMS_OF_POD {
            if let Some((_, oldest)) = streams.pop_front() {
                oldest.send_replace(true);
            }
        }
        eviction
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

/// The reasons why a stream ended: the closed set of the label `reason` of `toolweir_operator_stream_ended_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The sidecar hung up.
    ClientGone,
    /// The sidecar did not read for too long.
    Slow,
    /// The sidecar sent a line that is no report.
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

impl StreamEnd {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::ClientGone, Self::Slow, Self::Protocol, Self::PodGone, Self::TokenExpired, Self::Stopping, Self::Replaced];

    /// Returns the reason as metrics name it.
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

/// The metrics of streams.
#[derive(Clone, Debug)]
pub struct StreamMetrics {
    /// Streams that were not opened, by reason.
    pub refused: IntCounterVec,
    /// Streams that ended, by reason.
    pub ended: IntCounterVec,
    /// Snapshots that were sent.
    pub snapshots: IntCounter,
}

impl StreamMetrics {
    /// Registers the metrics, with every reason at 0.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            refused: auth::refusals(registry)?,
            ended: registry.counters_at_zero(
                "toolweir_operator_stream_ended_total",
                "Policy streams that ended, by reason.",
                "reason",
                StreamEnd::ALL.map(StreamEnd::as_str),
            )?,
            snapshots: registry.counter("toolweir_operator_snapshots_total", "Snapshots of policies that were sent.")?,
        })
    }
}

/// Serves the streams.
#[derive(Clone, Debug)]
pub struct StreamServer {
    /// The index and the acknowledgements.
    pub state: Arc<ClusterState>,
    /// Reviews the tokens.
    pub reviewer: TokenReviewer,
    /// The authorities to trust, in PEM.
    pub trust: watch::Receiver<Arc<str>>,
    /// The shared store.
    pub store: watch::Receiver<SidecarStore>,
    /// The requests for approval of pods.
    pub approvals: Arc<ApprovalService>,
    /// The queue of what becomes events.
    pub reports: mpsc::Sender<EventReport>,
    /// Turns true when this replica stops.
    pub stopping: watch::Receiver<bool>,
    /// The limits on streams. One for a process.
    pub bounds: Arc<StreamBounds>,
    /// The metrics of streams.
    pub metrics: StreamMetrics,
    /// The metric of events, for reports that have no room.
    pub events: EventMetrics,
}

impl StreamServer {
    /// Answers a request on the stream's port.
    pub async fn answer<B>(self, request: Request<B>) -> PortResponse
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        if request.uri().path() != PATH {
            return plain_text(StatusCode::NOT_FOUND, &format!("there is {PATH}"));
        }
        if request.method() != Method::POST {
            return plain_text(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        }
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        match self.admit(request.headers(), seat.as_ref()).await {
            Ok((identity, expires, current)) => self.open(identity, expires, current, seat.as_ref(), request.into_body()),
            Err(refusal) => {
                self.metrics.refused.with_label_values(&[refusal.as_str()]).inc();
                let mut response = plain_text(refusal.status(), &refusal.to_string());
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

    /// Authenticates a request. Returns the pod, when the stream must end, and the pod's snapshots.
    async fn admit(
        &self,
        headers: &http::HeaderMap,
        seat: Option<&Arc<Seat>>,
    ) -> Result<(PodIdentity, Instant, watch::Receiver<CurrentSnapshot>), StreamRefusal> {
        let token = auth::bearer(headers)?;
        if !self.state.index().synced() {
            return Err(StreamRefusal::NotSynced);
        }
        if self.state.acks().streams() >= STREAMS {
            return Err(StreamRefusal::Busy);
        }
        // The token's own word is enough to turn it away: the API server is not asked about pods that there are not.
        let claimed = auth::claimed(token);
        if let Some(claimed) = &claimed
            && self.wait_for(|index| index.has(&claimed.pod, &claimed.uid).then_some(())).await?.is_none()
        {
            tracing::debug!(pod = %claimed.pod, "a token of an unknown pod was refused");
            return Err(StreamRefusal::UnknownPod);
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
                Err(StreamRefusal::UnknownPod)
            }
        }
    }

    /// Waits until a lookup in the index finds something, at most for [`POD_WAIT`].
    async fn wait_for<T>(&self, look: impl Fn(&mut Index) -> Option<T>) -> Result<Option<T>, StreamRefusal> {
        let mut changes = self.state.changes();
        if let Some(found) = look(&mut self.state.index()) {
            return Ok(Some(found));
        }
        let _waits = self.bounds.waiting.try_acquire().map_err(|_| StreamRefusal::Busy)?;
        let found = timeout(POD_WAIT, async {
            loop {
                changes.changed().await.ok()?;
                let found = look(&mut self.state.index());
                if found.is_some() {
                    return found;
                }
            }
        });
        Ok(found.await.ok().flatten())
    }

    fn open<B>(
        self,
        identity: PodIdentity,
        expires: Instant,
        current: watch::Receiver<CurrentSnapshot>,
        seat: Option<&Arc<Seat>>,
        acks: B,
    ) -> PortResponse
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let (lines, body) = mpsc::channel(1);
        // A connection on which a stream is open is no stranger's.
        let hold = seat.map(Seat::hold);
        tokio::spawn(async move {
            let _hold = hold;
            let number = self.state.open_stream(identity.pod.clone(), identity.uid.clone());
            let replaced = self.bounds.opened(&identity.uid, number);
            tracing::debug!(pod = %identity.pod, stream = number, "stream opened");
            let (news, approvals) = watch::channel(None);
            let asking = session::serve(&self.approvals, number, &identity, current.clone(), news);
            let ended = tokio::select! {
                ended = self.feed(number, expires, (current, approvals), lines) => ended,
                ended = self.receive(number, &identity, acks) => ended,
                () = evicted(&replaced) => StreamEnd::Replaced,
                () = asking => StreamEnd::PodGone,
            };
            self.bounds.closed(&identity.uid, number);
            self.state.close_stream(number);
            self.metrics.ended.with_label_values(&[ended.as_str()]).inc();
            match ended {
                StreamEnd::Slow | StreamEnd::Protocol | StreamEnd::Replaced => {
                    tracing::warn!(pod = %identity.pod, reason = ended.as_str(), "stream ended");
                }
                _ => tracing::debug!(pod = %identity.pod, reason = ended.as_str(), "stream ended"),
            }
        });
        let mut response = Response::new(LinesBody(body).boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Sends the authorities, the shared store, the policies, what was decided on calls, and every change of these. A line that was not sent yet is replaced
    /// by a newer one, so that a slow sidecar costs one line, and other sidecars nothing.
    async fn feed(
        &self,
        number: u64,
        expires: Instant,
        pod: (watch::Receiver<CurrentSnapshot>, watch::Receiver<Option<Arc<ApprovalNews>>>),
        lines: mpsc::Sender<Bytes>,
    ) -> StreamEnd {
        let mut stopping = self.stopping.clone();
        let mut updates = Updates::new(self, number, pod);
        let every = Duration::from_secs(KEEP_ALIVE_SECONDS);
        let mut keep_alive = interval_at(Instant::now() + every, every);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return StreamEnd::Stopping,
                () = lines.closed() => return StreamEnd::ClientGone,
                () = tokio::time::sleep_until(expires) => return StreamEnd::TokenExpired,
                line = updates.next() => match line {
                    Ok(line) => line,
                    Err(end) => return end,
                },
                _ = keep_alive.tick() => line(&StreamMessage::<()>::KeepAlive),
            };
            match timeout(PATIENCE, lines.send(line)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return StreamEnd::ClientGone,
                Err(_) => return StreamEnd::Slow,
            }
        }
    }

    /// Receives the reports of the sidecar, for as long as the stream lasts.
    async fn receive<B>(&self, number: u64, identity: &PodIdentity, mut body: B) -> StreamEnd
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut held = Vec::new();
        // The permit of a long line, and until when it must have ended.
        let mut long: Option<(SemaphorePermit<'_>, Instant)> = None;
        loop {
            let frame = match &long {
                Some((_, until)) => match timeout_at(*until, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => return StreamEnd::Slow,
                },
                None => body.frame().await,
            };
            let Some(Ok(frame)) = frame else { return StreamEnd::ClientGone };
            let Ok(data) = frame.into_data() else { continue };
            let mut rest = data.as_ref();
            // Each byte is looked at once, however the line is cut.
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(end + 1);
                rest = after;
                if held.len() + line.len() > LONGEST_ACK {
                    return StreamEnd::Protocol;
                }
                held.extend_from_slice(line);
                if !self.handle_report(number, identity, &held) {
                    return StreamEnd::Protocol;
                }
                held = Vec::new();
                long = None;
                sleep(ACK_PAUSE).await;
            }
            if held.len() + rest.len() > LONGEST_ACK {
                return StreamEnd::Protocol;
            }
            if held.len() + rest.len() > SHORT_ACK && long.is_none() {
                let place = timeout(PATIENCE, self.bounds.long_acks.acquire()).await;
                let Ok(Ok(place)) = place else { return StreamEnd::Slow };
                long = Some((place, Instant::now() + PATIENCE));
            }
            held.extend_from_slice(rest);
        }
    }

    /// Handles a line of a sidecar. Returns false where it is no report.
    fn handle_report(&self, number: u64, identity: &PodIdentity, line: &[u8]) -> bool {
        match serde_json::from_slice(line) {
            Ok(Report::Ack(ack)) => {
                if !self.state.acknowledge(number, ack) {
                    tracing::debug!(stream = number, "an acknowledgement names a version that was not sent lately");
                }
            }
            Ok(Report::Credentials(report)) => {
                self.state.report_credentials(number, &identity.pod, &identity.uid, report);
            }
            Ok(Report::Interception(report)) => {
                self.state.report_interception(number, &identity.pod, &identity.uid, report);
            }
            Ok(Report::Denials(report)) => {
                let denials = events::shorten(report.denials);
                let report = DenialReport { pod: identity.pod.clone(), uid: identity.uid.clone(), denials };
                self.queue(EventReport::Denials(report));
            }
            Ok(Report::Drift(report)) => {
                let drifted = self.state.report_drift(number, &identity.pod, &identity.uid, report);
                if !drifted.is_empty() {
                    self.queue(EventReport::Drift(drifted));
                }
            }
            Ok(Report::Approvals(report)) => {
                let pod = RequestingPod { namespace: identity.pod.namespace.clone(), uid: identity.uid.clone() };
                self.approvals.report(number, &pod, report, Timestamp::now());
            }
            Err(_) => return false,
        }
        true
    }

    /// Queues what becomes events. Where these cannot be written as fast as they come, they are not waited for.
    fn queue(&self, report: EventReport) {
        if self.reports.try_send(report).is_err() {
            self.events.count_no_room();
        }
    }
}

/// The lines of one stream besides keep-alives, as [`SentContent::next`] orders them.
struct Updates<'a> {
    server: &'a StreamServer,
    number: u64,
    trust: watch::Receiver<Arc<str>>,
    store: watch::Receiver<SidecarStore>,
    current: watch::Receiver<CurrentSnapshot>,
    approvals: watch::Receiver<Option<Arc<ApprovalNews>>>,
    sent: SentContent,
}

impl<'a> Updates<'a> {
    /// Begins with everything still to be sent. `pod`: what changes for the pod alone.
    fn new(
        server: &'a StreamServer,
        number: u64,
        pod: (watch::Receiver<CurrentSnapshot>, watch::Receiver<Option<Arc<ApprovalNews>>>),
    ) -> Self {
        let (trust, store, (current, approvals)) = (server.trust.clone(), server.store.clone(), pod);
        Self { server, number, trust, store, current, approvals, sent: SentContent::default() }
    }

    /// Waits for the next line. It may be cancelled: what is not returned counts as not sent.
    ///
    /// # Errors
    /// The stream ends.
    async fn next(&mut self) -> Result<Bytes, StreamEnd> {
        loop {
            let desired = StreamContent {
                trust: Arc::clone(&self.trust.borrow_and_update()),
                store: self.store.borrow_and_update().clone(),
                snapshot: self.current.borrow_and_update().clone().ok_or(StreamEnd::PodGone)?,
                approvals: self.approvals.borrow_and_update().clone(),
            };
            if let Some(next) = self.sent.next(&desired) {
                self.sent.record(&next);
                return Ok(self.line(next));
            }
            tokio::select! {
                changed = self.trust.changed() => changed.map_err(|_| StreamEnd::Stopping)?,
                changed = self.store.changed() => changed.map_err(|_| StreamEnd::Stopping)?,
                changed = self.current.changed() => changed.map_err(|_| StreamEnd::PodGone)?,
                Ok(()) = self.approvals.changed() => {}
            }
        }
    }

    fn line(&self, next: NextLine) -> Bytes {
        match next {
            NextLine::Trust(trust) => line(&StreamMessage::<()>::Trust(TrustBundle { certificates: trust.to_string() })),
            NextLine::Store(store) => line(&StreamMessage::<()>::SharedStore(store.map(|store| SharedStore::clone(&store)))),
            NextLine::Snapshot(snapshot) => {
                self.server.state.acks().sent(self.number, &snapshot);
                self.server.metrics.snapshots.inc();
                snapshot.line.clone()
            }
            NextLine::Approvals(news) => line(&StreamMessage::<()>::Approvals(ApprovalNews::clone(&news))),
        }
    }
}

/// Returns a message as a line of the stream.
fn line(message: &StreamMessage<()>) -> Bytes {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// The lines as the body of a response.
#[derive(Debug)]
struct LinesBody(mpsc::Receiver<Bytes>);

impl Body for LinesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
