//! The operator's view of the cluster, and which policies govern which pod: events in, a snapshot for each pod out. Plain data
//! without I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::value::RawValue;
use tokio::sync::watch;
use toolweir_crds::{
    Document, FieldError, LabelSelector, MCPPolicySpec, Server, ServerTls, check,
    resource::PolicyStatus,
    select::{Labels, selects},
    stream::{LONGEST_LINE, Snapshot, StreamMessage},
};
use toolweir_engine::{CompileOptions, Engine, Memory, Policy, PolicyId, Severity};

use crate::{
    credentials::MountedCredentials,
    inject::{NamespaceInfo, OptIn, SkipReason, namespace_opted_in},
    pins::{IncludedPins, PinnedServer, PinsEntry, PinsKey},
};

/// The reason of a pod that has no sidecar and could have one.
pub const NOT_INJECTED: &str = "NotInjected";

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A pod, as far as the index keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid: a pod of the same name that comes later is another one.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// True if it has a sidecar.
    pub injected: bool,
    /// Why it can have none, if so.
    pub unfit: Option<SkipReason>,
    /// What its sidecar has mounted for credentials of servers.
    pub credentials: MountedCredentials,
    /// Whether its sidecar sees the TLS of its agents, and can open it.
    pub interception: PodInterception,
    /// True if it is being deleted: its sidecar is served to the end, but no status counts it.
    pub ends: bool,
}

/// Whether the sidecar of a pod sees the TLS of its agents, and can open it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodInterception {
    /// Its traffic is not captured.
    #[default]
    NotCaptured,
    /// Its traffic is captured. It was created without what its containers need to trust an authority of its own.
    Unprepared,
    /// It was created with that.
    Prepared,
}

/// A policy as it stands in the cluster.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Its uid.
    pub uid: String,
    /// Its generation, which changes with its spec.
    pub generation: i64,
    /// The namespaces that it governs; none for an `MCPPolicy`, which governs its own.
    pub namespaces: Option<LabelSelector>,
    /// As the sidecars get it.
    pub document: Document,
    /// The same as the engine takes it.
    pub policy: Policy,
    /// The errors of the policy alone. The webhook refuses such a policy; one that bypassed it denies everything.
    pub errors: Vec<FieldError>,
    /// The status that was written last.
    pub status: PolicyStatus,
}

impl PolicyEntry {
    /// Creates an entry for a policy, which compiles it.
    pub fn new(uid: String, generation: i64, document: Document, status: PolicyStatus, options: &CompileOptions) -> Self {
        let (namespaces, mut errors) = match &document {
            Document::MCPPolicy { .. } => (None, Vec::new()),
            Document::MCPClusterPolicy { spec, .. } => {
                let selector = spec.namespace_selector.clone();
                let errors = check::check_selector("spec.namespaceSelector", &selector);
                (Some(selector), errors)
            }
        };
        let policy = Policy::from(document.clone());
        let (_, problems) = Engine::compile(std::slice::from_ref(&policy), Memory::new(0), options);
        errors.extend(problems.into_iter().filter(|problem| problem.severity == Severity::Invalid).map(|problem| problem.error));
        Self { uid, generation, namespaces, document, policy, errors, status }
    }

    /// Returns the names of the servers of which something holds.
    fn servers_with(&self, holds: impl Fn(&Server) -> bool) -> Vec<String> {
        self.policy.spec.servers.iter().filter(|server| holds(server)).map(|server| server.name.clone()).collect()
    }

    /// Returns the servers that it holds to pins.
    pub fn pinned_servers(&self) -> impl Iterator<Item = PinnedServer> {
        let Policy { id, spec, .. } = &self.policy;
        let pinned = |server: &Server| Some(PinnedServer { server: server.name.clone(), pins: PinsKey::of(id, server)? });
        spec.servers.iter().filter_map(pinned)
    }
}

