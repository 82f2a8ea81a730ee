//! What the status of a policy says, from what is known: a pure function, and the merge with what it said before.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use toolweir_crds::resource::PolicyStatus;
use toolweir_engine::{Options, PolicyId};

use crate::{
    acks::Tallies,
    index::{Entry, Index, PodKey, Prepared},
    shared::{self, Health},
};

/// Whether a policy means something: the closed set of reasons of the condition `Accepted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It does.
    Accepted,
    /// It does not compile, and denies everything on its servers.
    Invalid,
    /// Its rules hold, but an older policy of a pod gives one of its servers another url, and that one holds.
    Conflicted,
}

/// Whether every pod that a policy governs enforces it: the closed set of reasons of the condition `Programmed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// Every one does.
    Programmed,
    /// Some sidecar has not acknowledged it yet.
    Pending,
    /// It governs no pod.
    NoPods,
    /// Some pod that it governs has no sidecar, so that nothing enforces it there.
    NoSidecar,
    /// Some sidecar cannot enforce it, and denies everything on its servers.
    Refused,
    /// It does not compile.
    Invalid,
}

impl Accepted {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Invalid, Self::Conflicted];

    /// As the condition says it.
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

    /// As the condition says it.
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

/// What a status is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
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
}

/// How many pods a message names.
const NAMED: usize = 3;
/// The longest message, in characters; the API allows 32768 bytes.
const LONGEST: usize = 1024;

/// What pods are to enforce, as far as its conflicts are not worked out. [`wanted`] would do it while it holds the index.
pub fn not_worked_out(index: &mut Index) -> Vec<Arc<Prepared>> {
    let pods: Vec<(PodKey, String)> =
        index.pods().filter(|(_, pod)| !pod.ends).map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
    let mut todo: Vec<Arc<Prepared>> = Vec::new();
    for (key, uid) in pods {
        let Some(prepared) = index.snapshot(&key, &uid).filter(|prepared| !prepared.is_worked_out()) else { continue };
        if !todo.iter().any(|other| Arc::ptr_eq(other, &prepared)) {
            todo.push(prepared);
        }
    }
    todo
}

/// What the status of every policy is to say.
pub fn wanted(index: &mut Index, tallies: &Tallies, options: &Options, store: &Health) -> BTreeMap<PolicyId, Wanted> {
    let pods: Vec<(PodKey, String, bool)> =
        index.pods().filter(|(_, pod)| !pod.ends).map(|(key, pod)| (key.clone(), pod.uid.clone(), pod.injected)).collect();
    let mut governed: BTreeMap<PolicyId, Governed> = BTreeMap::new();
    for (key, uid, injected) in pods {
        let Some(prepared) = index.snapshot(&key, &uid) else { continue };
        for included in &prepared.includes {
            let governed = governed.entry(included.id.clone()).or_default();
            governed.selected += 1;
            if injected {
                governed.injected += 1;
            } else if governed.without.len() < NAMED {
                governed.without.push(key.to_string());
            }
        }
        for (id, error) in prepared.conflicts(options) {
            governed.entry(id.clone()).or_default().conflict.get_or_insert_with(|| error.to_string());
        }
    }
    let of = |(id, entry): (&PolicyId, &Entry)| {
        let governed = governed.get(id).cloned().unwrap_or_default();
        (id.clone(), governed.wanted(entry, tallies, store))
    };
    index.policies().map(of).collect()
}

#[derive(Clone, Debug, Default)]
struct Governed {
    selected: i32,
    injected: i32,
    without: Vec<String>,
    conflict: Option<String>,
}

impl Governed {
    fn wanted(self, entry: &Entry, tallies: &Tallies, store: &Health) -> Wanted {
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
        let programmed = if accepted.0 == Accepted::Invalid {
            (Programmed::Invalid, "It does not compile; see the condition Accepted.".to_owned())
        } else if self.selected == 0 {
            (Programmed::NoPods, "It governs no pod: none that runs has labels that its selectors select.".to_owned())
        } else if let Some(refused) = tally.refused {
            (Programmed::Refused, format!("A sidecar cannot enforce it and denies everything on its servers: {refused}"))
        } else if self.injected < self.selected {
            let more =
                if usize::try_from(self.selected - self.injected).is_ok_and(|without| without > NAMED) { ", ..." } else { "" };
            let without = self.without.join(", ");
            let message = format!(
                "{} of {} pods have no sidecar, so that nothing enforces it there: {without}{more}. Label the namespace \
                 toolweir.dev/inject=enabled and restart them.",
                self.selected - self.injected,
                self.selected
            );
            (Programmed::NoSidecar, message)
        } else if acknowledged < self.selected {
            (Programmed::Pending, format!("{} of {} sidecars enforce it by now.", acknowledged, self.selected))
        } else {
            (Programmed::Programmed, format!("All {} sidecars enforce it.", self.selected))
        };
        let store = shared::is_used(&entry.policy.spec).then(|| store.condition());
        Wanted {
            generation: entry.generation,
            selected: self.selected,
            injected: self.injected,
            acknowledged,
            accepted: (accepted.0, accepted.1.chars().take(LONGEST).collect()),
            programmed: (programmed.0, programmed.1.chars().take(LONGEST).collect()),
            store: store.map(|(status, reason, message)| (status, reason, message.chars().take(LONGEST).collect())),
        }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The status that says what is wanted; none where it is said already. A condition keeps the time of its last change.
pub fn merge(old: &PolicyStatus, wanted: &Wanted, now: Timestamp) -> Option<PolicyStatus> {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let before = old.conditions.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(wanted.generation),
            last_transition_time: before.map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
        }
    };
    let holds = |holds: bool| if holds { "True" } else { "False" };
    let (accepted, programmed) = (&wanted.accepted, &wanted.programmed);
    let store = wanted.store.as_ref();
    let new = PolicyStatus {
        observed_generation: Some(wanted.generation),
        selected: wanted.selected,
        injected: wanted.injected,
        acknowledged: wanted.acknowledged,
        sidecars: format!("{}/{}", wanted.acknowledged, wanted.selected),
        conditions: [
            condition("Accepted", holds(accepted.0 == Accepted::Accepted), accepted.0.as_str(), &accepted.1),
            condition("Programmed", holds(programmed.0 == Programmed::Programmed), programmed.0.as_str(), &programmed.1),
        ]
        .into_iter()
        .chain(store.map(|(status, reason, message)| condition("SharedStoreReady", status, reason, message)))
        .collect(),
    };
    (new != *old).then_some(new)
}
