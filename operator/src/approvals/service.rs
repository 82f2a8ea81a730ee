//! The approvals of this replica: what it knows of objects, and of the streams whose pods have requests. Its locks are held for the length
//! of a function call, never across an await.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use toolweir_crds::{approval_request::ApprovalReport, resource::MCPApproval};

use super::{
    guarded::ApprovalGuard,
    metrics::MCPApprovalMetrics,
    plan::{StreamMemory, TakenReport},
    records::{ApprovalRecord, ApprovalRecords, RequestKey, RequestingPod, key},
    writer::ApprovalWriter,
};

/// The most memory that requests without an object take together, in KiB.
const ROOM: usize = 16 * 1024;
const UNCHECKED: &str =
    "the operator has just started and does not know yet who checks decisions; make the same call again in a few seconds";
const UNLISTED: &str = "the operator has not seen the MCPApprovals of the cluster; if that stays so, its log says why";

/// The approvals of this replica. One for a process.
#[derive(Debug)]
pub struct ApprovalService {
    /// Writes objects; none where approvals are off.
    pub writer: Option<ApprovalWriter>,
    /// The metrics.
    pub metrics: MCPApprovalMetrics,
    records: Mutex<ApprovalRecords>,
    streams: Mutex<HashMap<RequestingPod, BTreeMap<u64, Arc<RequestStream>>>>,
    /// As it was checked last; none before the first time.
    checked: watch::Sender<Option<ApprovalGuard>>,
    settled: watch::Sender<bool>,
    room: Arc<Semaphore>,
}

/// A stream whose pod has requests.
#[derive(Debug, Default)]
pub struct RequestStream {
    /// Notified when something of the pod has changed.
    pub changed: Notify,
    held: Mutex<HeldByStream>,
}

/// What is kept of a stream.
#[derive(Debug, Default)]
pub struct HeldByStream {
    /// The last report.
    pub report: Option<TakenReport<OwnedSemaphorePermit>>,
    /// What it remembers.
    pub memory: StreamMemory,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread left is whole: every change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RequestStream {
    /// Locks what is kept. It is locked before the records where both are.
    pub fn held(&self) -> MutexGuard<'_, HeldByStream> {
        locked(&self.held)
    }
}

