//! What the leader does for requests whose pod has no stream at this replica: it ends those that are over or whose pod is gone, counts
//! decisions, and deletes what has ended long ago. Plain functions, no I/O.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{
    guarded::ApprovalGuard,
    records::{ApprovalRecord, ApprovalRecords, OpenRequest, PodRecords, RequestKey, RequestingPod},
    request::governs,
    transition::{Circumstances, DueState, due},
};
use crate::index::IncludedPolicy;

/// The most objects that have ended which are kept of a pod.
pub const ENDED: usize = 100;
/// The time that the replica with the pod's stream has for what it does at once.
const GRACE: Duration = Duration::from_secs(5);
/// The pod of an object that is younger than this may not have been seen yet.
const YOUNG: Duration = Duration::from_secs(30);
const GONE: &str = "The pod is gone.";

/// What the leader knows of the cluster.
pub trait PodDirectory {
    /// Returns whether a pod is there.
    fn is_there(&self, pod: &RequestingPod, name: &str) -> bool;
    /// Returns whether it has a stream at this replica.
    fn has_stream(&self, pod: &RequestingPod) -> bool;
    /// Returns the policies that govern it.
    fn governing(&self, pod: &RequestingPod, name: &str) -> Vec<IncludedPolicy>;
}

/// Returns the states that are to be written, at most so many.
pub fn orphans(
    records: &ApprovalRecords,
    pods: &impl PodDirectory,
    guard: &ApprovalGuard,
    now: Timestamp,
    most: usize,
) -> Vec<(RequestKey, ApprovalRecord, DueState)> {
    let open = records.pods().flat_map(|(pod, records)| records.iter().map(move |(name, record)| (pod, name, record)));
    let open = open.filter_map(|(pod, name, record)| Some((pod, name, record, record.open.as_deref()?)));
    let due = open.filter(|(pod, ..)| !pods.has_stream(pod)).filter_map(|(pod, name, record, open)| {
        let due = orphan(pod, record, open, pods, guard, now)?;
        Some(((pod.clone(), name.clone()), record.clone(), due))
    });
    due.take(most).collect()
}

fn orphan(
    pod: &RequestingPod,
    record: &ApprovalRecord,
    open: &OpenRequest,
    pods: &impl PodDirectory,
    guard: &ApprovalGuard,
    now: Timestamp,
) -> Option<DueState> {
    let before = |span: Duration| now.as_second().saturating_sub(i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
    let is_there = pods.is_there(pod, &open.pod);
    if !is_there && record.created > before(YOUNG) {
        return None;
    }
    // What has just changed, or has just ended, is for the replica that holds the stream.
    let over = if record.until.is_some() { record.until } else { Some(open.expires.as_second()) };
    let is_fresh = record.seen > before(GRACE) || over.is_some_and(|over| (before(GRACE)..now.as_second()).contains(&over));
    if is_there && is_fresh {
        return None;
    }
    // Only a decision depends on it; that of nobody waits for the sidecar's own word.
    let governed = record.decision.is_none()
        || (is_there && {
            let governing = pods.governing(pod, &open.pod);
            open.policies.iter().all(|policy| governs(policy, &governing))
        });
    let around = Circumstances { guard, governed, said: None, lost: (!is_there).then_some(GONE) };
    due(record, around, now)
}

/// Returns the objects that are to be deleted, at most so many: those that ended longer ago than `retention`, and of each pod the oldest
/// beyond [`ENDED`].
pub fn outdated(records: &ApprovalRecords, retention: Duration, now: Timestamp, most: usize) -> Vec<RequestKey> {
    let retention = i64::try_from(retention.as_secs()).unwrap_or(i64::MAX);
    let oldest = now.as_second().saturating_sub(retention);
    let of_pod = |(pod, records): (&RequestingPod, &PodRecords)| {
        let mut ended: Vec<_> = records.iter().filter(|(_, record)| record.has_ended()).collect();
        ended.sort_by(|(name, a), (other, b)| (a.changed, name).cmp(&(b.changed, other)));
        let beyond = ended.len().saturating_sub(ENDED);
        let outdated = ended.into_iter().enumerate().filter(|(place, (_, record))| *place < beyond || record.changed < oldest);
        outdated.map(|(_, (name, _))| (pod.clone(), name.clone())).collect::<Vec<_>>()
    };
    records.pods().flat_map(of_pod).take(most).collect()
}
