//! The webhooks: `/inject` for pods, `/validate` for policies. What comes in and goes out are `AdmissionReview`s
//! (Kubernetes, "Dynamic Admission Control", "Webhook request and response").

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use toolweir_crds::{FieldError, resource::PolicyStatus};

use crate::{
    config::Config,
    index::Entry,
    inject::{self, INJECT_LABEL, Outcome, Skip},
    namespaces::Namespaces,
    review::{self, Asked},
    room::{self, Bell, Full as NoRoom, Room, Ticket, Worker},
    seats::Seat,
    select::Labels,
    stream::text,
    weigh::Unweighed,
    world::World,
};

/// The largest review that is read, in bytes: twice what etcd holds of one object, with some for the frame.
const LARGEST: usize = 8 * 1024 * 1024;
/// How long a review may take to arrive, with the time for which it waits for room.
const ARRIVAL: Duration = Duration::from_secs(5);
/// How many reviews may be under way at once, and how many may wait for that.
const REQUESTS: usize = 256;
/// The largest body that counts as small, in bytes. Nearly every one does; large ones do not keep them waiting.
const SMALL: usize = 256 * 1024;
/// The most bytes of small bodies that are held at once.
const SMALL_BODIES: usize = 8 * 1024 * 1024;
/// The most bytes of large bodies.
const LARGE_BODIES: usize = 16 * 1024 * 1024;
/// How long a review that is not whole keeps its room, where others need it.
const GRACE: Duration = Duration::from_millis(200);
/// What weighs more is decided on by the worker, one after another.
const LIGHT: usize = 2 * 1024 * 1024;
/// How many wait for the worker.
const QUEUE: usize = 16;
/// How long each of these waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// What is longer takes room until it is sent, in bytes. What is shorter has room in the connection.
const SHORT: usize = 16 * 1024;
/// The longest message, in characters.
const LONGEST_MESSAGE: usize = 4096;
/// At most this many warnings are told.
const MOST_WARNINGS: usize = 32;
/// At most this many errors of one policy are told, and the number of the others.
const MOST_ERRORS: usize = 10;
/// The longest warning, in characters. The API server cuts longer ones, and all of them when there are many.
const LONGEST_WARNING: usize = 250;

/// The closed set of the label `result` of `toolweir_operator_admissions_total`.
pub const RESULTS: [&str; 5] = ["injected", "skipped", "allowed", "refused", "error"];
/// The closed set of its label `reason`, together with [`Skip::ALL`] and the empty one.
pub const REASONS: [&str; 9] =
    ["Unchanged", "Invalid", "NotAPod", "NotAPolicy", "NotReady", "NamespaceUnknown", "TooComplex", "Unreadable", "Busy"];

/// What answers the webhooks.
#[derive(Clone, Debug)]
pub struct Webhooks {
    /// The index, for the labels of namespaces, and the metrics.
    pub world: Arc<World>,
    /// The API server, where the index may be behind it.
    pub namespaces: Namespaces,
    /// The configuration.
    pub config: Arc<Config>,
    /// The operator's namespace.
    pub namespace: Arc<str>,
    /// Where sidecars reach the operator.
    pub stream_url: Arc<str>,
    /// The authorities to trust, in PEM.
    pub trust: watch::Receiver<Arc<str>>,
}

/// What reviews of strangers may take. There is one of these in a process.
#[derive(Debug)]
pub struct Intake {
    requests: Room,
    small: Room,
    /// Of large bodies what comes first: one that does not come takes nothing of the room for those that do.
    begun: Room,
    large: Room,
    worker: Worker,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            requests: Room::new(REQUESTS, REQUESTS, GRACE),
            small: Room::new(SMALL_BODIES, REQUESTS, GRACE),
            begun: Room::new(SMALL_BODIES, REQUESTS, GRACE),
            large: Room::new(LARGE_BODIES, REQUESTS, GRACE),
            worker: Worker::new("reviews", QUEUE),
        }
    }
}

/// A review that was read whole, with the room that it takes.
struct Body {
    bytes: Bytes,
    ticket: Arc<Mutex<Ticket>>,
}

/// Bytes that take room for as long as anybody has them.
struct Held<T> {
    bytes: T,
    _ticket: Arc<Mutex<Ticket>>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Why a review is not answered.
enum Failed {
    /// There is no room, or too much to do.
    Busy,
    /// It did not arrive in time.
    Late,
    /// It is larger than any.
    TooLarge,
    /// It broke off.
    Broken(String),
    /// It is no review.
    Unreadable(String),
}

impl From<NoRoom> for Failed {
    fn from(_: NoRoom) -> Self {
        Self::Busy
    }
}

impl Failed {
    fn reason(&self) -> &'static str {
        if matches!(self, Self::Busy) { "Busy" } else { "Unreadable" }
    }

