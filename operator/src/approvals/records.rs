//! The `MCPApproval`s of the cluster, as far as they are kept: by pod, and only what says what becomes of them. Plain data, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use toolweir_crds::{
    approval_request::{ApprovalDecision, ApprovalPolicy, ApprovalState, MCPApprovalSpec},
    resource::MCPApproval,
};

/// The pod of a request. Objects of one namespace that name a pod of another have nothing to do with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestingPod {
    /// Its namespace, which is that of its objects.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

/// What is asked, in few bytes: server, tool, arguments and policies.
pub type RequestDigest = [u8; 16];

/// Returns the digest of what is asked.
pub fn digest(spec: &MCPApprovalSpec) -> RequestDigest {
    let policies: BTreeSet<&ApprovalPolicy> = spec.policies.iter().collect();
    let asked = serde_json::to_vec(&(&spec.server, &spec.tool, &spec.arguments_sha256, policies)).unwrap_or_default();
    let hash = ring::digest::digest(&ring::digest::SHA256, &asked);
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// An `MCPApproval`. One that has ended is kept for as long as the object is there, so that part is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRecord {
    /// The state that was written last; none where none was written yet.
    pub state: Option<ApprovalState>,
    /// The decision of a person, whether it counts or not.
    pub decision: Option<ApprovalDecision>,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// When its state was written last, in the same.
    pub changed: i64,
    /// When this replica saw it change last, in the same.
    pub seen: i64,
    /// `status.expiresAt`, in the same.
    pub until: Option<i64>,
    /// Who decided and why, where somebody still has to be told.
    pub verdict: Option<Box<PersonDecision>>,
    /// Why it is in its state; only of one that is void.
    pub message: Option<Box<str>>,
    /// The request, until it has ended.
    pub open: Option<Box<OpenRequest>>,
}

/// Who decided, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonDecision {
    /// The user.
    pub by: Box<str>,
    /// Their reason.
    pub reason: Option<Box<str>>,
}

/// What is kept of a request that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The object's uid.
    pub uid: String,
    /// The version of the object, which a write names.
    pub resource_version: String,
    /// The name of its pod.
    pub pod: String,
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// The policies that ask.
    pub policies: Vec<ApprovalPolicy>,
    /// When it ends unless it is decided.
    pub expires: Timestamp,
    /// For how many seconds an approval can be used.
    pub usable: u64,
    /// What is asked.
    pub digest: RequestDigest,
}

impl ApprovalRecord {
    /// Reads an object. `now`: when it was seen.
    pub fn read(object: &MCPApproval, now: Timestamp) -> Self {
        let status = object.status.as_ref();
        let state = status.and_then(|status| status.state);
        let created = object.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0).as_second();
        let time = |text: Option<&String>| text.and_then(|text| text.parse::<Timestamp>().ok()).map(Timestamp::as_second);
        let decision = status.and_then(|status| status.decision);
        let ended = state.is_some_and(ApprovalState::is_final);
        let by = status.and_then(|status| status.decided_by.as_deref()).filter(|by| !by.is_empty());
        let is_told = !ended || state == Some(ApprovalState::Denied);
        let verdict = by.filter(|_| is_told && decision.is_some()).map(|by| {
            let reason = status.and_then(|status| status.reason.as_deref()).map(Into::into);
            Box::new(PersonDecision { by: by.into(), reason })
        });
        let message = status.and_then(|status| status.message.as_deref());
        Self {
            state,
            decision,
            created,
            changed: time(status.and_then(|status| status.updated_at.as_ref())).unwrap_or(created),
            seen: now.as_second(),
            until: time(status.and_then(|status| status.expires_at.as_ref())),
            verdict,
            message: message.filter(|_| state == Some(ApprovalState::Voided)).map(Into::into),
            open: (!ended).then(|| Box::new(OpenRequest::read(object))),
        }
    }

    /// Returns whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.state.is_some_and(ApprovalState::is_final)
    }
}

