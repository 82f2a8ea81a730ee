//! The settings of approvals, and how their parts are started.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    service::ApprovalService,
    tasks,
    webhook::{self, WebhookFiles},
    webhook_message::WebhookMessage,
    writer::{ApprovalWriter, EventQueue},
};
use crate::{cluster_state::ClusterState, operator_metrics::OperatorMetrics};

/// The settings where approvals are on.
#[derive(Clone, Debug)]
pub struct ApprovalSettings {
    /// How long objects are kept after they ended.
    pub retention: Duration,
    /// The name of the `ValidatingAdmissionPolicy` that checks who decides, and of its binding.
    pub guard: String,
    /// The webhook that is told of requests, if there is one.
    pub webhook: Option<WebhookFiles>,
}

/// The approvals of this replica, before they run.
pub struct PreparedApprovals {
    /// What the streams use.
    pub service: Arc<ApprovalService>,
    client: Client,
    settings: Option<ApprovalSettings>,
    messages: Option<mpsc::Receiver<WebhookMessage>>,
}

impl PreparedApprovals {
    /// Prepares them. Without settings approvals are off.
    pub fn new(settings: Option<ApprovalSettings>, client: Client, events: EventQueue, metrics: &OperatorMetrics) -> Self {
        let mut messages = None;
        let writer = settings.as_ref().map(|settings| {
            let webhook = settings.webhook.as_ref().map(|_| {
                let (sender, receiver) = mpsc::channel(webhook::QUEUE);
                messages = Some(receiver);
                sender
            });
            ApprovalWriter::new(client.clone(), metrics.approvals.clone(), events, webhook)
        });
        let service = Arc::new(ApprovalService::new(writer, metrics.approvals.clone()));
        Self { service, client, settings, messages }
    }

    /// Starts all parts. None of them ends by itself.
    pub fn start(
        self,
        parts: &mut JoinSet<()>,
        state: &Arc<ClusterState>,
        metrics: &OperatorMetrics,
        leads: watch::Receiver<bool>,
    ) {
        let Some(settings) = self.settings else { return };
        let service = || Arc::clone(&self.service);
        parts.spawn(tasks::follow(self.client.clone(), service(), metrics.watches.clone()));
        parts.spawn(tasks::guard(self.client.clone(), service(), settings.guard));
        parts.spawn(tasks::lead(service(), Arc::clone(state), settings.retention, leads));
        if let Some((files, messages)) = settings.webhook.zip(self.messages) {
            parts.spawn(webhook::deliver(files, messages, metrics.approvals.clone()));
        }
    }
}
