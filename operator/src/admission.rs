//! The webhooks: `/inject` for pods, `/validate` for policies. What comes in and goes out are `AdmissionReview`s
//! (Kubernetes, "Dynamic Admission Control", "Webhook request and response").

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use toolweir_crds::{
    Document, FieldError,
    resource::{MCPClusterPolicy, MCPPolicy, PolicyStatus},
};

use crate::{
    config::Config,
    index::Entry,
    inject::{self, INJECT_LABEL, Outcome, Skip},
    namespaces::Namespaces,
    select::Labels,
    stream::text,
    world::World,
};

/// The largest review that is read, in bytes: twice what etcd holds of one object, with some for the frame.
const LARGEST: usize = 8 * 1024 * 1024;
/// How long a review may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);
/// At most this many errors of one policy are told, and the number of the others.
const MOST_ERRORS: usize = 10;
/// The longest warning, in characters. The API server cuts longer ones, and all of them when there are many.
const LONGEST_WARNING: usize = 250;

/// The closed set of the label `result` of `toolweir_operator_admissions_total`.
pub const RESULTS: [&str; 5] = ["injected", "skipped", "allowed", "refused", "error"];
/// The closed set of its label `reason`, together with [`Skip::ALL`] and the empty one.
pub const REASONS: [&str; 7] = ["Unchanged", "Invalid", "NotAPod", "NotAPolicy", "NotReady", "NamespaceUnknown", "Unreadable"];

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

/// What is read of an `AdmissionReview`. Objects stay as they are: types of one version would drop what a newer one adds.
#[derive(Debug, Deserialize)]
struct Review {
    request: Option<Asked>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    uid: String,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Kind {
    #[serde(default)]
    kind: String,
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
    fn refused(reason: &'static str, message: String) -> Self {
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
            fields.insert("warnings".to_owned(), self.warnings.into_iter().map(cut).collect());
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
        B: Body<Data = Bytes>,
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
        let body = match timeout(ARRIVAL, Limited::new(request.into_body(), LARGEST).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                self.count(webhook, "error", "Unreadable");
                return text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the review cannot be read: {error}"));
            }
            Err(_) => {
                self.count(webhook, "error", "Unreadable");
                return text(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time");
            }
        };
        // The time of a decision, without that of the network and of whoever sent it.
        let began = Instant::now();
        let asked = match serde_json::from_slice::<Review>(&body) {
            Ok(Review { request: Some(asked) }) => asked,
            Ok(Review { request: None }) => {
                self.count(webhook, "error", "Unreadable");
                return text(StatusCode::BAD_REQUEST, "the AdmissionReview has no request");
            }
            Err(error) => {
                self.count(webhook, "error", "Unreadable");
                return text(StatusCode::BAD_REQUEST, &format!("this is no AdmissionReview: {error}"));
            }
        };
        let said = if webhook == "inject" {
            match self.namespace(&asked).await {
                Ok(labels) => self.inject(&asked, labels.as_ref()),
                Err(said) => said,
            }
        } else {
            self.validate(&asked)
        };
        self.count(webhook, said.result, said.reason);
        let object = asked.object.pointer("/metadata/name").or_else(|| asked.object.pointer("/metadata/generateName"));
        let name = object.and_then(Value::as_str).unwrap_or_default();
        tracing::info!(
            webhook,
            namespace = asked.namespace,
            name,
            result = said.result,
            reason = said.reason,
            message = said.message,
            "reviewed"
        );
        let review = said.into_review(&asked.uid).to_string();
        if webhook == "inject" {
            self.world.metrics.admission_duration.observe(began.elapsed().as_secs_f64());
        }
        let mut response = Response::new(Full::new(Bytes::from(review)).boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
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
        let own = asked.object.pointer("/metadata/labels").and_then(|labels| labels.get(INJECT_LABEL)?.as_str());
        if asked.kind.kind != "Pod"
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
        if asked.kind.kind != "Pod" {
            return Said::refused("NotAPod", format!("`{}` is no Pod; only pods are injected", asked.kind.kind.escape_debug()));
        }
        let ca = self.trust.borrow().clone();
        if ca.is_empty() {
            // A sidecar that trusts nobody would never start.
            return Said::refused("NotReady", "the operator has no certificates yet; try again".to_owned());
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
        match inject::inject(&asked.object, &context) {
            Outcome::Injected { pod, warnings } => {
                let patch = serde_json::to_vec(&inject::patch(&asked.object, &pod)).ok();
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
        if asked.old_object.get("spec").is_some_and(|spec| Some(spec) == asked.object.get("spec")) {
            return Said::allowed("allowed", "Unchanged");
        }
        let document = match asked.kind.kind.as_str() {
            "MCPPolicy" => serde_json::from_value::<MCPPolicy>(asked.object.clone()).map(|policy| Document::from(&policy)),
            "MCPClusterPolicy" => {
                serde_json::from_value::<MCPClusterPolicy>(asked.object.clone()).map(|policy| Document::from(&policy))
            }
            other => return Said::refused("NotAPolicy", format!("`{}` is no policy", other.escape_debug())),
        };
        let document = match document {
            Ok(document) => document,
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
