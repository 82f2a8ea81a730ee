//! Writes the acknowledgements of this replica's sidecars, for the other replicas, and, as leader, the status of every policy.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use prometheus::{IntCounterVec, IntGaugeVec};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use toolweir_crds::resource::{MCPClusterPolicy, MCPPolicy, PolicyStatus};
use toolweir_engine::PolicyId;

use crate::{
    acks::{self, Tallies},
    cluster_state::ClusterState,
    index::Index,
    metrics::OperatorRegistry,
    status::{self, DesiredStatus},
    watch::WatchFailures,
};

/// The label of the `ConfigMaps` in which replicas publish the acknowledgements of their sidecars.
pub const ACKS_LABEL: &str = "toolweir.dev/acks";
/// At most one write of a status, and of a replica's acknowledgements, in this time.
const PACE: Duration = Duration::from_secs(1);
/// The time that a new leader waits before it writes: acknowledgements of sidecars and of other replicas are about to come.
const SETTLE: Duration = Duration::from_secs(2);
/// The most other replicas whose acknowledgements are read.
const REPLICAS: usize = 64;
/// The field manager.
const MANAGER: &str = "toolweir-operator";

/// The metrics of policies and of their status. Only the replica that leads has series of policies.
#[derive(Clone, Debug)]
pub struct StatusMetrics {
    /// Policies, by kind and by the reason of their condition `Accepted`.
    policies: IntGaugeVec,
    /// Each policy with the reasons of its conditions.
    policy_status: IntGaugeVec,
    /// Each policy that gives a server a credential, with the reason of its condition `CredentialsReady`.
    policy_credentials: IntGaugeVec,
    /// Each policy that has the TLS of agents opened, with the reason of its condition `InterceptionReady`.
    policy_interception: IntGaugeVec,
    /// Each policy that holds a server to pins, with the reason of its condition `PinsMatched`.
    policy_pins: IntGaugeVec,
    /// The pods of each policy, by state.
    policy_pods: IntGaugeVec,
    /// Statuses that were written, by result.
    status_writes: IntCounterVec,
    registry: OperatorRegistry,
}

impl StatusMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            policies: registry.gauges(
                "toolweir_operator_policies",
                "Policies by kind and by the reason of their condition Accepted.",
                &["kind", "accepted"],
            )?,
            policy_status: registry.gauges(
                "toolweir_operator_policy_status",
                "A policy with the reasons of its conditions; always 1. At the replica that leads.",
                &["policy", "mode", "accepted", "programmed"],
            )?,
            policy_credentials: registry.gauges(
                "toolweir_operator_policy_credentials",
                "A policy that gives a server a credential, with the reason of its condition CredentialsReady; always 1. At the \
                 replica that leads.",
                &["policy", "credentials"],
            )?,
            policy_interception: registry.gauges(
                "toolweir_operator_policy_interception",
                "A policy that has the TLS of agents to a server opened, with the reason of its condition InterceptionReady; always 1. \
                 At the replica that leads.",
                &["policy", "interception"],
            )?,
            policy_pins: registry.gauges(
                "toolweir_operator_policy_pins",
                "A policy that holds a server to pins, with the reason of its condition PinsMatched; always 1. At the replica that leads.",
                &["policy", "pins"],
            )?,
            policy_pods: registry.gauges(
                "toolweir_operator_policy_pods",
                "Pods of a policy: selected, of these injected, of these acknowledged. At the replica that leads.",
                &["policy", "state"],
            )?,
            status_writes: registry.counters_at_zero(
                "toolweir_operator_status_writes_total",
                "Statuses of policies that were written.",
                "result",
                ["ok", "gone", "failed"],
            )?,
            registry: registry.clone(),
        })
    }

    /// Replaces the series of policies.
    pub fn set(&self, index: &Index, desired: &BTreeMap<PolicyId, DesiredStatus>) {
        self.registry.replace(|| {
            self.reset();
            for (id, entry) in index.policies() {
                let Some(desired) = desired.get(id) else { continue };
                let kind = if id.cluster { "MCPClusterPolicy" } else { "MCPPolicy" };
                let (accepted, programmed) = (desired.accepted.0.as_str(), desired.programmed.0.as_str());
                self.policies.with_label_values(&[kind, accepted]).inc();
                let name = id.to_string();
                let mode = entry.policy.spec.mode.as_str();
                self.policy_status.with_label_values(&[name.as_str(), mode, accepted, programmed]).set(1);
                if let Some((reason, _)) = &desired.credentials {
                    self.policy_credentials.with_label_values(&[name.as_str(), reason.as_str()]).set(1);
                }
                if let Some((reason, _)) = &desired.interception {
                    self.policy_interception.with_label_values(&[name.as_str(), reason.as_str()]).set(1);
                }
                if let Some((reason, _)) = &desired.pins {
                    self.policy_pins.with_label_values(&[name.as_str(), reason.as_str()]).set(1);
                }
                for (state, count) in
                    [("selected", desired.selected), ("injected", desired.injected), ("acknowledged", desired.acknowledged)]
                {
                    self.policy_pods.with_label_values(&[name.as_str(), state]).set(count.into());
                }
            }
        });
    }

    /// Removes the series of policies: another replica leads.
    fn forget(&self) {
        self.registry.replace(|| self.reset());
    }

    fn reset(&self) {
        self.policies.reset();
        self.policy_status.reset();
        self.policy_credentials.reset();
        self.policy_interception.reset();
        self.policy_pins.reset();
        self.policy_pods.reset();
    }
}