impl ApprovalService {
    /// Creates a service. Without a writer approvals are off.
    pub fn new(writer: Option<ApprovalWriter>, metrics: MCPApprovalMetrics) -> Self {
        let is_off = writer.is_none();
        if !is_off {
            metrics.set_guarded(false);
        }
        Self {
            writer,
            metrics,
            records: Mutex::default(),
            streams: Mutex::default(),
            checked: watch::Sender::new(is_off.then_some(ApprovalGuard::Off)),
            settled: watch::Sender::new(is_off),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// Locks the records.
    pub fn records(&self) -> MutexGuard<'_, ApprovalRecords> {
        locked(&self.records)
    }

    /// Returns whether people can be asked, and their decisions count.
    pub fn guard(&self) -> ApprovalGuard {
        let checked = self.checked.borrow().clone();
        match checked {
            Some(ApprovalGuard::Guarded) if !self.records().is_listed() => ApprovalGuard::Unknown(UNLISTED.to_owned()),
            Some(checked) => checked,
            None => ApprovalGuard::Unknown(UNCHECKED.to_owned()),
        }
    }

    /// Returns a receiver that is notified when that may have changed.
    pub fn guard_changes(&self) -> watch::Receiver<Option<ApprovalGuard>> {
        self.checked.subscribe()
    }

    /// Returns a receiver that holds true once the objects were listed and the guard was checked.
    pub fn settled(&self) -> watch::Receiver<bool> {
        self.settled.subscribe()
    }

    /// Sets whether the API server checks who decides. Returns what held before.
    pub fn set_guard(&self, guard: ApprovalGuard) -> Option<ApprovalGuard> {
        self.metrics.set_guarded(guard == ApprovalGuard::Guarded);
        let mut before = None;
        self.checked.send_if_modified(|checked| {
            before = checked.replace(guard);
            before != *checked
        });
        self.settle();
        before
    }

    fn settle(&self) {
        let is_checked = self.checked.borrow().is_some();
        if is_checked && self.records().is_listed() {
            self.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
        }
    }

    /// Keeps an object as it is now, and notifies the streams of its pod.
    pub fn apply(&self, object: &MCPApproval) {
        let (key, record) = (key(object), ApprovalRecord::read(object, Timestamp::now()));
        let pod = key.0.clone();
        self.records().apply(key, record);
        self.notify(&pod);
    }

    /// Forgets an object that is gone, and tells the streams of its pod.
    pub fn remove(&self, object: &MCPApproval) {
        let key = key(object);
        self.records().remove(&key);
        self.tell_gone(&key);
    }

    /// Keeps these objects and no others, and notifies every stream.
    pub fn replace(&self, all: Vec<(RequestKey, ApprovalRecord)>) {
        let gone = self.records().replace(all);
        for key in &gone {
            self.tell_gone(key);
        }
        self.settle();
        for stream in locked(&self.streams).values().flat_map(BTreeMap::values) {
            stream.changed.notify_one();
        }
    }

    fn tell_gone(&self, (pod, name): &RequestKey) {
        for stream in self.of_pod(pod) {
            let mut held = stream.held();
            let HeldByStream { report, memory } = &mut *held;
            memory.forget(name, report.as_ref());
            drop(held);
            stream.changed.notify_one();
        }
    }

    fn of_pod(&self, pod: &RequestingPod) -> Vec<Arc<RequestStream>> {
        locked(&self.streams).get(pod).map(|streams| streams.values().cloned().collect()).unwrap_or_default()
    }

    fn notify(&self, pod: &RequestingPod) {
        for stream in self.of_pod(pod) {
            stream.changed.notify_one();
        }
    }

    /// Takes the report of a sidecar. One of a stream that was told nothing of approvals is dropped.
    pub fn report(&self, number: u64, pod: &RequestingPod, report: ApprovalReport, now: Timestamp) {
        let Some(stream) = locked(&self.streams).get(pod).and_then(|streams| streams.get(&number)).cloned() else { return };
        let mut held = stream.held();
        let HeldByStream { report: before, memory } = &mut *held;
        let room = |bytes: usize| {
            let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
            Arc::clone(&self.room).try_acquire_many_owned(kib).ok()
        };
        // What the last one held is free for this one.
        if let Some(before) = before.as_mut() {
            before.said.values_mut().for_each(|said| said.request = None);
        }
        let mut report = TakenReport::new(report.approvals, now, before.as_ref(), room);
        if let Some(records) = self.records().of(pod) {
            report.settle(records);
        }
        memory.take(&report);
        if !report.crowded.is_empty() {
            tracing::warn!(
                pod = pod.uid,
                namespace = pod.namespace,
                "too many requests for approval wait at this replica; some are not made"
            );
        }
        *before = Some(report);
        drop(held);
        stream.changed.notify_one();
    }

    /// Adds a stream whose pod has, or may have, requests. It is removed when what is returned is dropped.
    pub fn open(&self, number: u64, pod: RequestingPod) -> OpenRequestStream<'_> {
        let stream = Arc::new(RequestStream::default());
        locked(&self.streams).entry(pod.clone()).or_default().insert(number, Arc::clone(&stream));
        OpenRequestStream { service: self, number, pod, stream }
    }

    /// Returns whether a pod has a stream here.
    pub fn has_stream(&self, pod: &RequestingPod) -> bool {
        locked(&self.streams).contains_key(pod)
    }
}

/// A stream, for as long as it is open.
#[derive(Debug)]
pub struct OpenRequestStream<'a> {
    service: &'a ApprovalService,
    number: u64,
    /// Its pod.
    pub pod: RequestingPod,
    /// What is kept of it.
    pub stream: Arc<RequestStream>,
}

impl OpenRequestStream<'_> {
    /// Returns whether it is the newest of its pod. Older ones are about to end, and what they know may be old too.
    pub fn is_newest(&self) -> bool {
        let streams = locked(&self.service.streams);
        streams.get(&self.pod).and_then(BTreeMap::last_key_value).is_some_and(|(newest, _)| *newest == self.number)
    }
}

impl Drop for OpenRequestStream<'_> {
    fn drop(&mut self) {
        {
            let mut streams = locked(&self.service.streams);
            if let Some(of_pod) = streams.get_mut(&self.pod) {
                of_pod.remove(&self.number);
                if of_pod.is_empty() {
                    streams.remove(&self.pod);
                }
            }
        }
        // Another one may be the newest now.
        self.service.notify(&self.pod);
    }
}
