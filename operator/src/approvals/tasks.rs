//! What the operator does for approvals all the time: follows the objects, checks the guard, and, as leader, looks after requests whose
//! pods have no stream.

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use toolweir_crds::resource::MCPApproval;

use super::{
    guarded::ApprovalGuard,
    records::{ApprovalRecord, RequestingPod, key},
    service::ApprovalService,
    upkeep::{PodDirectory, orphans, outdated},
    writer::{ApprovalWriter, api_message},
};
use crate::{
    cluster_state::ClusterState,
    index::{IncludedPolicy, PodKey},
    watch::WatchFailures,
};

/// The most objects of a page of a list: each may have some 30 KiB.
const PAGE: u32 = 50;
/// Between two checks of the guard.
const CHECK: Duration = Duration::from_secs(30);
/// For so long, what was seen last holds where the API server does not answer.
const LAST_SEEN: Duration = Duration::from_secs(90);
/// Between two looks of the leader.
const LOOK: Duration = Duration::from_secs(5);
/// The most states that are written, and the most objects that are deleted, at one look.
const AT_ONE_LOOK: usize = 50;

/// Follows the objects, for ever.
pub async fn follow(client: Client, service: Arc<ApprovalService>, failures: WatchFailures) {
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = pin!(watcher(Api::<MCPApproval>::all(client), config).default_backoff());
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push((key(&object), ApprovalRecord::read(&object, Timestamp::now()))),
            Ok(watcher::Event::InitDone) => service.replace(std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(object)) => service.apply(&object),
            Ok(watcher::Event::Delete(object)) => service.remove(&object),
            Err(error) => failures.report("mcpapprovals", &error),
        }
    }
}

/// Checks whether the API server checks who decides, for ever. `name` is that of the policy and of its binding.
pub async fn guard(client: Client, service: Arc<ApprovalService>, name: String) {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client);
    let mut ticks = interval(CHECK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let guard = match tokio::try_join!(find(&policies, &name), find(&bindings, &name)) {
            Ok((policy, binding)) => {
                seen = Some(Instant::now());
                ApprovalGuard::of(&name, policy.as_ref(), binding.as_ref())
            }
            Err(error) if seen.is_some_and(|seen| seen.elapsed() < LAST_SEEN) => {
                tracing::debug!(%error, name, "the guard of approvals cannot be checked; it is tried again");
                continue;
            }
            Err(error) => ApprovalGuard::Unknown(format!(
                "the operator cannot see the ValidatingAdmissionPolicy {name}, without which nobody checks who decides ({}); its ClusterRole \
                 comes with the chart (approvals.enabled)",
                api_message(&error)
            )),
        };
        let why = guard.unavailable().map(ToOwned::to_owned);
        let before = service.set_guard(guard.clone());
        if before.as_ref() == Some(&guard) {
            continue;
        }
        match why {
            Some(why) => tracing::error!(why, "nobody can approve a call"),
            None => tracing::info!(name, "the API server checks who decides on calls"),
        }
    }
}

/// Returns an object; none where there is none, or where the API server does not know its kind.
async fn find<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.get(name).await {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks after requests whose pods have no stream while this replica leads, for ever.
pub async fn lead(
    service: Arc<ApprovalService>,
    state: Arc<ClusterState>,
    retention: Duration,
    mut leads: watch::Receiver<bool>,
) {
    let Some(writer) = &service.writer else { return std::future::pending().await };
    let mut settled = service.settled();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() || settled.wait_for(|settled| *settled).await.is_err() {
            return;
        }
        while *leads.borrow() {
            look(&service, writer, &state, retention).await;
            tokio::select! {
                () = sleep(LOOK) => {}
                changed = leads.changed() => if changed.is_err() { return },
            }
        }
        service.metrics.forget();
    }
}

/// Writes and deletes what is due.
async fn look(service: &ApprovalService, writer: &ApprovalWriter, state: &ClusterState, retention: Duration) {
    if !state.index().synced() {
        return;
    }
    let now = Timestamp::now();
    let guard = service.guard();
    let (due, outdated) = {
        let records = service.records();
        service.metrics.set(&records);
        let pods = Pods { service, state };
        (orphans(&records, &pods, &guard, now, AT_ONE_LOOK), outdated(&records, retention, now, AT_ONE_LOOK))
    };
    for (key, record, due) in due {
        writer.write(&key, &record, &due, now).await;
    }
    for key in outdated {
        writer.delete(&key).await;
    }
}

/// The pods as the index has them.
struct Pods<'a> {
    service: &'a ApprovalService,
    state: &'a ClusterState,
}

impl Pods<'_> {
    fn key(pod: &RequestingPod, name: &str) -> PodKey {
        PodKey { namespace: pod.namespace.clone(), name: name.to_owned() }
    }
}

impl PodDirectory for Pods<'_> {
    fn is_there(&self, pod: &RequestingPod, name: &str) -> bool {
        self.state.index().has(&Self::key(pod, name), &pod.uid)
    }

    fn has_stream(&self, pod: &RequestingPod) -> bool {
        self.service.has_stream(pod)
    }

    fn governing(&self, pod: &RequestingPod, name: &str) -> Vec<IncludedPolicy> {
        let snapshot = self.state.index().snapshot(&Self::key(pod, name), &pod.uid);
        snapshot.map(|snapshot| snapshot.includes.clone()).unwrap_or_default()
    }
}
