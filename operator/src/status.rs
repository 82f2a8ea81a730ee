//! The desired status of a policy, as a pure function, and its merge with the status that it has.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use toolweir_crds::{resource::PolicyStatus, select::Labels, stream::LONGEST_LINE};
use toolweir_engine::{CompileOptions, PolicyId};

use crate::{
    acks::Tallies,
    credential_status::CredentialNeeds,
    index::{Index, Pod, PodKey, PolicyEntry, PreparedSnapshot},
    interception_status::InterceptionNeeds,
    pins_status::{PinsNeeds, PinsReason},
    readiness::{NamedPods, ReadyReason},
    shared_store::health::StoreHealth,
};

/// The reasons of the condition `Accepted`: whether a policy can be enforced as it is written. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The policy can be enforced.
    Accepted,
    /// The policy does not compile, and denies everything on its servers.
    Invalid,
    /// Its rules hold, but an older policy of a pod gives one of its servers another url or credential, or one refuses its TLS.
    Conflicted,
}

/// The reasons of the condition `Programmed`: whether every pod that a policy governs enforces it. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// Every one does.
    Programmed,
    /// Some sidecar has not acknowledged it yet.
    Pending,
    /// The policy governs no pod.
    NoPods,
    /// Some pod that it governs has no sidecar, so that nothing enforces it there.
    NoSidecar,
    /// Some sidecar cannot enforce it, and denies everything on its servers.
    Refused,
    /// The policy does not compile.
    Invalid,
}

impl Accepted {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Invalid, Self::Conflicted];

    /// Returns the reason as the condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Invalid => "Invalid",
            Self::Conflicted => "Conflicted",
        }
    }
}

impl Programmed {
    /// Every reason.
    pub const ALL: [Self; 6] = [Self::Programmed, Self::Pending, Self::NoPods, Self::NoSidecar, Self::Refused, Self::Invalid];

    /// Returns the reason as the condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::Pending => "Pending",
            Self::NoPods => "NoPods",
            Self::NoSidecar => "NoSidecar",
            Self::Refused => "Refused",
            Self::Invalid => "Invalid",
        }
    }
}

/// The desired status of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredStatus {
    /// The generation that it is about.
    pub generation: i64,
    /// Pods that the policy governs.
    pub selected: i32,
    /// Of these, pods with a sidecar.
    pub injected: i32,
    /// Of these, pods that enforce it.
    pub acknowledged: i32,
    /// The condition `Accepted`.
    pub accepted: (Accepted, String),
    /// The condition `Programmed`.
    pub programmed: (Programmed, String),
    /// The condition `SharedStoreReady`: status, reason and message. None where the policy counts nothing across pods.
    pub store: Option<(&'static str, String, String)>,
    /// The condition `CredentialsReady`. None where the policy gives no server a credential.
    pub credentials: Option<(ReadyReason, String)>,
    /// The condition `InterceptionReady`. None where the policy has the TLS of agents opened to no server.
    pub interception: Option<(ReadyReason, String)>,
    /// The condition `PinsMatched`. None where the policy holds no server to pins.
    pub pins: Option<(PinsReason, String)>,
}

/// The longest message, in characters; the API allows 32768 bytes.
const LONGEST: usize = 1024;

const MIB: usize = 1024 * 1024;

/// Returns the snapshots of pods whose conflicts are not computed yet. [`desired`] would compute them while the index is locked.
pub fn without_conflicts_computed(index: &mut Index) -> Vec<Arc<PreparedSnapshot>> {
    let pods: Vec<(PodKey, String)> =
        index.pods().filter(|(_, pod)| !pod.ends).map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
    let mut todo: Vec<Arc<PreparedSnapshot>> = Vec::new();
    for (key, uid) in pods {
        let Some(prepared) = index.snapshot(&key, &uid).filter(|prepared| !prepared.has_conflicts_computed()) else { continue };
        if !todo.iter().any(|other| Arc::ptr_eq(other, &prepared)) {
            todo.push(prepared);
        }
    }
    todo
}

