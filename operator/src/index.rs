//! What the operator knows of the cluster, and which policies govern which pod: events in, a snapshot for each pod out.
//! Plain data; who watches the API server and who serves the streams is elsewhere.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use tokio::sync::watch;
use toolweir_crds::{
    Document, FieldError, LabelSelector, bounds,
    resource::PolicyStatus,
    stream::{Message, Snapshot},
};
use toolweir_engine::{Engine, Memory, Options, Policy, PolicyId, Severity};

use crate::{
    inject::{INJECT_LABEL, Skip},
    select::{Labels, selects},
    shared,
};

/// Why a pod has no sidecar that could have one.
pub const NOT_INJECTED: &str = "NotInjected";

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid: a pod of the same name that comes later is another one.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether it has a sidecar.
    pub injected: bool,
    /// Why it can have none, if so.
    pub unfit: Option<Skip>,
    /// Whether it is being deleted: its sidecar is served to the end, but no status counts it.
    pub ends: bool,
}

/// A policy as it stands in the cluster.
#[derive(Clone, Debug)]
pub struct Entry {
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
    /// What is wrong with it by itself. The webhook refuses such a policy; one that came past it denies everything.
    pub errors: Vec<FieldError>,
    /// The status that was written last.
    pub status: PolicyStatus,
}

impl Entry {
    /// A policy that was read from the cluster.
    pub fn new(uid: String, generation: i64, document: Document, status: PolicyStatus, options: &Options) -> Self {
        let (namespaces, mut errors) = match &document {
            Document::MCPPolicy { .. } => (None, Vec::new()),
            Document::MCPClusterPolicy { spec, .. } => {
                let selector = spec.namespace_selector.clone();
                let errors = bounds::check_selector("spec.namespaceSelector", &selector);
                (Some(selector), errors)
            }
        };
        let policy = Policy::from(document.clone());
        let (_, problems) = Engine::compile(std::slice::from_ref(&policy), Memory::new(0), options);
        errors.extend(problems.into_iter().filter(|problem| problem.severity == Severity::Invalid).map(|problem| problem.error));
        Self { uid, generation, namespaces, document, policy, errors, status }
    }
}

/// A policy of a snapshot, in the state in which it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Included {
    /// Its name.
    pub id: PolicyId,
    /// Its uid.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
}

/// A snapshot, written once for all pods that it is for.
#[derive(Debug)]
pub struct Prepared {
    /// Names its content.
    pub version: String,
    /// The line on the stream.
    pub line: Bytes,
    /// The policies in it.
    pub includes: Vec<Included>,
    /// Whether one of them counts across pods.
    pub shares: bool,
    policies: Vec<Policy>,
    conflicts: OnceLock<Vec<(PolicyId, FieldError)>>,
}

impl Prepared {
    fn new(includes: Vec<Included>, entries: &[&Entry]) -> Self {
        let documents: Vec<&Document> = entries.iter().map(|entry| &entry.document).collect();
        let text = serde_json::to_vec(&documents).unwrap_or_default();
        let hash = ring::digest::digest(&ring::digest::SHA256, &text);
        let version: String = HEXLOWER.encode(hash.as_ref()).chars().take(16).collect();
        let message = Message::Snapshot(Snapshot { version: version.clone(), policies: documents });
        let mut line = serde_json::to_vec(&message).unwrap_or_default();
        line.push(b'\n');
        let policies = entries.iter().map(|entry| entry.policy.clone()).collect();
        let shares = entries.iter().any(|entry| shared::is_used(&entry.policy.spec));
        Self { version, line: line.into(), includes, shares, policies, conflicts: OnceLock::new() }
    }

    /// Whether [`Prepared::conflicts`] has been worked out, so that it takes no time.
    pub fn is_worked_out(&self) -> bool {
        self.conflicts.get().is_some()
    }

    /// Policies whose url is not the one that holds, with what to write instead. The first time it compiles them all.
    pub fn conflicts(&self, options: &Options) -> &[(PolicyId, FieldError)] {
        self.conflicts.get_or_init(|| {
            let (_, problems) = Engine::compile(&self.policies, Memory::new(0), options);
            let conflicts = problems.into_iter().filter(|problem| problem.severity == Severity::Conflict);
            conflicts.filter_map(|problem| Some((self.policies.get(problem.policy)?.id.clone(), problem.error))).collect()
        })
    }
}

