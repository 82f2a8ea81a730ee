//! What the operator writes: what this replica's sidecars acknowledged, for the other replicas, and, as leader, the status
//! of every policy.

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
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use toolweir_crds::{
    Mode,
    resource::{MCPClusterPolicy, MCPPolicy, PolicyStatus},
};
use toolweir_engine::PolicyId;

use crate::{
    acks::{self, Tallies},
    index::Index,
    metrics::Metrics,
    status::{self, Wanted},
    world::World,
};

/// Marks the `ConfigMaps` in which replicas say what their sidecars acknowledged.
pub const ACKS_LABEL: &str = "toolweir.dev/acks";
/// At most one write of a status, and of a replica's acknowledgements, in this time.
const PACE: Duration = Duration::from_secs(1);
/// How long a new leader waits before it writes: sidecars and other replicas are about to say what they know.
const SETTLE: Duration = Duration::from_secs(2);
/// From how many other replicas something is taken.
const REPLICAS: usize = 64;
/// Under whose name fields are owned.
const MANAGER: &str = "toolweir-operator";

/// This replica, as its pod is called.
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

/// What the other replicas said last.
#[derive(Debug, Default)]
pub struct Others(Mutex<BTreeMap<String, (String, Tallies)>>);

impl Others {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (String, Tallies)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tallies of replicas whose pod is there.
    fn tallies(&self, world: &World, namespace: &str) -> Vec<Tallies> {
        let index = world.index();
        let there = |uid: &str| index.has_uid(namespace, uid);
        self.lock().values().filter(|(uid, _)| there(uid)).map(|(_, tallies)| tallies.clone()).collect()
    }
}

/// Writes what this replica's sidecars acknowledged, whenever it changes, for ever.
pub async fn acknowledgements(client: Client, world: Arc<World>, replica: Replica) {
    let api: Api<ConfigMap> = Api::namespaced(client, &replica.namespace);
    let mut changes = world.changes();
    let mut written: Option<Tallies> = None;
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        let tallies = {
            let index = world.index();
            let synced = index.synced();
            let tallies = world.acks().tally(&index);
            drop(index);
            if !synced {
                continue;
            }
            tallies
        };
        if written.as_ref() != Some(&tallies) {
            match write_acks(&api, &replica, &tallies).await {
                Ok(()) => written = Some(tallies),
                Err(error) => tracing::warn!(%error, "what sidecars acknowledged cannot be written; it is tried again"),
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

/// Follows what the other replicas say, for ever.
pub async fn follow_others(client: Client, world: Arc<World>, replica: Replica, others: Arc<Others>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &replica.namespace);
    let events = watcher(api, watcher::Config::default().labels(&format!("{ACKS_LABEL}=true"))).default_backoff();
    let own = replica.config_map();
    let read = |map: &ConfigMap| {
        let owner = map.owner_references().first()?.uid.clone();
        let text = map.data.as_ref()?.get("acks")?;
        let tallies = serde_json::from_str(text)
            .inspect_err(|error| tracing::warn!(%error, map = map.name_any(), "what a replica says cannot be read"))
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
                Err(error) => {
                    world.metrics.watch_failures.with_label_values(&["configmaps"]).inc();
                    tracing::warn!(%error, resource = "configmaps", "watch failed; it is begun anew");
                }
            }
            world.touch();
            std::future::ready(())
        })
        .await;
}

/// Writes the status of policies while this replica leads, for ever.
pub async fn statuses(
    client: Client,
    world: Arc<World>,
    replica: Replica,
    others: Arc<Others>,
    mut leads: watch::Receiver<bool>,
) {
    let mut changes = world.changes();
    let mut written: HashMap<PolicyId, (Instant, Wanted)> = HashMap::new();
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
            let due = round(&client, &world, &replica, &others, &mut written).await;
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
        world.metrics.forget_policies();
    }
}