/// Returns the desired status of every policy.
pub fn desired(
    index: &mut Index,
    tallies: &Tallies,
    options: &CompileOptions,
    store: &StoreHealth,
) -> BTreeMap<PolicyId, DesiredStatus> {
    let known = |(key, pod): (&PodKey, &Pod)| (key.clone(), Pod { labels: Labels::new(), ..pod.clone() });
    let pods: Vec<(PodKey, Pod)> = index.pods().filter(|(_, pod)| !pod.ends).map(known).collect();
    let mut governed: BTreeMap<PolicyId, Governed> = BTreeMap::new();
    for (id, entry) in index.policies() {
        let (credentials, interception) = (CredentialNeeds::of(&entry.policy), InterceptionNeeds::of(&entry.policy));
        let pins = PinsNeeds::of(entry, index);
        governed.insert(id.clone(), Governed { credentials, interception, pins, ..Governed::default() });
    }
    for (key, pod) in pods {
        let Some(prepared) = index.snapshot(&key, &pod.uid) else { continue };
        for included in &prepared.includes {
            let of = governed.entry(included.id.clone()).or_default();
            of.add(&key, &pod);
            of.too_long = of.too_long.max(Some(prepared.line.len()).filter(|length| *length > LONGEST_LINE));
        }
        for (id, error) in prepared.conflicts(options) {
            governed.entry(id.clone()).or_default().conflict.get_or_insert_with(|| error.to_string());
        }
        for (server, why) in prepared.disagreements("credential", options) {
            for of in concerned(&mut governed, &prepared.credentials, server) {
                of.credentials.iter_mut().for_each(|needs| needs.close(server, &why));
            }
        }
        for (server, why) in prepared.disagreements("tls", options) {
            for of in concerned(&mut governed, &prepared.interception, server) {
                of.interception.iter_mut().for_each(|needs| needs.refuse(server, &why));
            }
        }
    }
    let status = |(id, entry): (&PolicyId, &PolicyEntry)| {
        let governed = governed.get(id).cloned().unwrap_or_default();
        (id.clone(), governed.desired(entry, tallies, store))
    };
    index.policies().map(status).collect()
}

/// Returns what is gathered for the policies that ask something of a server.
fn concerned<'a>(
    governed: &'a mut BTreeMap<PolicyId, Governed>,
    asked: &BTreeMap<PolicyId, Vec<String>>,
    server: &str,
) -> impl Iterator<Item = &'a mut Governed> {
    let asks = move |id: &PolicyId| asked.get(id).is_some_and(|servers| servers.iter().any(|other| other == server));
    governed.iter_mut().filter(move |(id, _)| asks(id)).map(|(_, governed)| governed)
}

#[derive(Clone, Debug, Default)]
struct Governed {
    selected: i32,
    injected: i32,
    without: NamedPods,
    conflict: Option<String>,
    credentials: Option<CredentialNeeds>,
    interception: Option<InterceptionNeeds>,
    pins: Option<PinsNeeds>,
    /// The bytes of a snapshot that no sidecar takes, since it is too long.
    too_long: Option<usize>,
}

impl Governed {
    /// Looks at a pod.
    fn add(&mut self, key: &PodKey, pod: &Pod) {
        self.selected += 1;
        if !pod.injected {
            return self.without.add(key);
        }
        self.injected += 1;
        if let Some(credentials) = &mut self.credentials {
            credentials.add(key, &pod.credentials);
        }
        if let Some(interception) = &mut self.interception {
            interception.add(key, pod.interception);
        }
    }

