//! The state that the parts of the operator share: the index, the acknowledgements, how the shared store is, and a signal that
//! one of them changed.

use std::{
    panic::resume_unwind,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Semaphore, watch};
use toolweir_crds::stream::{Ack, CredentialReport, DriftReport, InterceptionReport};
use toolweir_engine::CompileOptions;

use crate::{
    acks::Acknowledgements,
    drift_events::{self, DriftedTool},
    index::{ClusterEvent, Index, PodKey},
    metrics::OperatorRegistry,
    shared_store::health::StoreHealth,
};

/// The metrics of the shared state.
#[derive(Clone, Debug)]
pub struct StateMetrics {
    /// Open streams.
    pub streams: IntGauge,
    /// Acknowledgements that came.
    pub acks: IntCounter,
    /// 1 once every resource was listed.
    pub synced: IntGauge,
}

impl StateMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            streams: registry.gauge("toolweir_operator_streams", "Policy streams of sidecars that are open at this replica.")?,
            acks: registry.counter("toolweir_operator_acks_total", "Acknowledgements of snapshots that came.")?,
            synced: registry.gauge("toolweir_operator_synced", "1 once the whole cluster was seen.")?,
        })
    }
}

/// The shared state. Its locks are held for the length of a function call, never across an await.
#[derive(Debug)]
pub struct ClusterState {
    index: Mutex<Index>,
    acks: Mutex<Acknowledgements>,
    store: Mutex<StoreHealth>,
    changed: watch::Sender<u64>,
    /// The metrics.
    pub metrics: StateMetrics,
    /// The options with which policies are compiled.
    pub options: CompileOptions,
    compiling: Semaphore,
}

impl ClusterState {
    /// Creates a state in which nothing is known yet.
    pub fn new(metrics: StateMetrics, options: CompileOptions) -> Self {
        let changed = watch::Sender::new(0);
        Self {
            index: Mutex::default(),
            acks: Mutex::default(),
            store: Mutex::default(),
            changed,
            metrics,
            options,
            compiling: Semaphore::new(1),
        }
    }

    /// Locks the index.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        // What a panicking thread left is whole: every change is one call.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the acknowledgements. Where both locks are held, that of the index is taken first.
    pub fn acks(&self) -> MutexGuard<'_, Acknowledgements> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how the shared store is.
    pub fn store(&self) -> StoreHealth {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets how the shared store is. Returns whether that changed.
    pub fn set_store(&self, health: &StoreHealth) -> bool {
        let changed = {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *store != *health;
            store.clone_from(health);
            changed
        };
        if changed {
            self.notify();
        }
        changed
    }

    /// Applies an event to the index.
    pub fn apply(&self, event: ClusterEvent) {
        let synced = {
            let mut index = self.index();
            index.apply(event);
            index.synced()
        };
        self.metrics.synced.set(i64::from(synced));
        self.notify();
    }

    /// Adds a stream and returns its number.
    pub fn open_stream(&self, pod: PodKey, uid: String) -> u64 {
        let mut acks = self.acks();
        let stream = acks.open(pod, uid);
        self.metrics.streams.set(i64::try_from(acks.streams()).unwrap_or(i64::MAX));
        stream
    }

    /// Removes a stream that has ended.
    pub fn close_stream(&self, stream: u64) {
        {
            let mut acks = self.acks();
            acks.close(stream);
            self.metrics.streams.set(i64::try_from(acks.streams()).unwrap_or(i64::MAX));
        }
        self.notify();
    }

    /// Takes the acknowledgement of a sidecar. Returns false where it names a version that was not sent lately.
    pub fn acknowledge(&self, stream: u64, ack: Ack) -> bool {
        self.metrics.acks.inc();
        let known = self.acks().acknowledge(stream, ack);
        self.notify();
        known
    }

    /// Takes what a sidecar says of the credentials of its servers.
    pub fn report_credentials(&self, stream: u64, pod: &PodKey, uid: &str, report: CredentialReport) {
        let current = self.index().snapshot(pod, uid);
        self.acks().report_credentials(stream, current.as_deref(), report);
        self.notify();
    }

    /// Takes what a sidecar says of the TLS of agents to its servers.
    pub fn report_interception(&self, stream: u64, pod: &PodKey, uid: &str, report: InterceptionReport) {
        let current = self.index().snapshot(pod, uid);
        self.acks().report_interception(stream, current.as_deref(), report);
        self.notify();
    }

    /// Takes what a sidecar says of tools that are not as they were pinned. Returns those of which its policies ask it and whose pins are
    /// there.
    pub fn report_drift(&self, stream: u64, pod: &PodKey, uid: &str, report: DriftReport) -> Vec<DriftedTool> {
        let (current, drifted) = {
            let mut index = self.index();
            let current = index.snapshot(pod, uid);
            let drifted = current.as_deref().map(|current| drift_events::drifted(&index, current, pod, &report));
            (current, drifted.unwrap_or_default())
        };
        self.acks().report_drift(stream, current.as_deref(), report);
        self.notify();
        drifted
    }

    /// Runs a job that compiles policies of the cluster, on a thread of its own. Jobs run one after another.
    pub async fn compile<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let _one = self.compiling.acquire().await;
        match tokio::task::spawn_blocking(job).await {
            Ok(compiled) => compiled,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The process ends.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Returns a receiver that is notified of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notifies everybody who waits for a change.
    pub fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}
