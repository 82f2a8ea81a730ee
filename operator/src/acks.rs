//! The acknowledgements of sidecars: which version each enforces, which credentials it can use, and how many pods that makes for
//! each policy.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use toolweir_crds::{
    bounds,
    stream::{Ack, CredentialReport, CredentialState},
    text::one_line,
};

use crate::index::{Index, PodKey, PreparedSnapshot};

/// The number of sent versions of a stream that an acknowledgement may name.
const REMEMBERED: usize = 8;
/// The most servers of a report of credentials that are kept though no policy is known that gives them one.
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
    /// What the sidecar said last of the credential of each server: why it cannot be used, or none where it can.
    credentials: BTreeMap<String, Option<String>>,
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
    /// Pods whose sidecar can use the credentials of all servers to which the policy gives one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub credentials_ready: i32,
    /// Why a sidecar cannot use one, with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_problem: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(count: &i32) -> bool {
    *count == 0
}

impl PolicyTally {
    /// Keeps the first of two problems by name, so that it does not change with the order of a map.
    fn first(held: &mut Option<String>, said: impl IntoIterator<Item = String>) {
        *held = held.take().into_iter().chain(said).min();
    }

    /// Counts what the sidecar of a pod said of the credentials of these servers.
    fn add_credentials(&mut self, pod: &PodKey, servers: &[String], said: &BTreeMap<String, Option<String>>) {
        let problem = |server: &String| {
            let why = said.get(server)?.as_ref()?;
            Some(format!("pod {}/{}: server {server}: {why}", pod.namespace, pod.name))
        };
        Self::first(&mut self.credential_problem, servers.iter().filter_map(problem));
        self.credentials_ready += i32::from(servers.iter().all(|server| said.get(server) == Some(&None)));
    }
}

/// Tallies by the policy's uid.
pub type Tallies = BTreeMap<String, PolicyTally>;

impl Acknowledgements {
    /// Adds a stream and returns its number.
    pub fn open(&mut self, pod: PodKey, uid: String) -> u64 {
        self.next += 1;
        self.streams
            .insert(self.next, AcknowledgedStream { pod, uid, sent: Vec::new(), enforced: None, credentials: BTreeMap::new() });
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
        // Each once, and of servers to which a policy gives one. A sidecar that comes from another replica may know of policies of
        // which this one is still to hear, and says nothing anew when it has: so a few others are kept.
        let sent = stream.sent.iter().map(Arc::as_ref).chain(current);
        let known: HashSet<&String> = sent.flat_map(|prepared| prepared.credentials.values().flatten()).collect();
        let (mut kept, mut others) = (BTreeMap::new(), 0);
        for CredentialState { server, problem, .. } in report.credentials {
            if !known.contains(&server) {
                others += 1;
                if others > OTHERS || server.len() > bounds::SERVER_NAME {
                    continue;
                }
            }
            kept.entry(server).or_insert_with(|| problem.map(|why| shorten(&why)));
        }
        stream.credentials = kept;
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
                        let said = format!("pod {}/{}: {why}", pod.namespace, pod.name);
                        PolicyTally::first(&mut tally.refused, [said]);
                    }
                    None => tally.acknowledged += 1,
                }
                if let Some(servers) = prepared.credentials.get(&included.id) {
                    tally.add_credentials(pod, servers, &stream.credentials);
                }
            }
        }
        tallies
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
                held.credentials_ready += tally.credentials_ready;
                PolicyTally::first(&mut held.refused, tally.refused);
                PolicyTally::first(&mut held.credential_problem, tally.credential_problem);
            }
        }
    }
    total
}

/// Returns a text of a sidecar as one line of at most 512 characters, for a status.
fn shorten(text: &str) -> String {
    one_line(text, 512)
}