/// This replica, by its pod.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The operator's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
}

impl Replica {
    fn config_map(&self) -> String {
        format!("{}-acks", self.pod)
    }
}

/// The tallies that the other replicas published last.
#[derive(Debug, Default)]
pub struct Others(Mutex<BTreeMap<String, (String, Tallies)>>);

impl Others {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (String, Tallies)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tallies of replicas whose pod is there.
    fn tallies(&self, state: &ClusterState, namespace: &str) -> Vec<Tallies> {
        let index = state.index();
        let there = |uid: &str| index.has_uid(namespace, uid);
        self.lock().values().filter(|(uid, _)| there(uid)).map(|(_, tallies)| tallies.clone()).collect()
    }
}

/// Publishes the acknowledgements of this replica's sidecars whenever they change, for ever.
pub async fn acknowledgements(client: Client, state: Arc<ClusterState>, replica: Replica) {
    let api: Api<ConfigMap> = Api::namespaced(client, &replica.namespace);
    let mut changes = state.changes();
    let mut written: Option<Tallies> = None;
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        let tallies = {
            let index = state.index();
            let synced = index.synced();
            let tallies = state.acks().tally(&index);
            drop(index);
            if !synced {
                continue;
            }
            tallies
        };
        if written.as_ref() != Some(&tallies) {
            match write_acks(&api, &replica, &tallies).await {
                Ok(()) => written = Some(tallies),
                Err(error) => {
                    tracing::warn!(%error, "the acknowledgements of sidecars cannot be written; retrying");
                    written = None;
                }
            }
        }
        sleep(PACE).await;
        if written.is_none() {
            changes.mark_changed();
        }
    }
}

async fn write_acks(api: &Api<ConfigMap>, replica: &Replica, tallies: &Tallies) -> Result<(), kube::Error> {
    // Deleted with the pod, since the pod owns it.
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: replica.pod.clone(),
        uid: replica.uid.clone(),
        ..OwnerReference::default()
    };
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(replica.config_map()),
            labels: Some(BTreeMap::from([
                (ACKS_LABEL.to_owned(), "true".to_owned()),
                ("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned()),
            ])),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("acks".to_owned(), serde_json::to_string(tallies).unwrap_or_default())])),
        ..ConfigMap::default()
    };
    api.patch(&replica.config_map(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await.map(drop)
}

/// Follows the acknowledgements that the other replicas publish, for ever.
pub async fn follow_others(
    client: Client,
    state: Arc<ClusterState>,
    replica: Replica,
    others: Arc<Others>,
    failures: WatchFailures,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, &replica.namespace);
    let events = watcher(api, watcher::Config::default().labels(&format!("{ACKS_LABEL}=true"))).default_backoff();
    let own = replica.config_map();
    let read = |map: &ConfigMap| {
        let owner = map.owner_references().first()?.uid.clone();
        let text = map.data.as_ref()?.get("acks")?;
        let tallies = serde_json::from_str(text)
            .inspect_err(
                |error| tracing::warn!(%error, map = map.name_any(), "the acknowledgements of another replica cannot be read"),
            )
            .ok()?;
        Some((owner, tallies))
    };
    events
        .for_each(|event| {
            match event {
                Ok(watcher::Event::Init) => others.lock().clear(),
                Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) if map.name_any() != own => {
                    let mut others = others.lock();
                    match read(&map) {
                        // More than there are replicas are none of theirs.
                        Some(_) if others.len() >= REPLICAS && !others.contains_key(&map.name_any()) => None,
                        Some(said) => others.insert(map.name_any(), said),
                        None => others.remove(&map.name_any()),
                    };
                }
                Ok(watcher::Event::Delete(map)) => drop(others.lock().remove(&map.name_any())),
                Ok(_) => {}
                Err(error) => failures.report("configmaps", &error),
            }
            state.notify();
            std::future::ready(())
        })
        .await;
}

