//! What sidecars acknowledged: which version each enforces, and how many pods that makes for each policy.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use toolweir_crds::stream::Ack;

use crate::index::{Index, PodKey, Prepared};

/// How many sent versions of a stream an acknowledgement may still name.
const REMEMBERED: usize = 8;

/// The streams that are open, with what each acknowledged last.
#[derive(Debug, Default)]
pub struct Acks {
    streams: HashMap<u64, Stream>,
    next: u64,
}

#[derive(Debug)]
struct Stream {
    pod: PodKey,
    uid: String,
    sent: Vec<Arc<Prepared>>,
    enforced: Option<Enforced>,
}

/// A snapshot that is in force, and the policies in it that cannot be enforced, each with why.
type Enforced = (Arc<Prepared>, Vec<(String, String)>);

/// For a policy: how many pods enforce it, and what a sidecar said that could not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// The generation that was counted.
    pub generation: i64,
    /// Pods whose sidecar enforces it.
    pub acknowledged: i32,
    /// What a sidecar said that could not, with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Tallies by the policy's uid.
pub type Tallies = BTreeMap<String, Tally>;

impl Acks {
    /// A stream was opened; gives its number.
    pub fn open(&mut self, pod: PodKey, uid: String) -> u64 {
        self.next += 1;
        self.streams.insert(self.next, Stream { pod, uid, sent: Vec::new(), enforced: None });
        self.next
    }

    /// A stream has ended.
    pub fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many of these enforce what was sent last.
    pub fn current(&self) -> usize {
        let current = |stream: &&Stream| match (stream.sent.last(), &stream.enforced) {
            (Some(sent), Some((enforced, _))) => Arc::ptr_eq(sent, enforced),
            _ => false,
        };
        self.streams.values().filter(current).count()
    }

    /// A snapshot was sent.
    pub fn sent(&mut self, stream: u64, prepared: &Arc<Prepared>) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            if stream.sent.len() == REMEMBERED {
                stream.sent.remove(0);
            }
            stream.sent.push(Arc::clone(prepared));
        }
    }

    /// A sidecar says what it enforces. False when that was never sent to it, or long ago: nothing is counted.
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

    /// How many pods of this replica's streams enforce each policy as it stands. A pod with two streams counts once.
    pub fn tally(&self, index: &Index) -> Tallies {
        let mut latest: HashMap<(&PodKey, &str), (u64, &Stream)> = HashMap::new();
        for (number, stream) in &self.streams {
            let held = latest.entry((&stream.pod, &stream.uid)).or_insert((*number, stream));
            if *number > held.0 {
                *held = (*number, stream);
            }
        }
        let mut tallies: Tallies = index
            .policies()
            .map(|(_, entry)| (entry.uid.clone(), Tally { generation: entry.generation, ..Tally::default() }))
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
                        // The first by name, so that it does not change with the order of a map.
                        tally.refused = tally.refused.take().into_iter().chain([said]).min();
                    }
                    None => tally.acknowledged += 1,
                }
            }
        }
        tallies
    }
}

/// What all replicas counted, taken together. Generations that differ are not added up: the newest holds.
pub fn add(parts: impl IntoIterator<Item = Tallies>) -> Tallies {
    let mut sum = Tallies::new();
    for (uid, tally) in parts.into_iter().flatten() {
        let held = sum.entry(uid).or_insert_with(|| Tally { generation: tally.generation, ..Tally::default() });
        match tally.generation.cmp(&held.generation) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Greater => *held = tally,
            std::cmp::Ordering::Equal => {
                held.acknowledged += tally.acknowledged;
                held.refused = held.refused.take().into_iter().chain(tally.refused).min();
            }
        }
    }
    sum
}

/// A text of a sidecar's, fit for a status: one line, 512 characters.
fn shorten(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}