    fn response(&self) -> Response<BoxBody<Bytes, Infallible>> {
        match self {
            Self::Busy => text(StatusCode::SERVICE_UNAVAILABLE, "the operator has too many reviews to answer; try again"),
            Self::Late => text(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time"),
            Self::TooLarge => text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the review is larger than {LARGEST} bytes")),
            Self::Broken(why) => text(StatusCode::BAD_REQUEST, &format!("the review cannot be read: {why}")),
            Self::Unreadable(why) => text(StatusCode::BAD_REQUEST, why),
        }
    }
}

impl Intake {
    /// Reads a body, with room taken before a byte is.
    async fn read<B>(&self, mut body: B, bell: &Bell) -> Result<Body, Failed>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let known = body.size_hint().exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
        let whole = known.unwrap_or(LARGEST);
        if whole > LARGEST {
            return Err(Failed::TooLarge);
        }
        let room = if known.is_some_and(|known| known > SMALL) { &self.begun } else { &self.small };
        let mut most = whole.min(SMALL);
        let mut ticket = room.take(most, bell).await?;
        let mut bytes = Vec::with_capacity(most);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failed::Broken(error.into().to_string()))?;
            let Ok(part) = frame.into_data() else { continue };
            if bytes.len() + part.len() > most {
                if most == whole {
                    return Err(Failed::TooLarge);
                }
                most = whole;
                ticket = self.large.take(most, bell).await?;
                bytes.reserve_exact(most - bytes.len());
            }
            bytes.extend_from_slice(&part);
        }
        let ticket = Arc::new(Mutex::new(ticket));
        Ok(Body { bytes: Bytes::from_owner(Held { bytes, _ticket: Arc::clone(&ticket) }), ticket })
    }
}

fn lock(ticket: &Mutex<Ticket>) -> MutexGuard<'_, Ticket> {
    ticket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a review, and how it is counted.
struct Said {
    allowed: bool,
    message: String,
    patch: Option<Vec<u8>>,
    warnings: Vec<String>,
    /// The audit annotation: `result` or `result: reason`.
    result: &'static str,
    reason: &'static str,
}

impl Said {
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

impl Webhooks {
    /// Answers a request on the webhooks' port.
    pub async fn answer<B>(self, request: Request<B>) -> Response<BoxBody<Bytes, Infallible>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let webhook = match request.uri().path() {
            "/inject" => "inject",
            "/validate" => "validate",
            _ => return text(StatusCode::NOT_FOUND, "there are /inject and /validate"),
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        }
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        let bell = room::bell();
        let answered = tokio::select! {
            biased;
            () = room::rung(&bell) => Err(Failed::Busy),
            answered = self.review(webhook, request.into_body(), seat.as_ref(), &bell) => answered,
        };
        answered.unwrap_or_else(|failed| {
            self.count(webhook, "error", failed.reason());
            failed.response()
        })
    }