/// Sets the metrics of policies.
fn tell(metrics: &Metrics, index: &Index, wanted: &BTreeMap<PolicyId, Wanted>) {
    let _whole = metrics.whole();
    metrics.reset_policies();
    for (id, entry) in index.policies() {
        let Some(wanted) = wanted.get(id) else { continue };
        let kind = if id.cluster { "MCPClusterPolicy" } else { "MCPPolicy" };
        let (accepted, programmed) = (wanted.accepted.0.as_str(), wanted.programmed.0.as_str());
        metrics.policies.with_label_values(&[kind, accepted]).inc();
        let name = id.to_string();
        let mode = match entry.policy.spec.mode {
            Mode::Enforce => "Enforce",
            Mode::Audit => "Audit",
        };
        metrics.policy_status.with_label_values(&[name.as_str(), mode, accepted, programmed]).set(1);
        for (state, count) in
            [("selected", wanted.selected), ("injected", wanted.injected), ("acknowledged", wanted.acknowledged)]
        {
            metrics.policy_pods.with_label_values(&[name.as_str(), state]).set(count.into());
        }
    }
}

/// Writes every status that is not what it should be and was not written just now. Gives when to come back for the rest.
async fn round(
    client: &Client,
    world: &World,
    replica: &Replica,
    others: &Others,
    written: &mut HashMap<PolicyId, (Instant, Wanted)>,
) -> Option<Instant> {
    work_out(world).await;
    let parts = others.tallies(world, &replica.namespace);
    let now = Instant::now();
    let mut due: Option<Instant> = None;
    let mut todo: Vec<(PolicyId, Wanted, PolicyStatus)> = Vec::new();
    {
        let mut index = world.index();
        if !index.synced() {
            return None;
        }
        let own = world.acks().tally(&index);
        let sum = acks::add(parts.into_iter().chain([own]));
        let wanted = status::wanted(&mut index, &sum, &world.options, &world.store());
        written.retain(|id, _| wanted.contains_key(id));
        tell(&world.metrics, &index, &wanted);
        let standing: BTreeMap<&PolicyId, &PolicyStatus> = index.policies().map(|(id, entry)| (id, &entry.status)).collect();
        for (id, wanted) in wanted {
            let Some(old) = standing.get(&id) else { continue };
            // What was written last may not have come back on the watch yet.
            let last = written.get(&id);
            if last.is_some_and(|(_, last)| *last == wanted) && says(old, &wanted) {
                continue;
            }
            let Some(status) = status::merge(old, &wanted, Timestamp::now()) else { continue };
            match last.map(|(when, _)| *when + PACE).filter(|next| *next > now) {
                Some(next) => due = Some(due.map_or(next, |due| due.min(next))),
                None => todo.push((id, wanted, status)),
            }
        }
    }
    for (id, wanted, status) in todo {
        let result = write_status(client, &id, &status).await;
        let label = match &result {
            Ok(()) => "ok",
            Err(kube::Error::Api(error)) if error.code == 404 => "gone",
            Err(error) => {
                tracing::warn!(%error, policy = %id, "the status cannot be written; it is tried again");
                let next = Instant::now() + PACE;
                due = Some(due.map_or(next, |due| due.min(next)));
                "failed"
            }
        };
        world.metrics.status_writes.with_label_values(&[label]).inc();
        written.insert(id, (Instant::now(), wanted));
    }
    due
}

/// Works out the conflicts of what every pod is to enforce, without holding the index: that compiles policies.
async fn work_out(world: &World) {
    loop {
        let todo = status::not_worked_out(&mut world.index());
        if todo.is_empty() {
            return;
        }
        let options = world.options.clone();
        world
            .compile(move || {
                for prepared in todo {
                    prepared.conflicts(&options);
                }
            })
            .await;
    }
}

fn says(status: &PolicyStatus, wanted: &Wanted) -> bool {
    status::merge(status, wanted, Timestamp::UNIX_EPOCH).is_none()
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
