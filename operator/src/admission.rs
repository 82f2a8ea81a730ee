//! The webhooks: `/inject` for pods, `/check` for captured pods, `/validate` for policies. What comes in and goes out are `AdmissionReview`s
//! (Kubernetes, "Dynamic Admission Control", "Webhook request and response").

mod metrics;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, Request, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use toolweir_crds::{FieldError, MCPPolicySpec, OperationKind, resource::PolicyStatus};

use crate::{
    approvals::service::ApprovalService,
    captured,
    cluster_state::ClusterState,
    config::OperatorConfig,
    evicting_semaphore::{EvictablePermit, EvictingSemaphore, EvictionSignal, NoCapacity, evicted, eviction_signal},
    index::PolicyEntry,
    inject::{
        self, CAPTURE_LABEL, INJECT_LABEL, InjectionContext, InjectionOutcome, MIRROR, NamespaceInfo, OptIn, SkipReason,
        namespace_opted_in,
    },
    namespaces::NamespaceLookup,
    response::{PortResponse, plain_text, with_content},
    review::{self, AdmissionRequest},
    seats::Seat,
    weigh::Unweighed,
    worker::Worker,
};

pub use self::metrics::{AdmissionMetrics, REASONS, RESULTS};

/// The largest review that is read, in bytes: twice what etcd holds of one object, with some for the frame.
const LARGEST: usize = 8 * 1024 * 1024;
/// The time that a review may take to arrive, with its wait for a permit.
const ARRIVAL: Duration = Duration::from_secs(5);
/// The most reviews at once, and the most that may wait.
const REQUESTS: usize = 256;
/// The largest body that counts as small, in bytes. Nearly every one does; large ones do not keep them waiting.
const SMALL: usize = 256 * 1024;
/// The most bytes of small bodies that are held at once.
const SMALL_BODIES: usize = 8 * 1024 * 1024;
/// The most bytes of large bodies.
const LARGE_BODIES: usize = 16 * 1024 * 1024;
/// The time for which a review that is not whole is not evicted.
const GRACE: Duration = Duration::from_millis(200);
/// Reviews that weigh more, in bytes as a tree, are decided on by the worker, one after another.
const LIGHT: usize = 2 * 1024 * 1024;
/// The most reviews that wait for the worker.
const QUEUE: usize = 16;
/// The longest that each of these waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// A longer answer, in bytes, holds a permit until it is sent. A shorter one fits into the buffers of the connection.
const SHORT: usize = 16 * 1024;
/// The longest message, in characters.
const LONGEST_MESSAGE: usize = 4096;
/// The most warnings of an answer.
const MOST_WARNINGS: usize = 32;
/// The most errors of one policy that a message has, besides the number of the others.
const MOST_ERRORS: usize = 10;
/// The longest warning, in characters. The API server cuts longer ones, and all of them when there are many.
const LONGEST_WARNING: usize = 250;

/// Answers the webhooks.
#[derive(Clone, Debug)]
pub struct AdmissionHandler {
    /// The index, for what is known of namespaces.
    pub state: Arc<ClusterState>,
    /// Whether people can be asked to approve calls.
    pub approvals: Arc<ApprovalService>,
    /// The API server, where the index may be behind it.
    pub namespaces: NamespaceLookup,
    /// The configuration.
    pub config: Arc<OperatorConfig>,
    /// The operator's namespace.
    pub namespace: Arc<str>,
    /// The URL at which sidecars reach the operator.
    pub stream_url: Arc<str>,
    /// The authorities to trust, in PEM.
    pub trust: watch::Receiver<Arc<str>>,
    /// The limits on reviews. One for a process.
    pub intake: Arc<Intake>,
    /// The metrics.
    pub metrics: AdmissionMetrics,
}

/// The limits on reviews: how many there are, how many bytes they hold, and the worker for large ones.
#[derive(Debug)]
pub struct Intake {
    requests: EvictingSemaphore,
    small: EvictingSemaphore,
    /// The first bytes of large bodies: a body that never comes takes nothing of the units for those that do.
    begun: EvictingSemaphore,
    large: EvictingSemaphore,
    worker: Worker,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            requests: EvictingSemaphore::new(REQUESTS, REQUESTS, GRACE),
            small: EvictingSemaphore::new(SMALL_BODIES, REQUESTS, GRACE),
            begun: EvictingSemaphore::new(SMALL_BODIES, REQUESTS, GRACE),
            large: EvictingSemaphore::new(LARGE_BODIES, REQUESTS, GRACE),
            worker: Worker::new("reviews", QUEUE),
        }
    }
}

