//! What the parts of the operator share: the index, the acknowledgements, and word that either changed.

use std::{
    panic::resume_unwind,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, watch};
use toolweir_crds::stream::Ack;
use toolweir_engine::Options;

use crate::{
    acks::Acks,
    admission::Intake,
    index::{Event, Index, PodKey},
    metrics::Metrics,
    shared::Health,
    stream::Bounds,
};

/// The shared state. Its locks are held for the length of a function call, never across an await.
#[derive(Debug)]
pub struct World {
    index: Mutex<Index>,
    acks: Mutex<Acks>,
    store: Mutex<Health>,
    changed: watch::Sender<u64>,
    /// The metrics.
    pub metrics: Metrics,
    /// What policies are compiled with.
    pub options: Options,
    /// What reviews of strangers may take.
    pub intake: Intake,
    /// What streams may take.
    pub bounds: Bounds,
    compiling: Semaphore,
}

impl World {
    /// Nothing is known yet.
    pub fn new(metrics: Metrics, options: Options) -> Self {
        let changed = watch::Sender::new(0);
        Self {
            index: Mutex::default(),
            acks: Mutex::default(),
            store: Mutex::default(),
            changed,
            metrics,
            options,
            intake: Intake::default(),
            bounds: Bounds::default(),
            compiling: Semaphore::new(1),
        }
    }

    /// The index.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        // What a panicking thread left is whole: every change is one call.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The acknowledgements. Whoever holds both locks took that of the index first.
    pub fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the shared store is.
    pub fn store(&self) -> Health {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The shared store was looked at. Gives whether it is another way than before.
    pub fn set_store(&self, health: &Health) -> bool {
        let changed = {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *store != *health;
            store.clone_from(health);
            changed
        };
        if changed {
            self.touch();
        }
        changed
    }

    /// Takes in an event.
    pub fn apply(&self, event: Event) {
        let synced = {
            let mut index = self.index();
            index.apply(event);
            index.synced()
        };
        self.metrics.synced.set(i64::from(synced));
        self.touch();
    }

    /// A stream was opened; gives its number.
    pub fn open(&self, pod: PodKey, uid: String) -> u64 {
        let mut acks = self.acks();
        let stream = acks.open(pod, uid);
        self.metrics.streams.set(i64::try_from(acks.streams()).unwrap_or(i64::MAX));
        stream
    }

    /// A stream has ended.
    pub fn close(&self, stream: u64) {
        {
            let mut acks = self.acks();
            acks.close(stream);
            self.metrics.streams.set(i64::try_from(acks.streams()).unwrap_or(i64::MAX));
        }
        self.touch();
    }

    /// A sidecar says what it enforces.
    pub fn acknowledge(&self, stream: u64, ack: Ack) -> bool {
        self.metrics.acks.inc();
        let known = self.acks().acknowledge(stream, ack);
        self.touch();
        known
    }

    /// Compiles policies of the cluster, apart from what answers others, and one after another.
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

    /// Word of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Says that something changed.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}
