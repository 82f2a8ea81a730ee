//! The acknowledgements of sidecars: which version each enforces, which credentials it can use, to which servers it can open TLS, which
//! tools are not as they were pinned, and how many pods that makes for each policy.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use toolweir_crds::{
    bounds,
    stream::{Ack, CredentialReport, DriftReport, InterceptionReport},
    text::one_line,
};
use toolweir_engine::PolicyId;

use crate::{
    index::{Index, PodKey, PreparedSnapshot},
    pins_status::{DriftTally, SaidOfPins},
    readiness::{SaidOfServer, ServersTally, first},
};

/// The number of sent versions of a stream that an acknowledgement may name.
const REMEMBERED: usize = 8;
/// The most servers of a report that are kept though no policy is known that asks for it.
const OTHERS: usize = 16;

/// The streams that are open, with what each acknowledged last.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    streams: HashMap<u64, AcknowledgedStream>,
    next: u64,
}

#[derive(Debug)]
struct AcknowledgedStream {
    pod: PodKey,
    uid: String,
    sent: Vec<Arc<PreparedSnapshot>>,
    enforced: Option<Enforced>,
    /// What the sidecar said last of the credential of each server: whether it can use it.
    credentials: BTreeMap<String, SaidOfServer>,
    /// What it said last of the TLS of agents to each server: whether it can open it.
    interception: BTreeMap<String, SaidOfServer>,
    /// What it said last of tools of pinned servers; none before it said something.
    drift: Option<SaidOfPins>,
}

/// A snapshot that is in force, and the policies in it that cannot be enforced, each with why.
type Enforced = (Arc<PreparedSnapshot>, Vec<(String, String)>);

/// The number of pods that enforce a policy, and the error of a sidecar that cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTally {
    /// The generation that was counted.
    pub generation: i64,
    /// Pods whose sidecar enforces it.
    pub acknowledged: i32,
    /// The error of a sidecar that cannot enforce it, with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What sidecars said of the servers to which the policy gives a credential.
    #[serde(default, skip_serializing_if = "ServersTally::is_empty")]
    pub credentials: ServersTally,
    /// What sidecars of prepared pods said of the servers to which the policy has the TLS of agents opened.
    #[serde(default, skip_serializing_if = "ServersTally::is_empty")]
    pub interception: ServersTally,
    /// What sidecars said of the servers that the policy holds to pins.
    #[serde(default, skip_serializing_if = "DriftTally::is_empty")]
    pub drift: DriftTally,
}

/// Tallies by the policy's uid.
pub type Tallies = BTreeMap<String, PolicyTally>;

impl Acknowledgements {
    /// Adds a stream and returns its number.
    pub fn open(&mut self, pod: PodKey, uid: String) -> u64 {
        self.next += 1;
        let (credentials, interception) = (BTreeMap::new(), BTreeMap::new());
        let stream = AcknowledgedStream { pod, uid, sent: Vec::new(), enforced: None, credentials, interception, drift: None };
        self.streams.insert(self.next, stream);
        self.next
    }