/// A review that was read whole, with its permit.
struct ReviewBody {
    bytes: Bytes,
    permit: Arc<Mutex<EvictablePermit>>,
}

/// Bytes that hold a permit until they are dropped.
struct BytesWithPermit<T> {
    bytes: T,
    _permit: Arc<Mutex<EvictablePermit>>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for BytesWithPermit<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// The errors for which a review is not answered.
enum ReviewError {
    /// There is no room, or too much to do.
    Busy,
    /// The review did not arrive in time.
    Late,
    /// The review is larger than any.
    TooLarge,
    /// The connection broke off.
    Broken(String),
    /// The body is no review.
    Unreadable(String),
}

impl From<NoCapacity> for ReviewError {
    fn from(_: NoCapacity) -> Self {
        Self::Busy
    }
}

impl ReviewError {
    fn reason(&self) -> &'static str {
        if matches!(self, Self::Busy) { "Busy" } else { "Unreadable" }
    }

    fn response(&self) -> PortResponse {
        match self {
            Self::Busy => plain_text(StatusCode::SERVICE_UNAVAILABLE, "the operator has too many reviews to answer; try again"),
            Self::Late => plain_text(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time"),
            Self::TooLarge => plain_text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the review is larger than {LARGEST} bytes")),
            Self::Broken(why) => plain_text(StatusCode::BAD_REQUEST, &format!("the review cannot be read: {why}")),
            Self::Unreadable(why) => plain_text(StatusCode::BAD_REQUEST, why),
        }
    }
}

impl Intake {
    /// Reads a body. A permit for its bytes is taken first.
    async fn read<B>(&self, mut body: B, eviction: &EvictionSignal) -> Result<ReviewBody, ReviewError>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let known = body.size_hint().exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
        let whole = known.unwrap_or(LARGEST);
        if whole > LARGEST {
            return Err(ReviewError::TooLarge);
        }
        let room = if known.is_some_and(|known| known > SMALL) { &self.begun } else { &self.small };
        let mut most = whole.min(SMALL);
        let mut permit = room.take(most, eviction).await?;
        let mut bytes = Vec::with_capacity(most);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ReviewError::Broken(error.into().to_string()))?;
            let Ok(part) = frame.into_data() else { continue };
            if bytes.len() + part.len() > most {
                if most == whole {
                    return Err(ReviewError::TooLarge);
                }
                most = whole;
                permit = self.large.take(most, eviction).await?;
                bytes.reserve_exact(most - bytes.len());
            }
            bytes.extend_from_slice(&part);
        }
        let permit = Arc::new(Mutex::new(permit));
        Ok(ReviewBody { bytes: Bytes::from_owner(BytesWithPermit { bytes, _permit: Arc::clone(&permit) }), permit })
    }
}

/// Protects both permits of a review from eviction.
fn protect(place: &mut EvictablePermit, permit: &Mutex<EvictablePermit>) -> Result<(), ReviewError> {
    if place.protect() && lock(permit).protect() { Ok(()) } else { Err(ReviewError::Busy) }
}

/// Returns an answer that holds its permit until it is sent, if it is long. A client that does not read it is evicted with its
/// connection where others need the room.
fn held_until_sent(review: String, permit: Arc<Mutex<EvictablePermit>>, seat: Option<&Arc<Seat>>) -> Bytes {
    if review.len() <= SHORT {
        return Bytes::from(review);
    }
    if let Some(seat) = seat {
        lock(&permit).make_evictable(review.len(), seat.eviction());
    }
    Bytes::from_owner(BytesWithPermit { bytes: review.into_bytes(), _permit: permit })
}

fn lock(permit: &Mutex<EvictablePermit>) -> MutexGuard<'_, EvictablePermit> {
    permit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a review, and its labels in the metrics.
struct AdmissionResponse {
    allowed: bool,
    message: String,
    patch: Option<Vec<u8>>,
    warnings: Vec<String>,
    /// The audit annotation: `result` or `result: reason`.
    result: &'static str,
    reason: &'static str,
}

impl AdmissionResponse {
    fn too_complex(what: &str, error: Unweighed) -> Self {
        let advice = "make its lists shorter, or put together what is many small things";
        Self::refused("TooComplex", format!("the {what} {error}: it has too many lists, fields or containers; {advice}"))
    }