/// Writes the status of policies while this replica leads, for ever.
pub async fn statuses(
    client: Client,
    state: Arc<ClusterState>,
    replica: Replica,
    others: Arc<Others>,
    metrics: StatusMetrics,
    mut leads: watch::Receiver<bool>,
) {
    let writer = StatusWriter { client, state, replica, others, metrics };
    let state = &writer.state;
    let mut changes = state.changes();
    let mut written: HashMap<PolicyId, (Instant, DesiredStatus)> = HashMap::new();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        sleep(SETTLE).await;
        written.clear();
        changes.mark_changed();
        while *leads.borrow() {
            tokio::select! {
                told = leads.changed() => if told.is_err() { return } else { continue },
                told = changes.changed() => if told.is_err() { return },
            }
            let due = writer.round(&mut written).await;
            // Gathers what comes together: a change is acknowledged by many within moments.
            sleep(PACE / 4).await;
            if let Some(due) = due {
                tokio::select! {
                    () = sleep_until(due) => {}
                    _ = leads.changed() => {}
                }
                changes.mark_changed();
            }
        }
        writer.metrics.forget();
    }
}

/// The writer of statuses.
struct StatusWriter {
    client: Client,
    state: Arc<ClusterState>,
    replica: Replica,
    others: Arc<Others>,
    metrics: StatusMetrics,
}

/// A status to write.
type DueStatus = (PolicyId, DesiredStatus, PolicyStatus);

impl StatusWriter {
    /// Writes every status that is not as desired and was not written just now. Returns when the rest is due.
    async fn round(&self, written: &mut HashMap<PolicyId, (Instant, DesiredStatus)>) -> Option<Instant> {
        compute_conflicts(&self.state).await;
        let (todo, mut due) = self.due(written)?;
        for (id, desired, status) in todo {
            let result = write_status(&self.client, &id, &status).await;
            let label = match &result {
                Ok(()) => "ok",
                Err(kube::Error::Api(error)) if error.code == 404 => "gone",
                Err(error) => {
                    tracing::warn!(%error, policy = %id, "the status cannot be written; it is tried again");
                    due = Some(earlier(due, Instant::now() + PACE));
                    "failed"
                }
            };
            self.metrics.status_writes.with_label_values(&[label]).inc();
            written.insert(id, (Instant::now(), desired));
        }
        due
    }

    /// Returns the statuses to write now, and when the rest is due; none while the cluster is not known yet. Sets the metrics.
    fn due(&self, written: &mut HashMap<PolicyId, (Instant, DesiredStatus)>) -> Option<(Vec<DueStatus>, Option<Instant>)> {
        let parts = self.others.tallies(&self.state, &self.replica.namespace);
        let now = Instant::now();
        let (mut todo, mut due) = (Vec::new(), None);
        let mut index = self.state.index();
        if !index.synced() {
            return None;
        }
        let own = self.state.acks().tally(&index);
        let sum = acks::sum(parts.into_iter().chain([own]));
        let desired = status::desired(&mut index, &sum, &self.state.options, &self.state.store());
        written.retain(|id, _| desired.contains_key(id));
        self.metrics.set(&index, &desired);
        let standing: BTreeMap<&PolicyId, &PolicyStatus> = index.policies().map(|(id, entry)| (id, &entry.status)).collect();
        for (id, desired) in desired {
            let Some(old) = standing.get(&id) else { continue };
            // The status that was written last may not have come back on the watch yet.
            let last = written.get(&id);
            if last.is_some_and(|(_, last)| *last == desired) && is_current(old, &desired) {
                continue;
            }
            let Some(status) = status::merge(old, &desired, Timestamp::now()) else { continue };
            match last.map(|(when, _)| *when + PACE).filter(|next| *next > now) {
                Some(next) => due = Some(earlier(due, next)),
                None => todo.push((id, desired, status)),
            }
        }
        Some((todo, due))
    }
}

/// Returns the earlier of two times, of which one may be none.
fn earlier(due: Option<Instant>, next: Instant) -> Instant {
    due.map_or(next, |due| due.min(next))
}

/// Computes the conflicts of every pod's snapshot without locking the index: that compiles policies.
async fn compute_conflicts(state: &ClusterState) {
    loop {
        let todo = status::without_conflicts_computed(&mut state.index());
        if todo.is_empty() {
            return;
        }
        let options = state.options.clone();
        state
            .compile(move || {
                for prepared in todo {
                    prepared.conflicts(&options);
                }
            })
            .await;
    }
}

fn is_current(status: &PolicyStatus, desired: &DesiredStatus) -> bool {
    status::merge(status, desired, Timestamp::UNIX_EPOCH).is_none()
}

async fn write_status(client: &Client, id: &PolicyId, status: &PolicyStatus) -> Result<(), kube::Error> {
    // A merge patch sets the status as a whole: lists are replaced, and every other field is always written.
    let patch = Patch::Merge(json!({"status": status}));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    if id.cluster {
        Api::<MCPClusterPolicy>::all(client.clone()).patch_status(&id.name, &params, &patch).await.map(drop)
    } else {
        Api::<MCPPolicy>::namespaced(client.clone(), &id.namespace).patch_status(&id.name, &params, &patch).await.map(drop)
    }
}