impl OpenRequest {
    fn read(object: &MCPApproval) -> Self {
        let spec = &object.spec;
        Self {
            uid: object.uid().unwrap_or_default(),
            resource_version: object.resource_version().unwrap_or_default(),
            pod: spec.agent.pod.clone(),
            server: spec.server.clone(),
            tool: spec.tool.clone(),
            policies: spec.policies.clone(),
            // An end that cannot be read is one that has passed.
            expires: spec.expires_at.parse().unwrap_or(Timestamp::UNIX_EPOCH),
            usable: spec.usable_seconds,
            digest: digest(spec),
        }
    }
}

/// The requests of one pod, by name.
pub type PodRecords = BTreeMap<Box<str>, ApprovalRecord>;

/// The requests of all pods.
#[derive(Debug, Default)]
pub struct ApprovalRecords {
    pods: HashMap<RequestingPod, PodRecords>,
    is_listed: bool,
}

/// A request by its pod and name.
pub type RequestKey = (RequestingPod, Box<str>);

/// Returns the pod and the name of an object.
pub fn key(object: &MCPApproval) -> RequestKey {
    let namespace = object.namespace().unwrap_or_default();
    (RequestingPod { namespace, uid: object.spec.agent.pod_uid.clone() }, object.name_any().into())
}

impl ApprovalRecords {
    /// Returns whether all objects were listed once.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Keeps an object as it is now.
    pub fn apply(&mut self, (pod, name): RequestKey, mut record: ApprovalRecord) {
        let records = self.pods.entry(pod).or_default();
        if let Some(before) = records.get(&name)
            && (before.state, before.decision) == (record.state, record.decision)
        {
            record.seen = before.seen;
        }
        records.insert(name, record);
    }

    /// Forgets an object that is gone. Returns what was kept of it.
    pub fn remove(&mut self, (pod, name): &RequestKey) -> Option<ApprovalRecord> {
        let records = self.pods.get_mut(pod)?;
        let removed = records.remove(name);
        if records.is_empty() {
            self.pods.remove(pod);
        }
        removed
    }

    /// Keeps these objects and no others. Returns those that had not ended and are gone.
    pub fn replace(&mut self, all: Vec<(RequestKey, ApprovalRecord)>) -> Vec<RequestKey> {
        let mut before = std::mem::take(&mut self.pods);
        self.is_listed = true;
        for (key, record) in all {
            if let Some(old) = before.get_mut(&key.0).and_then(|records| records.remove(&key.1)) {
                self.apply(key.clone(), old);
            }
            self.apply(key, record);
        }
        let left = before
            .into_iter()
            .flat_map(|(pod, records)| records.into_iter().map(move |(name, record)| (pod.clone(), name, record)));
        left.filter(|(_, _, record)| !record.has_ended()).map(|(pod, name, _)| (pod, name)).collect()
    }

    /// Returns the requests of a pod.
    pub fn of(&self, pod: &RequestingPod) -> Option<&PodRecords> {
        self.pods.get(pod)
    }

    /// Returns whether a pod has requests that have not ended.
    pub fn has_open(&self, pod: &RequestingPod) -> bool {
        self.of(pod).is_some_and(|records| records.values().any(|record| !record.has_ended()))
    }

    /// The pods that have requests, with these.
    pub fn pods(&self) -> impl Iterator<Item = (&RequestingPod, &PodRecords)> {
        self.pods.iter()
    }

    /// Counts the objects of each state; those without one count as `Pending`.
    pub fn tally(&self) -> BTreeMap<ApprovalState, i64> {
        let mut counts: BTreeMap<ApprovalState, i64> = ApprovalState::ALL.into_iter().map(|state| (state, 0)).collect();
        for record in self.pods.values().flat_map(BTreeMap::values) {
            *counts.entry(record.state.unwrap_or_default()).or_default() += 1;
        }
        counts
    }
}