    fn desired(self, entry: &PolicyEntry, tallies: &Tallies, store: &StoreHealth) -> DesiredStatus {
        let tally = tallies.get(&entry.uid).filter(|tally| tally.generation == entry.generation).cloned().unwrap_or_default();
        // Two replicas may count a pod both, for the moment in which it changes from one to the other.
        let acknowledged = tally.acknowledged.min(self.injected);
        let accepted = match (entry.errors.first(), &self.conflict) {
            (Some(_), _) => {
                let errors: Vec<String> = entry.errors.iter().map(ToString::to_string).collect();
                (Accepted::Invalid, format!("It denies everything on its servers until this is mended: {}", errors.join("; ")))
            }
            (None, Some(conflict)) => (Accepted::Conflicted, conflict.clone()),
            (None, None) => (Accepted::Accepted, "It is in order.".to_owned()),
        };
        let is_accepted = accepted.0 == Accepted::Accepted;
        let credentials = self.credentials.as_ref();
        let credentials = credentials.map(|needs| needs.condition(self.injected, is_accepted, &tally.credentials));
        let interception = self.interception.as_ref().map(|needs| needs.condition(is_accepted, &tally.interception));
        let pins = self.pins.as_ref().map(|needs| needs.condition(self.injected, is_accepted, &tally.drift));
        let programmed = if accepted.0 == Accepted::Invalid {
            (Programmed::Invalid, "It does not compile; see the condition Accepted.".to_owned())
        } else if self.selected == 0 {
            (Programmed::NoPods, "It governs no pod: none that runs has labels that its selectors select.".to_owned())
        } else if let Some(refused) = tally.refused {
            (Programmed::Refused, format!("A sidecar cannot enforce it and denies everything on its servers: {refused}"))
        } else if self.injected < self.selected {
            let message = format!(
                "{} of {} pods have no sidecar, so that nothing enforces it there: {}. Label the namespace \
                 toolweir.dev/inject=enabled and restart them.",
                self.without.count, self.selected, self.without
            );
            (Programmed::NoSidecar, message)
        } else if acknowledged < self.selected {
            let hint = self.too_long.map(|length| {
                let (takes, most) = (length.div_ceil(MIB), LONGEST_LINE / MIB);
                format!(" The policies and pins of a pod have {takes} MiB, and a sidecar takes {most} MiB: split them, or remove some.")
            });
            let hint = hint.unwrap_or_default();
            (Programmed::Pending, format!("{acknowledged} of {} sidecars enforce it by now.{hint}", self.selected))
        } else {
            (Programmed::Programmed, format!("All {} sidecars enforce it.", self.selected))
        };
        let store = entry.policy.spec.counts_across_pods().then(|| store.condition());
        DesiredStatus {
            generation: entry.generation,
            selected: self.selected,
            injected: self.injected,
            acknowledged,
            accepted: (accepted.0, accepted.1.chars().take(LONGEST).collect()),
            programmed: (programmed.0, programmed.1.chars().take(LONGEST).collect()),
            store: store.map(|(status, reason, message)| (status, reason, message.chars().take(LONGEST).collect())),
            credentials: credentials.map(|(reason, message)| (reason, message.chars().take(LONGEST).collect())),
            interception: interception.map(|(reason, message)| (reason, message.chars().take(LONGEST).collect())),
            pins: pins.map(|(reason, message)| (reason, message.chars().take(LONGEST).collect())),
        }
    }
}

/// Returns the status to write; none where the status is as desired. A condition keeps the time of its last change.
pub fn merge(old: &PolicyStatus, desired: &DesiredStatus, now: Timestamp) -> Option<PolicyStatus> {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let before = old.conditions.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(desired.generation),
            last_transition_time: before.map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
        }
    };
    let holds = |holds: bool| if holds { "True" } else { "False" };
    let (accepted, programmed) = (&desired.accepted, &desired.programmed);
    let ready = |kind: &str, desired: &Option<(ReadyReason, String)>| {
        desired.as_ref().map(|(reason, message)| condition(kind, reason.status(), reason.as_str(), message))
    };
    let (store, pins) = (desired.store.as_ref(), desired.pins.as_ref());
    let new = PolicyStatus {
        observed_generation: Some(desired.generation),
        selected: desired.selected,
        injected: desired.injected,
        acknowledged: desired.acknowledged,
        sidecars: format!("{}/{}", desired.acknowledged, desired.selected),
        conditions: [
            condition("Accepted", holds(accepted.0 == Accepted::Accepted), accepted.0.as_str(), &accepted.1),
            condition("Programmed", holds(programmed.0 == Programmed::Programmed), programmed.0.as_str(), &programmed.1),
        ]
        .into_iter()
        .chain(store.map(|(status, reason, message)| condition("SharedStoreReady", status, reason, message)))
        .chain(ready("CredentialsReady", &desired.credentials))
        .chain(ready("InterceptionReady", &desired.interception))
        .chain(pins.map(|(reason, message)| condition("PinsMatched", reason.status(), reason.as_str(), message)))
        .collect(),
    };
    (new != *old).then_some(new)
}