/// Returns whether a policy has the TLS of agents to a server opened.
pub(crate) fn is_intercepted(server: &Server) -> bool {
    server.tls == Some(ServerTls::Intercept)
}

/// Returns whether a policy has calls approved by people.
pub(crate) fn asks_people(spec: &MCPPolicySpec) -> bool {
    spec.servers.iter().flat_map(Server::all_entries).any(|entry| entry.approval.is_some())
}

/// A policy of a snapshot, in the state in which it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IncludedPolicy {
    /// Its name.
    pub id: PolicyId,
    /// Its uid.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
}

/// What makes a snapshot another: its policies and the pins that they name, in the state in which they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct SnapshotKey {
    policies: Vec<IncludedPolicy>,
    pins: Vec<IncludedPins>,
}

/// A snapshot, written once for all pods that it is for.
#[derive(Debug)]
pub struct PreparedSnapshot {
    /// Names its content.
    pub version: String,
    /// The line on the stream.
    pub line: Bytes,
    /// The policies in it.
    pub includes: Vec<IncludedPolicy>,
    /// True if one of them counts across pods.
    pub shares: bool,
    /// True if one of them has calls approved by people.
    pub asks_people: bool,
    /// The servers to which each of them gives a credential; without those that give none.
    pub credentials: BTreeMap<PolicyId, Vec<String>>,
    /// The servers to which each of them has the TLS of agents opened; without those that have none.
    pub interception: BTreeMap<PolicyId, Vec<String>>,
    /// The servers that each of them holds to pins; without those that hold none.
    pub pinned: BTreeMap<PolicyId, Vec<PinnedServer>>,
    policies: Vec<Policy>,
    conflicts: OnceLock<Vec<(PolicyId, FieldError)>>,
}

impl PreparedSnapshot {
    /// Writes the line of a snapshot with these policies and pins.
    pub(crate) fn new(includes: Vec<IncludedPolicy>, entries: &[&PolicyEntry], pins: &[&PinsEntry]) -> Self {
        let documents: Vec<&Document> = entries.iter().map(|entry| &entry.document).collect();
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(&serde_json::to_vec(&documents).unwrap_or_default());
        for pins in pins {
            hash.update(pins.json().get().as_bytes());
        }
        let version: String = HEXLOWER.encode(hash.finish().as_ref()).chars().take(16).collect();
        let mut line = line(&version, documents.clone(), pins.iter().map(|pins| pins.json()).collect());
        if line.len() > LONGEST_LINE && !pins.is_empty() {
            let short: Vec<Box<RawValue>> = pins.iter().map(|pins| pins.without_texts()).collect();
            line = self::line(&version, documents, short.iter().map(AsRef::as_ref).collect());
        }
        let policies = entries.iter().map(|entry| entry.policy.clone()).collect();
        let shares = entries.iter().any(|entry| entry.policy.spec.counts_across_pods());
        let asks_people = entries.iter().any(|entry| asks_people(&entry.policy.spec));
        let servers = |holds: fn(&Server) -> bool| {
            let of_each = entries.iter().map(|entry| (entry.policy.id.clone(), entry.servers_with(holds)));
            of_each.filter(|(_, servers)| !servers.is_empty()).collect()
        };
        let credentials = servers(|server| server.credential.is_some());
        let interception = servers(is_intercepted);
        let pinned = entries.iter().map(|entry| (entry.policy.id.clone(), entry.pinned_servers().collect::<Vec<_>>()));
        let pinned = pinned.filter(|(_, servers)| !servers.is_empty()).collect();
        let line = line.into();
        let conflicts = OnceLock::new();
        Self { version, line, includes, shares, asks_people, credentials, interception, pinned, policies, conflicts }
    }

    /// Returns whether a policy holds a server to these pins, written as `namespace/name`.
    pub fn is_pinned(&self, server: &str, pins: &str) -> bool {
        self.pinned.values().flatten().any(|pinned| pinned.server == server && pinned.pins.to_string() == pins)
    }