    fn refused(reason: &'static str, message: impl AsRef<str>) -> Self {
        // It may quote what nobody has looked at.
        let message = message.as_ref().chars().take(LONGEST_MESSAGE).collect();
        Self { allowed: false, message, patch: None, warnings: Vec::new(), result: "refused", reason }
    }

    fn allowed(result: &'static str, reason: &'static str) -> Self {
        Self { allowed: true, message: String::new(), patch: None, warnings: Vec::new(), result, reason }
    }

    fn into_review(self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": self.allowed});
        let Some(fields) = response.as_object_mut() else { return response };
        if !self.allowed {
            fields.insert("status".to_owned(), json!({"code": 422, "reason": "Invalid", "message": self.message}));
        }
        if let Some(patch) = self.patch {
            fields.insert("patchType".to_owned(), "JSONPatch".into());
            fields.insert("patch".to_owned(), BASE64.encode(&patch).into());
        }
        if !self.warnings.is_empty() {
            let cut = |warning: String| warning.chars().take(LONGEST_WARNING).collect::<String>();
            fields.insert("warnings".to_owned(), self.warnings.into_iter().take(MOST_WARNINGS).map(cut).collect());
        }
        let audit = if self.reason.is_empty() { self.result.to_owned() } else { format!("{}: {}", self.result, self.reason) };
        fields.insert("auditAnnotations".to_owned(), json!({"toolweir": audit}));
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

impl AdmissionHandler {
    /// Answers a request on the webhooks' port.
    pub async fn answer<B>(self, request: Request<B>) -> PortResponse
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let webhook = match request.uri().path() {
            "/inject" => "inject",
            "/check" => "check",
            "/validate" => "validate",
            _ => return plain_text(StatusCode::NOT_FOUND, "there are /inject, /check and /validate"),
        };
        if request.method() != Method::POST {
            return plain_text(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        }
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        let eviction = eviction_signal();
        let answered = tokio::select! {
            biased;
            () = evicted(&eviction) => Err(ReviewError::Busy),
            answered = self.review(webhook, request.into_body(), seat.as_ref(), &eviction) => answered,
        };
        answered.unwrap_or_else(|failed| {
            self.count(webhook, "error", failed.reason());
            failed.response()
        })
    }

    /// Answers a review. Until it is whole and about to be decided on, `eviction` may be signalled: then others need its room.
    async fn review<B>(
        &self,
        webhook: &'static str,
        body: B,
        seat: Option<&Arc<Seat>>,
        eviction: &EvictionSignal,
    ) -> Result<PortResponse, ReviewError>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let intake = &self.intake;
        let arrive = async {
            let place = intake.requests.take(1, eviction).await?;
            Ok::<_, ReviewError>((place, intake.read(body, eviction).await?))
        };
        let (mut place, ReviewBody { bytes, permit }) = timeout(ARRIVAL, arrive).await.map_err(|_| ReviewError::Late)??;
        // A review that is whole waits for its turn, and no longer for its sender.
        protect(&mut place, &permit)?;
        let _hold = seat.map(Seat::hold);
        // The time of a decision, without that of the network and of the sender.
        let began = Instant::now();
        let is_small = bytes.len() <= SMALL;
        let read = move || review::read(&bytes);
        let read = if is_small { read() } else { intake.worker.run(PATIENCE, read).await? };
        let asked = read.map_err(ReviewError::Unreadable)?;
        let mut namespace = Ok(None);
        if webhook != "validate" {
            // That may take a while, and anybody can cause it: others come first.
            place.make_evictable(1, eviction);
            lock(&permit).make_evictable(usize::MAX, eviction);
            namespace = self.namespace(&asked).await;
            protect(&mut place, &permit)?;
        }
        let is_light = is_small && asked.weight.is_ok_and(|weight| weight <= LIGHT);
        let here = is_light && (webhook != "validate" || asked.is_as_before());
        let decide = {
            let handler = self.clone();
            move || handler.decide(webhook, asked, namespace)
        };
        let review = if here { decide() } else { intake.worker.run(PATIENCE, decide).await? };
        if webhook == "inject" {
            self.metrics.duration.observe(began.elapsed().as_secs_f64());
        }
        Ok(with_content(held_until_sent(review, permit, seat), "application/json"))
    }

    /// Decides on a review. Returns the text of the answer.
    fn decide(
        &self,
        webhook: &'static str,
        asked: AdmissionRequest,
        namespace: Result<Option<NamespaceInfo>, AdmissionResponse>,
    ) -> String {
        let response = match namespace {
            Err(response) => response,
            Ok(namespace) if webhook == "inject" => self.inject(&asked, namespace.as_ref()),
            Ok(namespace) if webhook == "check" => self.check(&asked, namespace.as_ref()),
            Ok(_) => self.validate(&asked),
        };
        self.count(webhook, response.result, response.reason);
        tracing::info!(
            webhook,
            namespace = asked.namespace,
            name = asked.name,
            result = response.result,
            reason = response.reason,
            message = response.message,
            "reviewed"
        );
        let uid = asked.uid.clone();
        // The review is freed before its answer is written.
        drop(asked);
        response.into_review(&uid).to_string()
    }

    fn count(&self, webhook: &str, result: &str, reason: &str) {
        self.metrics.admissions.with_label_values(&[webhook, result, reason]).inc();
    }

    /// Returns what is known of the pod's namespace; none where that is nothing, or nothing depends on them. The API server sends
    /// only pods that opted in, by their own label or by that of their namespace. Where the index says that neither did, it may
    /// be behind, and the API server is asked: the index alone never lets a pod through without a sidecar.
    async fn namespace(&self, asked: &AdmissionRequest) -> Result<Option<NamespaceInfo>, AdmissionResponse> {
        let known = self.state.index().namespace(&asked.namespace).cloned();
        let own = asked.label.as_deref().and_then(OptIn::from_value);
        if asked.kind != "Pod"
            || !asked.subresource.is_empty()
            || self.config.protects(&asked.namespace, &self.namespace)
            || own.is_some()
            || known.as_ref().is_none_or(|info| namespace_opted_in(&info.labels))
        {
            return Ok(known);
        }
        self.namespaces.get(&asked.namespace).await.map_err(|why| {
            tracing::warn!(
                namespace = asked.namespace,
                error = why,
                "a pod was refused because the labels of its namespace are not known"
            );
            let message = format!(
                "whether namespace {} has the label {INJECT_LABEL}: enabled is not known, since the API server does not tell the \
                 operator: {why}. Try again",
                asked.namespace
            );
            AdmissionResponse::refused("NamespaceUnknown", message)
        })
    }

    /// Returns the pod of a review.
    fn pod(asked: &AdmissionRequest) -> Result<Value, AdmissionResponse> {
        if asked.kind != "Pod" {
            let message = format!("`{}` is not a Pod; only pods are injected", asked.kind.escape_debug());
            return Err(AdmissionResponse::refused("NotAPod", message));
        }
        if let Err(error) = asked.weight {
            return Err(AdmissionResponse::too_complex("pod", error));
        }
        asked.pod().map_err(|error| AdmissionResponse::refused("Invalid", format!("the pod cannot be read: {error}")))
    }

    /// Calls a function with all on which injection depends, or refuses where there are no certificates yet: a sidecar without
    /// authorities would never start.
    fn in_context(
        &self,
        asked: &AdmissionRequest,
        namespace: Option<&NamespaceInfo>,
        intercepts: bool,
        answer: impl FnOnce(&InjectionContext<'_>) -> AdmissionResponse,
    ) -> AdmissionResponse {
        let ca = self.trust.borrow().clone();
        if ca.is_empty() {
            return AdmissionResponse::refused("NotReady", "the operator has no certificates yet; try again");
        }
        answer(&InjectionContext {
            config: &self.config,
            namespace: &asked.namespace,
            namespace_info: namespace,
            operator_namespace: &self.namespace,
            stream_url: &self.stream_url,
            intercepts,
            seed: seed(),
            ca: &ca,
            version: env!("CARGO_PKG_VERSION"),
        })
    }

    /// Injects a pod.
    fn inject(&self, asked: &AdmissionRequest, namespace: Option<&NamespaceInfo>) -> AdmissionResponse {
        let pod = match Self::pod(asked) {
            Ok(pod) => pod,
            Err(refusal) => return refusal,
        };
        let labels = inject::labels(&pod);
        let intercepts = self.state.index().intercepts(&asked.namespace, namespace, &labels);
        self.in_context(asked, namespace, intercepts, |context| match inject::inject(&pod, context) {
            InjectionOutcome::Injected { pod: injected, warnings } => {
                let patch = serde_json::to_vec(&inject::patch(&pod, &injected)).ok();
                AdmissionResponse { patch, warnings, ..AdmissionResponse::allowed("injected", "") }
            }
            InjectionOutcome::Skipped(skip) => {
                AdmissionResponse { warnings: warning(skip), ..AdmissionResponse::allowed("skipped", skip.as_str()) }
            }
            InjectionOutcome::Refused(why) => AdmissionResponse::refused("Invalid", why),
        })
    }

    /// Checks a pod whose traffic is to be captured, or the ephemeral containers of one. The API server sends no others.
    fn check(&self, asked: &AdmissionRequest, namespace: Option<&NamespaceInfo>) -> AdmissionResponse {
        let pod = match Self::pod(asked) {
            Ok(pod) => pod,
            Err(refusal) => return refusal,
        };
        let is_mirror = pod.get("metadata").and_then(|metadata| metadata.get("annotations")?.get(MIRROR)).is_some();
        let skip = if self.config.protects(&asked.namespace, &self.namespace) {
            Some(SkipReason::ProtectedNamespace)
        } else if is_mirror {
            Some(SkipReason::MirrorPod)
        } else {
            (asked.subresource.is_empty() && captured::is_opted_out(&pod)).then_some(SkipReason::OptedOut)
        };
        if let Some(skip) = skip {
            return AdmissionResponse::allowed("skipped", skip.as_str());
        }
        let answer = |report: captured::CaptureReport| match report.reason() {
            None => AdmissionResponse::allowed("allowed", ""),
            Some(reason) => {
                let said = report.message();
                let message = format!("the pod's traffic is captured ({CAPTURE_LABEL}), and it could undo that: {said}");
                AdmissionResponse::refused(reason.as_str(), message)
            }
        };
        if !asked.subresource.is_empty() {
            return answer(captured::check_ephemeral(&pod));
        }
        // What the pod has is held against itself, not against policies, which may have changed since.
        self.in_context(asked, namespace, false, |context| answer(captured::check_new(&pod, context)))
    }

    /// Returns the warning for whoever has calls approved where nobody can be asked.
    fn approval_warnings(&self, entry: &PolicyEntry) -> Vec<String> {
        let guard = self.approvals.guard();
        let why = guard.unavailable().zip(asking_field(&entry.policy.spec));
        why.map(|(why, field)| format!("{field}: these calls are denied for now: {why}")).into_iter().collect()
    }

    /// Validates a policy.
    fn validate(&self, asked: &AdmissionRequest) -> AdmissionResponse {
        // What was let in before and only changes its labels or finalizers is not held up, also by a newer version that would
        // refuse it: it denies everything where it governs, and must be removable.
        if asked.is_unchanged() {
            return AdmissionResponse::allowed("allowed", "Unchanged");
        }
        if let Err(error) = asked.weight {
            return AdmissionResponse::too_complex("policy", error);
        }
        let document = match asked.policy() {
            Ok(Some(document)) => document,
            Ok(None) => {
                return AdmissionResponse::refused("NotAPolicy", format!("`{}` is not a policy", asked.kind.escape_debug()));
            }
            Err(error) => return AdmissionResponse::refused("Invalid", format!("the policy cannot be read: {error}")),
        };
        let entry = PolicyEntry::new(String::new(), 0, document, PolicyStatus::default(), &self.state.options);
        if entry.errors.is_empty() {
            AdmissionResponse { warnings: self.approval_warnings(&entry), ..AdmissionResponse::allowed("allowed", "") }
        } else {
            AdmissionResponse::refused("Invalid", error_list(&entry.errors))
        }
    }
}

/// Returns the path of the first `approval` of a policy; none where nobody is asked.
fn asking_field(policy: &MCPPolicySpec) -> Option<String> {
    let mut servers = policy.servers.iter().enumerate();
    servers.find_map(|(server, of_server)| {
        OperationKind::ALL.into_iter().find_map(|kind| {
            let entry = of_server.entries(kind).iter().position(|entry| entry.approval.is_some())?;
            Some(format!("spec.servers[{server}].{}[{entry}].approval", kind.field()))
        })
    })
}

/// Returns a number that cannot be foreseen: the keys of each hasher are random.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Returns the errors of a policy, separated by `; `.
fn error_list(errors: &[FieldError]) -> String {
    let mut lines: Vec<String> = errors.iter().take(MOST_ERRORS).map(ToString::to_string).collect();
    if errors.len() > MOST_ERRORS {
        lines.push(format!("and {} more", errors.len() - MOST_ERRORS));
    }
    lines.join("; ")
}

/// Returns the warning for whoever asked for a sidecar and gets none.
fn warning(skip: SkipReason) -> Vec<String> {
    if skip.warns() { vec![format!("not governed by Toolweir ({}): {}", skip.as_str(), skip.explain())] } else { Vec::new() }
}
