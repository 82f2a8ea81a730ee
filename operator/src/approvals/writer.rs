//! Writes `MCPApproval`s: creates them, writes their state, deletes them. Nothing here decides what is written.

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use toolweir_crds::{
    approval_request::{ApprovalState, MCPApprovalSpec},
    resource::MCPApproval,
};

use super::{
    metrics::MCPApprovalMetrics,
    notices,
    records::{ApprovalRecord, RequestKey, RequestingPod, digest},
    request::bounded,
    transition::DueState,
    webhook_message::WebhookMessage,
};
use crate::{
    event_notice::{COMPONENT, EventNotice},
    events::{EventMetrics, EventReport},
    index::PodKey,
};

/// The label of an object with the uid of its pod.
pub const POD_LABEL: &str = "toolweir.dev/pod-uid";
/// The most writes of this replica's streams at once.
const AT_ONCE: usize = 16;
/// The time limit of a write.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest error of the API server that an agent is told, in bytes.
const LONGEST_ERROR: usize = 300;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is written. The watch is about to show it.
    Written,
    /// The object is another than was thought. The watch is about to show it.
    Stale,
    /// It can never be written, for this reason.
    Refused(String),
    /// It could not be written now.
    Failed,
}

impl WriteOutcome {
    /// The label `result`.
    fn result(error: &kube::Error) -> &'static str {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => "conflict",
                404 => "gone",
                400..=499 if status.code != 408 && status.code != 429 => "refused",
                _ => "failed",
            },
            _ => "failed",
        }
    }
}

/// Writes to the API server, and says what it wrote as events and to the webhook.
pub struct ApprovalWriter {
    client: Client,
    metrics: MCPApprovalMetrics,
    events: EventQueue,
    webhook: Option<mpsc::Sender<WebhookMessage>>,
    calls: Semaphore,
}

/// Where events go, and the metric of those for which there is no room.
#[derive(Clone, Debug)]
pub struct EventQueue {
    /// The queue.
    pub reports: mpsc::Sender<EventReport>,
    /// The metric.
    pub metrics: EventMetrics,
}

impl fmt::Debug for ApprovalWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApprovalWriter").finish_non_exhaustive()
    }
}

impl ApprovalWriter {
    /// Creates a writer. `webhook` is the queue of messages, if there is a webhook.
    pub fn new(
        client: Client,
        metrics: MCPApprovalMetrics,
        events: EventQueue,
        webhook: Option<mpsc::Sender<WebhookMessage>>,
    ) -> Self {
        Self { client, metrics, events, webhook, calls: Semaphore::new(AT_ONCE) }
    }

    fn api(&self, namespace: &str) -> Api<MCPApproval> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a call, with a place and a time limit; counts and logs what became of it.
    async fn call<T>(
        &self,
        operation: &'static str,
        object: (&str, &str),
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Option<kube::Error>> {
        let _place = self.calls.acquire().await;
        let (result, answer) = match timeout(LIMIT, call).await {
            Ok(Ok(answer)) => ("ok", Ok(answer)),
            Ok(Err(error)) => (WriteOutcome::result(&error), Err(Some(error))),
            Err(_) => ("failed", Err(None)),
        };
        self.metrics.count_write(operation, result);
        let (namespace, name) = object;
        match &answer {
            Err(Some(error)) if result == "refused" || result == "failed" => {
                tracing::warn!(error = api_message(error), operation, namespace, name, "an MCPApproval cannot be written");
            }
            Err(None) => tracing::warn!(operation, namespace, name, seconds = LIMIT.as_secs(), "the API server does not answer"),
            _ => {}
        }
        answer
    }

    /// Creates an object of a request, and tells people of it.
    pub async fn create(&self, pod: &RequestingPod, name: &str, spec: MCPApprovalSpec, now: Timestamp) -> WriteOutcome {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(pod.namespace.clone()),
            labels: Some(BTreeMap::from([
                (POD_LABEL.to_owned(), pod.uid.clone()),
                ("app.kubernetes.io/managed-by".to_owned(), COMPONENT.to_owned()),
            ])),
            ..ObjectMeta::default()
        };
        let object = MCPApproval { metadata, spec, status: None };
        let api = self.api(&pod.namespace);
        let params = PostParams { field_manager: Some(COMPONENT.to_owned()), ..PostParams::default() };
        match self.call("create", (&pod.namespace, name), api.create(&params, &object)).await {
            Ok(made) => {
                tracing::info!(approval = %PodKey { namespace: pod.namespace.clone(), name: name.to_owned() }, pod = made.spec.agent.pod, "a person is asked");
                let record = ApprovalRecord::read(&made, now);
                let key = (pod.clone(), name.into());
                let pending = DueState::pending(&record);
                self.tell(&made, now);
                // Where that fails, it is written like any other state.
                if let Some(pending) = pending {
                    let _ = self.write(&key, &record, &pending, now).await;
                }
                WriteOutcome::Written
            }
            Err(Some(error)) if WriteOutcome::result(&error) == "conflict" => self.is_ours(pod, name, &object.spec).await,
            Err(Some(error)) if WriteOutcome::result(&error) != "failed" => WriteOutcome::Refused(refusal(&error)),
            Err(_) => WriteOutcome::Failed,
        }
    }