    /// Returns whether [`PreparedSnapshot::conflicts`] are known, so that it takes no time.
    pub fn has_conflicts_computed(&self) -> bool {
        self.conflicts.get().is_some()
    }

    /// Returns the policies whose url, credential or TLS is not the one in force, with what to write instead. The first call compiles all of them.
    pub fn conflicts(&self, options: &CompileOptions) -> &[(PolicyId, FieldError)] {
        self.conflicts.get_or_init(|| {
            let (_, problems) = Engine::compile(&self.policies, Memory::new(0), options);
            let conflicts =
                problems.into_iter().filter(|problem| matches!(problem.severity, Severity::Conflict | Severity::Closed));
            conflicts.filter_map(|problem| Some((self.policies.get(problem.policy)?.id.clone(), problem.error))).collect()
        })
    }

    /// Returns the servers on a field of which policies disagree, each with the words about a policy whose value is not the one in
    /// force. It compiles as [`PreparedSnapshot::conflicts`] does.
    pub fn disagreements(&self, field: &str, options: &CompileOptions) -> impl Iterator<Item = (&str, String)> {
        self.conflicts(options).iter().filter_map(move |(id, error)| {
            let path = error.path.strip_prefix("spec.servers[")?.strip_suffix(field)?;
            let at: usize = path.strip_suffix("].")?.parse().ok()?;
            let policy = self.policies.iter().find(|policy| policy.id == *id)?;
            Some((policy.spec.servers.get(at)?.name.as_str(), format!("policy {id}, {error}")))
        })
    }
}