    /// Removes a stream that has ended.
    pub fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
    }

    /// Returns how many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Returns how many streams enforce the snapshot that was sent last.
    pub fn current(&self) -> usize {
        let current = |stream: &&AcknowledgedStream| match (stream.sent.last(), &stream.enforced) {
            (Some(sent), Some((enforced, _))) => Arc::ptr_eq(sent, enforced),
            _ => false,
        };
        self.streams.values().filter(current).count()
    }

    /// Remembers a snapshot that was sent.
    pub fn sent(&mut self, stream: u64, prepared: &Arc<PreparedSnapshot>) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            if stream.sent.len() == REMEMBERED {
                stream.sent.remove(0);
            }
            stream.sent.push(Arc::clone(prepared));
        }
    }

    /// Takes an acknowledgement. Returns false where it names a version that was never sent, or long ago: then nothing is
    /// counted.
    pub fn acknowledge(&mut self, stream: u64, ack: Ack) -> bool {
        let Some(stream) = self.streams.get_mut(&stream) else { return false };
        let Some(prepared) = stream.sent.iter().rev().find(|prepared| prepared.version == ack.version) else { return false };
        // Of policies that were in it, each once: whatever else a sidecar says is not kept.
        let mut said: HashMap<String, String> = HashMap::new();
        for refused in ack.problems {
            said.entry(refused.policy).or_insert(refused.message);
        }
        let names = prepared.includes.iter().map(|included| included.id.to_string());
        let problems = names.filter_map(|name| said.remove(&name).map(|message| (name, shorten(&message)))).collect();
        stream.enforced = Some((Arc::clone(prepared), problems));
        true
    }

    /// Takes what a sidecar says of the credentials of its servers. `current` is the snapshot for its pod.
    pub fn report_credentials(&mut self, stream: u64, current: Option<&PreparedSnapshot>, report: CredentialReport) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let said = report.credentials.into_iter().map(|state| {
            let said = state.problem.map_or(SaidOfServer::Ready, |why| SaidOfServer::Problem(shorten(&why)));
            (state.server, said)
        });
        stream.credentials = stream.known(said, current, |prepared| &prepared.credentials);
    }

    /// Takes what a sidecar says of the TLS of agents to its servers. `current` is the snapshot for its pod.
    pub fn report_interception(&mut self, stream: u64, current: Option<&PreparedSnapshot>, report: InterceptionReport) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let said = report.interception.into_iter().map(|state| {
            let said = match state.problem {
                None => SaidOfServer::Ready,
                Some(_) if state.needs_new_pod => SaidOfServer::NewPodNeeded,
                Some(why) => SaidOfServer::Problem(shorten(&why)),
            };
            (state.server, said)
        });
        stream.interception = stream.known(said, current, |prepared| &prepared.interception);
    }

    /// Takes what a sidecar says of tools that are not as they were pinned. `current` is the snapshot for its pod.
    pub fn report_drift(&mut self, stream: u64, current: Option<&PreparedSnapshot>, report: DriftReport) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let sent = &stream.sent;
        let is_pinned = |server: &str, pins: &str| {
            sent.iter().map(Arc::as_ref).chain(current).any(|prepared| prepared.is_pinned(server, pins))
        };
        stream.drift = Some(SaidOfPins::new(report, is_pinned));
    }

    /// Counts the pods of this replica's streams that enforce the current generation of each policy. A pod with two streams
    /// counts once.
    pub fn tally(&self, index: &Index) -> Tallies {
        let mut latest: HashMap<(&PodKey, &str), (u64, &AcknowledgedStream)> = HashMap::new();
        for (number, stream) in &self.streams {
            let held = latest.entry((&stream.pod, &stream.uid)).or_insert((*number, stream));
            if *number > held.0 {
                *held = (*number, stream);
            }
        }
        let mut tallies: Tallies = index
            .policies()
            .map(|(_, entry)| (entry.uid.clone(), PolicyTally { generation: entry.generation, ..PolicyTally::default() }))
            .collect();
        for ((pod, uid), (_, stream)) in latest {
            let Some((prepared, problems)) = stream.enforced.as_ref().filter(|_| index.counts(pod, uid)) else { continue };
            for included in &prepared.includes {
                let Some(tally) = tallies.get_mut(&included.uid) else { continue };
                if included.generation != tally.generation {
                    continue;
                }
                let name = included.id.to_string();
                match problems.iter().find(|(policy, _)| *policy == name) {
                    Some((_, why)) => {
                        first(&mut tally.refused, [format!("pod {pod}: {why}")]);
                    }
                    None => tally.acknowledged += 1,
                }
                if let Some(servers) = prepared.credentials.get(&included.id) {
                    tally.credentials.add(pod, servers, &stream.credentials);
                }
                // Of others the operator knows by itself that they must be created anew.
                if let Some(servers) = prepared.interception.get(&included.id).filter(|_| index.is_prepared(pod)) {
                    tally.interception.add(pod, servers, &stream.interception);
                }
                if let Some((servers, said)) = prepared.pinned.get(&included.id).zip(stream.drift.as_ref()) {
                    tally.drift.add(servers, said);
                }
            }
        }
        tallies
    }
}

impl AcknowledgedStream {
    /// Returns what is kept of a report: each server once, and those of which a policy asks it. A sidecar that comes from another
    /// replica may know of policies of which this one is still to hear, and says nothing anew when it has: so a few others are kept.
    fn known(
        &self,
        said: impl Iterator<Item = (String, SaidOfServer)>,
        current: Option<&PreparedSnapshot>,
        asked: impl Fn(&PreparedSnapshot) -> &BTreeMap<PolicyId, Vec<String>>,
    ) -> BTreeMap<String, SaidOfServer> {
        let sent = self.sent.iter().map(Arc::as_ref).chain(current);
        let known: HashSet<&String> = sent.flat_map(|prepared| asked(prepared).values().flatten()).collect();
        let (mut kept, mut others) = (BTreeMap::new(), 0);
        for (server, said) in said {
            if !known.contains(&server) {
                others += 1;
                if others > OTHERS || server.len() > bounds::SERVER_NAME {
                    continue;
                }
            }
            kept.entry(server).or_insert(said);
        }
        kept
    }
}

/// Adds up the tallies of all replicas. Of generations that differ, only the newest counts.
pub fn sum(parts: impl IntoIterator<Item = Tallies>) -> Tallies {
    let mut total = Tallies::new();
    for (uid, tally) in parts.into_iter().flatten() {
        let held = total.entry(uid).or_insert_with(|| PolicyTally { generation: tally.generation, ..PolicyTally::default() });
        match tally.generation.cmp(&held.generation) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Greater => *held = tally,
            std::cmp::Ordering::Equal => {
                held.acknowledged += tally.acknowledged;
                held.credentials.merge(tally.credentials);
                held.interception.merge(tally.interception);
                held.drift.merge(tally.drift);
                first(&mut held.refused, tally.refused);
            }
        }
    }
    total
}

/// Returns a text of a sidecar as one line of at most 512 characters, for a status.
fn shorten(text: &str) -> String {
    one_line(text, 512)
}