    /// There is an object of this name. Returns whether it is the one that was to be created.
    async fn is_ours(&self, pod: &RequestingPod, name: &str, spec: &MCPApprovalSpec) -> WriteOutcome {
        match timeout(LIMIT, self.api(&pod.namespace).get_opt(name)).await {
            Ok(Ok(Some(found))) if found.spec.agent.pod_uid == pod.uid && digest(&found.spec) == digest(spec) => {
                WriteOutcome::Written
            }
            Ok(Ok(Some(_))) => WriteOutcome::Refused("its name is that of another request".to_owned()),
            _ => WriteOutcome::Failed,
        }
    }

    /// Writes a state. `record` is the object on which that was decided.
    pub async fn write(&self, key: &RequestKey, record: &ApprovalRecord, due: &DueState, now: Timestamp) -> WriteOutcome {
        let (pod, name) = key;
        let version = record.open.as_ref().map(|open| open.resource_version.as_str());
        let patch = Patch::Merge(due.patch(version, now));
        let params = PatchParams { field_manager: Some(COMPONENT.to_owned()), ..PatchParams::default() };
        let api = self.api(&pod.namespace);
        match self.call("status", (&pod.namespace, name), api.patch_status(name, &params, &patch)).await {
            Ok(written) => {
                if due.state != ApprovalState::Pending {
                    let approval = format!("{}/{name}", pod.namespace);
                    tracing::info!(approval, state = due.state.as_str(), message = due.message, "a request has another state");
                }
                if matches!(due.state, ApprovalState::Approved | ApprovalState::Denied) {
                    self.event(notices::decided(&written, due.state, now));
                }
                WriteOutcome::Written
            }
            Err(Some(error)) => match WriteOutcome::result(&error) {
                "conflict" | "gone" => WriteOutcome::Stale,
                _ => WriteOutcome::Failed,
            },
            Err(None) => WriteOutcome::Failed,
        }
    }

    /// Deletes an object that has ended.
    pub async fn delete(&self, (pod, name): &RequestKey) -> WriteOutcome {
        let api = self.api(&pod.namespace);
        match self.call("delete", (&pod.namespace, name), api.delete(name, &DeleteParams::default())).await {
            Ok(_) => WriteOutcome::Written,
            Err(Some(error)) if WriteOutcome::result(&error) == "gone" => WriteOutcome::Stale,
            Err(_) => WriteOutcome::Failed,
        }
    }

    /// Tells people of a new request.
    fn tell(&self, made: &MCPApproval, now: Timestamp) {
        self.event(notices::requested(made, now));
        let Some(webhook) = &self.webhook else { return };
        if webhook.try_send(WebhookMessage::new(&made.namespace().unwrap_or_default(), &made.name_any(), &made.spec)).is_err() {
            self.metrics.count_delivery("dropped");
            tracing::warn!(approval = made.name_any(), "too many messages wait for the webhook; it is not told of a request");
        }
    }

    fn event(&self, notice: EventNotice) {
        if self.events.reports.try_send(EventReport::Approval(Box::new(notice))).is_err() {
            self.events.metrics.count_no_room();
        }
    }
}

/// Returns why the API server takes no object, for the agent and for people.
fn refusal(error: &kube::Error) -> String {
    format!("the API server does not take the request: {}", api_message(error))
}

/// Returns what the API server says, in its own words.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => bounded(&status.message, LONGEST_ERROR),
        error => bounded(&error.to_string(), LONGEST_ERROR),
    }
}