/// Writes a snapshot as a line of the stream.
fn line(version: &str, policies: Vec<&Document>, pins: Vec<&RawValue>) -> Vec<u8> {
    let message = StreamMessage::Snapshot(Snapshot { version: version.to_owned(), policies, pins });
    let mut line = serde_json::to_vec(&message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A change of the cluster, or a list of all objects of a kind.
#[derive(Debug)]
pub enum ClusterEvent {
    /// A namespace is there.
    Namespace(String, NamespaceInfo),
    /// A namespace is gone.
    NamespaceGone(String),
    /// These are all namespaces.
    Namespaces(BTreeMap<String, NamespaceInfo>),
    /// A pod is there.
    Pod(PodKey, Pod),
    /// A pod is gone, or will never run again.
    PodGone(PodKey),
    /// These are all pods.
    Pods(BTreeMap<PodKey, Pod>),
    /// A policy is there.
    Policy(PolicyId, Box<PolicyEntry>),
    /// A policy is gone.
    PolicyGone(PolicyId),
    /// These are all policies of the cluster's, or all of namespaces.
    Policies {
        /// Which of the two kinds.
        cluster: bool,
        /// The policies.
        all: BTreeMap<PolicyId, PolicyEntry>,
    },
    /// Pins are there.
    Pins(PinsKey, PinsEntry),
    /// Pins are gone.
    PinsGone(PinsKey),
    /// These are all pins.
    AllPins(BTreeMap<PinsKey, PinsEntry>),
}

/// The pods that an event concerns.
enum Affected {
    NoPod,
    Pod(PodKey),
    Namespace(String),
    AllPods,
}

/// The snapshot that holds for a pod; none once the pod is gone.
pub type CurrentSnapshot = Option<Arc<PreparedSnapshot>>;

#[derive(Debug)]
struct Subscription {
    uid: String,
    sender: watch::Sender<CurrentSnapshot>,
}

/// The cluster as the operator knows it.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<String, NamespaceInfo>,
    pods: BTreeMap<PodKey, Pod>,
    policies: BTreeMap<PolicyId, PolicyEntry>,
    pins: BTreeMap<PinsKey, PinsEntry>,
    listed: Listed,
    subscriptions: BTreeMap<PodKey, Subscription>,
    prepared: HashMap<SnapshotKey, Arc<PreparedSnapshot>>,
}

/// The kinds of objects that were listed once.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each list")]
struct Listed {
    namespaces: bool,
    pods: bool,
    policies: bool,
    cluster_policies: bool,
    pins: bool,
}

impl Index {
    /// Returns whether every kind of object was listed once. Before that nothing is known for sure of any pod.
    pub fn synced(&self) -> bool {
        let Listed { namespaces, pods, policies, cluster_policies, pins } = self.listed;
        namespaces && pods && policies && cluster_policies && pins
    }

    /// Applies an event and notifies the subscribers whose snapshot it changes.
    pub fn apply(&mut self, event: ClusterEvent) {
        let before = self.synced();
        let affected = self.update(event);
        if before {
            self.publish(&affected);
        } else if self.synced() {
            self.publish(&Affected::AllPods);
        }
    }

    fn update(&mut self, event: ClusterEvent) -> Affected {
        match event {
            ClusterEvent::Namespace(name, info) => {
                let same = self.namespaces.get(&name).is_some_and(|old| old.labels == info.labels);
                self.namespaces.insert(name.clone(), info);
                if same { Affected::NoPod } else { Affected::Namespace(name) }
            }
            ClusterEvent::NamespaceGone(name) => {
                self.namespaces.remove(&name);
                Affected::Namespace(name)
            }
            ClusterEvent::Namespaces(all) => {
                (self.namespaces, self.listed.namespaces) = (all, true);
                Affected::AllPods
            }
            ClusterEvent::Pod(key, pod) => {
                let same = self.pods.get(&key) == Some(&pod);
                self.pods.insert(key.clone(), pod);
                if same { Affected::NoPod } else { Affected::Pod(key) }
            }
            ClusterEvent::PodGone(key) => {
                self.pods.remove(&key);
                Affected::Pod(key)
            }
            ClusterEvent::Pods(all) => {
                (self.pods, self.listed.pods) = (all, true);
                Affected::AllPods
            }
            ClusterEvent::Policy(id, entry) => {
                let affected = Self::pods_of(&id);
                let before = self.policies.insert(id, *entry);
                let same = |entry: &PolicyEntry| {
                    before.as_ref().is_some_and(|old| (&old.uid, old.generation) == (&entry.uid, entry.generation))
                };
                let unchanged = before.as_ref().and_then(|old| self.policies.get(&old.policy.id)).is_some_and(same);
                if unchanged { Affected::NoPod } else { affected }
            }
            ClusterEvent::PolicyGone(id) => {
                self.policies.remove(&id);
                Self::pods_of(&id)
            }
            ClusterEvent::Policies { cluster, all } => {
                self.policies.retain(|id, _| id.cluster != cluster);
                self.policies.extend(all);
                *(if cluster { &mut self.listed.cluster_policies } else { &mut self.listed.policies }) = true;
                Affected::AllPods
            }
            ClusterEvent::Pins(key, entry) => self.update_pins(key, entry),
            ClusterEvent::PinsGone(key) => {
                self.pins.remove(&key);
                self.held_to(&key)
            }
            ClusterEvent::AllPins(all) => {
                (self.pins, self.listed.pins) = (all, true);
                Affected::AllPods
            }
        }
    }

    fn update_pins(&mut self, key: PinsKey, entry: PinsEntry) -> Affected {
        let before = self.pins.get(&key).map(|old| (&old.uid, old.generation));
        let affected = if before == Some((&entry.uid, entry.generation)) { Affected::NoPod } else { self.held_to(&key) };
        self.pins.insert(key, entry);
        affected
    }

    /// Returns the pods whose policies may name these pins.
    fn held_to(&self, pins: &PinsKey) -> Affected {
        let names = |entry: &PolicyEntry| {
            entry.policy.spec.servers.iter().any(|server| PinsKey::of(&entry.policy.id, server).as_ref() == Some(pins))
        };
        let mut naming = self.policies.iter().filter(|(_, entry)| names(entry)).peekable();
        if naming.peek().is_none() {
            return Affected::NoPod;
        }
        if naming.any(|(id, _)| id.cluster) { Affected::AllPods } else { Affected::Namespace(pins.namespace.clone()) }
    }

    fn pods_of(id: &PolicyId) -> Affected {
        if id.cluster { Affected::AllPods } else { Affected::Namespace(id.namespace.clone()) }
    }

    fn publish(&mut self, affected: &Affected) {
        let touched = |key: &PodKey| match affected {
            Affected::NoPod => false,
            Affected::Pod(pod) => pod == key,
            Affected::Namespace(namespace) => *namespace == key.namespace,
            Affected::AllPods => true,
        };
        let keys: Vec<PodKey> = self.subscriptions.keys().filter(|key| touched(key)).cloned().collect();
        for key in keys {
            let uid = self.subscriptions.get(&key).map(|subscription| subscription.uid.clone()).unwrap_or_default();
            let current = self.snapshot(&key, &uid);
            if let Some(subscription) = self.subscriptions.get(&key) {
                // By identity, not by version: a policy that was replaced by its like has another uid to acknowledge.
                let same = |old: &CurrentSnapshot| match (old, &current) {
                    (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                    (old, new) => old.is_none() && new.is_none(),
                };
                subscription.sender.send_if_modified(|old| {
                    let changed = !same(old);
                    old.clone_from(&current);
                    changed
                });
            }
        }
        self.subscriptions.retain(|_, subscription| subscription.sender.receiver_count() > 0);
        if !matches!(affected, Affected::NoPod) {
            self.prepared.retain(|_, prepared| Arc::strong_count(prepared) > 1);
        }
    }

    /// Returns the policies that govern pods with these labels in a namespace of which this is known, by name.
    fn governing<'a>(
        &'a self,
        namespace: &'a str,
        info: Option<&'a NamespaceInfo>,
        pod_labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a PolicyId, &'a PolicyEntry)> {
        self.policies.iter().filter(move |(id, entry)| {
            let of_namespace = match &entry.namespaces {
                None => id.namespace == namespace,
                // A namespace whose labels are not known is governed by all: nothing is opened by not knowing.
                Some(selector) => info.is_none_or(|info| selects(selector, &info.labels)),
            };
            of_namespace && selects(&entry.policy.spec.pod_selector, pod_labels)
        })
    }

    /// Returns whether a policy that governs such pods has the TLS of agents to a server opened.
    pub fn intercepts(&self, namespace: &str, info: Option<&NamespaceInfo>, pod_labels: &Labels) -> bool {
        let mut governing = self.governing(namespace, info, pod_labels);
        governing.any(|(_, entry)| entry.policy.spec.servers.iter().any(is_intercepted))
    }

    /// Returns the snapshot for a pod; none where there is no such pod.
    pub fn snapshot(&mut self, key: &PodKey, uid: &str) -> CurrentSnapshot {
        let pod = self.pods.get(key).filter(|pod| pod.uid == uid)?;
        let (mut includes, mut entries) = (Vec::new(), Vec::new());
        for (id, entry) in self.governing(&key.namespace, self.namespaces.get(&key.namespace), &pod.labels) {
            includes.push(IncludedPolicy { id: id.clone(), uid: entry.uid.clone(), generation: entry.generation });
            entries.push(entry);
        }
        let named: BTreeSet<PinsKey> =
            entries.iter().flat_map(|entry| entry.pinned_servers()).map(|pinned| pinned.pins).collect();
        let there: Vec<(PinsKey, &PinsEntry)> =
            named.into_iter().filter_map(|key| self.pins.get(&key).map(|pins| (key, pins))).collect();
        let pins: Vec<&PinsEntry> = there.iter().map(|(_, pins)| *pins).collect();
        let state = |(key, pins): (PinsKey, &PinsEntry)| IncludedPins { key, uid: pins.uid.clone(), generation: pins.generation };
        let snapshot_key = SnapshotKey { policies: includes, pins: there.into_iter().map(state).collect() };
        if let Some(prepared) = self.prepared.get(&snapshot_key) {
            return Some(Arc::clone(prepared));
        }
        let prepared = Arc::new(PreparedSnapshot::new(snapshot_key.policies.clone(), &entries, &pins));
        self.prepared.insert(snapshot_key, Arc::clone(&prepared));
        Some(prepared)
    }

    /// Subscribes to the snapshot for a pod. Returns none where there is no such pod, or not yet.
    pub fn subscribe(&mut self, key: &PodKey, uid: &str) -> Option<watch::Receiver<CurrentSnapshot>> {
        let current = self.snapshot(key, uid)?;
        match self.subscriptions.get(key) {
            Some(subscription) if subscription.uid == uid => Some(subscription.sender.subscribe()),
            _ => {
                let (sender, receiver) = watch::channel(Some(current));
                // Dropping the sender of a pod that was there before under that name ends its streams.
                self.subscriptions.insert(key.clone(), Subscription { uid: uid.to_owned(), sender });
                Some(receiver)
            }
        }
    }

    /// What is known of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceInfo> {
        self.namespaces.get(name)
    }

    /// The pods, those that are being deleted among them.
    pub fn pods(&self) -> impl Iterator<Item = (&PodKey, &Pod)> {
        self.pods.iter()
    }

    /// Returns whether a pod is there and counts in a status.
    pub fn counts(&self, key: &PodKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|pod| pod.uid == uid && !pod.ends)
    }

    /// Returns whether a pod is there whose sidecar can open the TLS of its agents.
    pub fn is_prepared(&self, key: &PodKey) -> bool {
        self.pods.get(key).is_some_and(|pod| pod.interception == PodInterception::Prepared)
    }

    /// Returns whether a pod is there.
    pub fn has(&self, key: &PodKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|pod| pod.uid == uid)
    }

    /// Returns whether a pod of this uid is there, whatever its name.
    pub fn has_uid(&self, namespace: &str, uid: &str) -> bool {
        self.pods.iter().any(|(key, pod)| key.namespace == namespace && pod.uid == uid)
    }

    /// Counts the pods that opted in, run, and have no sidecar, by namespace and reason. `NotInjected`: they were created before
    /// their namespace opted in, or bypassed the webhook; each namespace that opted in has it, also with 0.
    pub fn without_sidecar(&self, protects: impl Fn(&str) -> bool) -> BTreeMap<(String, &'static str), i64> {
        let enabled = |name: &str| self.namespaces.get(name).is_some_and(|info| namespace_opted_in(&info.labels));
        let asked = self.namespaces.keys().filter(|name| enabled(name) && !protects(name));
        let mut counts: BTreeMap<(String, &'static str), i64> = asked.map(|name| ((name.clone(), NOT_INJECTED), 0)).collect();
        for (key, pod) in self.pods.iter().filter(|(_, pod)| !pod.injected && !pod.ends) {
            let opted_in = match OptIn::from_labels(&pod.labels) {
                Some(OptIn::Enabled) => true,
                Some(OptIn::Disabled) => false,
                None => enabled(&key.namespace),
            };
            if opted_in && !protects(&key.namespace) {
                *counts.entry((key.namespace.clone(), pod.unfit.map_or(NOT_INJECTED, SkipReason::as_str))).or_default() += 1;
            }
        }
        counts
    }

    /// Pins, if they are there.
    pub fn pins(&self, key: &PinsKey) -> Option<&PinsEntry> {
        self.pins.get(key)
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyId, &PolicyEntry)> {
        self.policies.iter()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