/// What came from the API server.
#[derive(Debug)]
pub enum Event {
    /// A namespace is there, with these labels.
    Namespace(String, Labels),
    /// A namespace is gone.
    NamespaceGone(String),
    /// These are all namespaces.
    Namespaces(BTreeMap<String, Labels>),
    /// A pod is there.
    Pod(PodKey, Pod),
    /// A pod is gone, or will never run again.
    PodGone(PodKey),
    /// These are all pods.
    Pods(BTreeMap<PodKey, Pod>),
    /// A policy is there.
    Policy(PolicyId, Box<Entry>),
    /// A policy is gone.
    PolicyGone(PolicyId),
    /// These are all policies of the cluster's, or all of namespaces.
    Policies {
        /// Which of the two kinds.
        cluster: bool,
        /// The policies.
        all: BTreeMap<PolicyId, Entry>,
    },
}

/// Which pods an event may have changed something for.
enum Affected {
    Nobody,
    Pod(PodKey),
    Namespace(String),
    Everybody,
}

/// The snapshot that holds for a pod; none once the pod is gone.
pub type Current = Option<Arc<Prepared>>;

#[derive(Debug)]
struct Subscription {
    uid: String,
    sender: watch::Sender<Current>,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<PodKey, Pod>,
    policies: BTreeMap<PolicyId, Entry>,
    seen: Seen,
    subscriptions: BTreeMap<PodKey, Subscription>,
    prepared: HashMap<Vec<Included>, Arc<Prepared>>,
}

/// Of what everything was seen once.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each list")]
struct Seen {
    namespaces: bool,
    pods: bool,
    policies: bool,
    cluster_policies: bool,
}

impl Index {
    /// Whether everything was seen once. Before, nothing may be said of any pod.
    pub fn synced(&self) -> bool {
        let Seen { namespaces, pods, policies, cluster_policies } = self.seen;
        namespaces && pods && policies && cluster_policies
    }

    /// Takes in an event and tells the subscribers whose snapshot it changes.
    pub fn apply(&mut self, event: Event) {
        let before = self.synced();
        let affected = self.take(event);
        if before {
            self.publish(&affected);
        } else if self.synced() {
            self.publish(&Affected::Everybody);
        }
    }

    fn take(&mut self, event: Event) -> Affected {
        match event {
            Event::Namespace(name, labels) => {
                let same = self.namespaces.get(&name) == Some(&labels);
                self.namespaces.insert(name.clone(), labels);
                if same { Affected::Nobody } else { Affected::Namespace(name) }
            }
            Event::NamespaceGone(name) => {
                self.namespaces.remove(&name);
                Affected::Namespace(name)
            }
            Event::Namespaces(all) => {
                (self.namespaces, self.seen.namespaces) = (all, true);
                Affected::Everybody
            }
            Event::Pod(key, pod) => {
                let same = self.pods.get(&key) == Some(&pod);
                self.pods.insert(key.clone(), pod);
                if same { Affected::Nobody } else { Affected::Pod(key) }
            }
            Event::PodGone(key) => {
                self.pods.remove(&key);
                Affected::Pod(key)
            }
            Event::Pods(all) => {
                (self.pods, self.seen.pods) = (all, true);
                Affected::Everybody
            }
            Event::Policy(id, entry) => {
                let affected = Self::pods_of(&id);
                let before = self.policies.insert(id, *entry);
                let same = |entry: &Entry| {
                    before.as_ref().is_some_and(|old| (&old.uid, old.generation) == (&entry.uid, entry.generation))
                };
                let unchanged = before.as_ref().and_then(|old| self.policies.get(&old.policy.id)).is_some_and(same);
                if unchanged { Affected::Nobody } else { affected }
            }
            Event::PolicyGone(id) => {
                self.policies.remove(&id);
                Self::pods_of(&id)
            }
            Event::Policies { cluster, all } => {
                self.policies.retain(|id, _| id.cluster != cluster);
                self.policies.extend(all);
                *(if cluster { &mut self.seen.cluster_policies } else { &mut self.seen.policies }) = true;
                Affected::Everybody
            }
        }
    }

    fn pods_of(id: &PolicyId) -> Affected {
        if id.cluster { Affected::Everybody } else { Affected::Namespace(id.namespace.clone()) }
    }