    /// Answers a review. Until it is whole and about to be decided on, `bell` may ring: then others need its room.
    async fn review<B>(
        &self,
        webhook: &'static str,
        body: B,
        seat: Option<&Arc<Seat>>,
        bell: &Bell,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Failed>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let intake = &self.world.intake;
        let arrive = async {
            let place = intake.requests.take(1, bell).await?;
            Ok::<_, Failed>((place, intake.read(body, bell).await?))
        };
        let (mut place, Body { bytes, ticket }) = timeout(ARRIVAL, arrive).await.map_err(|_| Failed::Late)??;
        // What is whole waits for its turn, and no longer for its sender.
        if !(place.settle() && lock(&ticket).settle()) {
            return Err(Failed::Busy);
        }
        let _hold = seat.map(Seat::hold);
        // The time of a decision, without that of the network and of whoever sent it.
        let began = Instant::now();
        let is_small = bytes.len() <= SMALL;
        let read = move || review::read(&bytes);
        let read = if is_small { read() } else { intake.worker.run(PATIENCE, read).await? };
        let asked = read.map_err(Failed::Unreadable)?;
        let mut labels = Ok(None);
        if webhook == "inject" {
            // That may take a while, for which anybody can ask: others come first.
            place.reopen(1, bell);
            lock(&ticket).reopen(usize::MAX, bell);
            labels = self.namespace(&asked).await;
            if !(place.settle() && lock(&ticket).settle()) {
                return Err(Failed::Busy);
            }
        }
        let is_light = is_small && asked.weight.is_ok_and(|weight| weight <= LIGHT);
        let here = is_light && (webhook == "inject" || asked.is_as_before());
        let decide = {
            let webhooks = self.clone();
            move || {
                let said = match labels {
                    Err(said) => said,
                    Ok(labels) if webhook == "inject" => webhooks.inject(&asked, labels.as_ref()),
                    Ok(_) => webhooks.validate(&asked),
                };
                webhooks.count(webhook, said.result, said.reason);
                tracing::info!(
                    webhook,
                    namespace = asked.namespace,
                    name = asked.name,
                    result = said.result,
                    reason = said.reason,
                    message = said.message,
                    "reviewed"
                );
                let uid = asked.uid.clone();
                // The review goes before its answer is written.
                drop(asked);
                said.into_review(&uid).to_string()
            }
        };
        let review = if here { decide() } else { intake.worker.run(PATIENCE, decide).await? };
        if webhook == "inject" {
            self.world.metrics.admission_duration.observe(began.elapsed().as_secs_f64());
        }
        // An answer that nobody reads takes room too, and its connection is closed where others need it.
        if let Some(seat) = seat
            && review.len() > SHORT
        {
            lock(&ticket).reopen(review.len(), seat.bell());
        }
        let review = if review.len() > SHORT {
            Bytes::from_owner(Held { bytes: review.into_bytes(), _ticket: ticket })
        } else {
            Bytes::from(review)
        };
        let mut response = Response::new(Full::new(review).boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    fn count(&self, webhook: &str, result: &str, reason: &str) {
        self.world.metrics.admissions.with_label_values(&[webhook, result, reason]).inc();
    }

    /// The labels of the pod's namespace; none where they are not known, or nothing depends on them. The API server asks about
    /// no other pods but those that opted in, by their own label or by that of their namespace. So where the index says that
    /// nobody did, it may be behind, and the API server is asked again: an index alone never lets a pod through without a sidecar.
    async fn namespace(&self, asked: &Asked) -> Result<Option<Labels>, Said> {
        let known = self.world.index().namespace(&asked.namespace).cloned();
        let opted_in = |labels: &Labels| labels.get(INJECT_LABEL).is_some_and(|value| value == "enabled");
        let own = asked.label.as_deref();
        if asked.kind != "Pod"
            || self.config.protects(&asked.namespace, &self.namespace)
            || matches!(own, Some("enabled" | "disabled"))
            || known.as_ref().is_none_or(opted_in)
        {
            return Ok(known);
        }
        self.namespaces.labels(&asked.namespace).await.map_err(|why| {
            tracing::warn!(
                namespace = asked.namespace,
                error = why,
                "whether a namespace opted in is not known; its pod is refused"
            );
            let message = format!(
                "whether namespace {} has the label {INJECT_LABEL}: enabled is not known, since the API server does not tell the \
                 operator: {why}. Try again",
                asked.namespace
            );
            Said::refused("NamespaceUnknown", message)
        })
    }

    /// What becomes of a pod.
    fn inject(&self, asked: &Asked, labels: Option<&Labels>) -> Said {
        if asked.kind != "Pod" {
            return Said::refused("NotAPod", format!("`{}` is no Pod; only pods are injected", asked.kind.escape_debug()));
        }
        if let Err(error) = asked.weight {
            return Said::too_complex("pod", error);
        }
        let pod = match asked.pod() {
            Ok(pod) => pod,
            Err(error) => return Said::refused("Invalid", format!("the pod cannot be read: {error}")),
        };
        let ca = self.trust.borrow().clone();
        if ca.is_empty() {
            // A sidecar that trusts nobody would never start.
            return Said::refused("NotReady", "the operator has no certificates yet; try again");
        }
        let context = inject::Context {
            config: &self.config,
            namespace: &asked.namespace,
            namespace_labels: labels,
            operator_namespace: &self.namespace,
            stream_url: &self.stream_url,
            ca: &ca,
            version: env!("CARGO_PKG_VERSION"),
        };
        match inject::inject(&pod, &context) {
            Outcome::Injected { pod: injected, warnings } => {
                let patch = serde_json::to_vec(&inject::patch(&pod, &injected)).ok();
                Said { patch, warnings, ..Said::allowed("injected", "") }
            }
            Outcome::Skipped(skip) => Said { warnings: warning(skip), ..Said::allowed("skipped", skip.as_str()) },
            Outcome::Refused(why) => Said::refused("Invalid", why),
        }
    }

    /// Whether a policy means something.
    fn validate(&self, asked: &Asked) -> Said {
        // What was let in before and only changes its labels or finalizers is not held up, also by a newer version that would
        // refuse it: it denies everything where it governs, and must be removable.
        if asked.is_unchanged() {
            return Said::allowed("allowed", "Unchanged");
        }
        if let Err(error) = asked.weight {
            return Said::too_complex("policy", error);
        }
        let document = match asked.policy() {
            Ok(Some(document)) => document,
            Ok(None) => return Said::refused("NotAPolicy", format!("`{}` is no policy", asked.kind.escape_debug())),
            Err(error) => return Said::refused("Invalid", format!("the policy cannot be read: {error}")),
        };
        let entry = Entry::new(String::new(), 0, document, PolicyStatus::default(), &self.world.options);
        if entry.errors.is_empty() { Said::allowed("allowed", "") } else { Said::refused("Invalid", told(&entry.errors)) }
    }
}

/// The errors of a policy as one line each.
fn told(errors: &[FieldError]) -> String {
    let mut lines: Vec<String> = errors.iter().take(MOST_ERRORS).map(ToString::to_string).collect();
    if errors.len() > MOST_ERRORS {
        lines.push(format!("and {} more", errors.len() - MOST_ERRORS));
    }
    lines.join("; ")
}

/// What whoever asked for a sidecar is told when there is none.
fn warning(skip: Skip) -> Vec<String> {
    if skip.warns() { vec![format!("not governed by Toolweir ({}): {}", skip.as_str(), skip.explain())] } else { Vec::new() }
}