    fn publish(&mut self, affected: &Affected) {
        let touched = |key: &PodKey| match affected {
            Affected::Nobody => false,
            Affected::Pod(pod) => pod == key,
            Affected::Namespace(namespace) => *namespace == key.namespace,
            Affected::Everybody => true,
        };
        let keys: Vec<PodKey> = self.subscriptions.keys().filter(|key| touched(key)).cloned().collect();
        for key in keys {
            let uid = self.subscriptions.get(&key).map(|subscription| subscription.uid.clone()).unwrap_or_default();
            let current = self.snapshot(&key, &uid);
            if let Some(subscription) = self.subscriptions.get(&key) {
                // By identity, not by version: a policy that was replaced by its like has another uid to acknowledge.
                let same = |old: &Current| match (old, &current) {
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
        if !matches!(affected, Affected::Nobody) {
            self.prepared.retain(|_, prepared| Arc::strong_count(prepared) > 1);
        }
    }

    /// The policies that govern a pod, by name.
    fn governing<'a>(&'a self, key: &'a PodKey, pod: &'a Pod) -> impl Iterator<Item = (&'a PolicyId, &'a Entry)> {
        let namespace = self.namespaces.get(&key.namespace);
        self.policies.iter().filter(move |(id, entry)| {
            let of_namespace = match &entry.namespaces {
                None => id.namespace == key.namespace,
                // A namespace whose labels are not known is governed by all: nothing is opened by not knowing.
                Some(selector) => namespace.is_none_or(|labels| selects(selector, labels)),
            };
            of_namespace && selects(&entry.policy.spec.pod_selector, &pod.labels)
        })
    }

    /// The snapshot for a pod; none when there is no such pod.
    pub fn snapshot(&mut self, key: &PodKey, uid: &str) -> Current {
        let pod = self.pods.get(key).filter(|pod| pod.uid == uid)?;
        let (mut includes, mut entries) = (Vec::new(), Vec::new());
        for (id, entry) in self.governing(key, pod) {
            includes.push(Included { id: id.clone(), uid: entry.uid.clone(), generation: entry.generation });
            entries.push(entry);
        }
        if let Some(prepared) = self.prepared.get(&includes) {
            return Some(Arc::clone(prepared));
        }
        let prepared = Arc::new(Prepared::new(includes.clone(), &entries));
        self.prepared.insert(includes, Arc::clone(&prepared));
        Some(prepared)
    }

    /// The snapshot for a pod, now and whenever it changes. None when there is no such pod, or not yet.
    pub fn subscribe(&mut self, key: &PodKey, uid: &str) -> Option<watch::Receiver<Current>> {
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

    /// The labels of a namespace, if it is known.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// The pods, those that are being deleted among them.
    pub fn pods(&self) -> impl Iterator<Item = (&PodKey, &Pod)> {
        self.pods.iter()
    }

    /// Whether a pod is there and counts in a status.
    pub fn counts(&self, key: &PodKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|pod| pod.uid == uid && !pod.ends)
    }

    /// Whether a pod is there.
    pub fn has(&self, key: &PodKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|pod| pod.uid == uid)
    }

    /// Whether a pod of this uid is there, whatever its name.
    pub fn has_uid(&self, namespace: &str, uid: &str) -> bool {
        self.pods.iter().any(|(key, pod)| key.namespace == namespace && pod.uid == uid)
    }

    /// Pods that opted in, run, and have no sidecar: how many, by namespace and why. `NotInjected`: they were created before
    /// their namespace opted in, or came past the webhook; each namespace that opted in has it, also with 0.
    pub fn without_sidecar(&self, protects: impl Fn(&str) -> bool) -> BTreeMap<(String, &'static str), i64> {
        let label = |labels: &Labels| labels.get(INJECT_LABEL).cloned();
        let enabled = |name: &str| self.namespaces.get(name).and_then(label).as_deref() == Some("enabled");
        let asked = self.namespaces.keys().filter(|name| enabled(name) && !protects(name));
        let mut counts: BTreeMap<(String, &'static str), i64> = asked.map(|name| ((name.clone(), NOT_INJECTED), 0)).collect();
        for (key, pod) in self.pods.iter().filter(|(_, pod)| !pod.injected && !pod.ends) {
            let opted_in = match label(&pod.labels).as_deref() {
                Some("enabled") => true,
                Some("disabled") => false,
                _ => enabled(&key.namespace),
            };
            if opted_in && !protects(&key.namespace) {
                *counts.entry((key.namespace.clone(), pod.unfit.map_or(NOT_INJECTED, Skip::as_str))).or_default() += 1;
            }
        }
        counts
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyId, &Entry)> {
        self.policies.iter()
    }
}
