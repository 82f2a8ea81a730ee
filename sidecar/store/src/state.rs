//! The state that the parts of [`crate::Store`] share: the connection, the counts of this pod, and the configuration.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, watch};

use crate::{
    config::{Address, StoreConfig},
    connect::Connector,
    connection::StoreConnection,
    error::StoreError,
    local::LocalCounts,
    scripts::{KeySpace, Scripts},
    usage::UsageSnapshot,
};

/// The metrics of the store.
#[derive(Clone, Debug)]
pub struct Meters {
    /// 0 while the store is needed and does not answer, else 1.
    pub up: IntGauge,
    /// Calls that were taken with a round trip.
    pub asked: IntCounter,
    /// Calls that were taken from a lease.
    pub leased: IntCounter,
    /// Calls that the store refused.
    pub refused: IntCounter,
    /// Calls that were refused since the count was just said to be full.
    pub known_full: IntCounter,
    /// Calls for which the store could not be asked.
    pub unavailable: IntCounter,
    /// Calls for which it did not answer in time.
    pub timeout: IntCounter,
    /// Connections that failed or were lost, by fault.
    pub failures: IntCounterVec,
    /// The time of a round trip, in seconds.
    pub round_trip: Histogram,
}

/// The state of the connection.
#[derive(Clone, Debug)]
pub(crate) enum StoreState {
    /// The store can be asked.
    Up(Arc<ConnectedStore>),
    /// The store cannot be asked, for this reason.
    Down(StoreError),
    /// Nobody has tried yet, or nothing is shared.
    Idle,
}

/// A store that answers.
#[derive(Debug)]
pub(crate) struct ConnectedStore {
    pub generation: u64,
    pub address: Address,
    pub connector: Connector,
    pub keys: KeySpace,
    pub scripts: Scripts,
    /// The connection of the upkeep.
    pub connection: StoreConnection,
}

/// The configuration of the store, and the groups of pods whose counts it keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharingConfig {
    pub config: Option<Result<StoreConfig, StoreError>>,
    pub groups: BTreeSet<Arc<str>>,
}

/// The state that the clones of a [`crate::Store`] share.
pub(crate) struct StoreInner {
    pub local: Mutex<LocalCounts>,
    pub state: ArcSwap<StoreState>,
    pub sharing: watch::Sender<SharingConfig>,
    pub wake: Notify,
    pub suspect: AtomicBool,
    pub pod: String,
    pub meters: Meters,
    pub budget: AtomicU64,
    pub started: Instant,
    pub id: u64,
    /// The usage that was read last, and when; and whether it is being read.
    pub last_usage: ArcSwap<(u64, UsageSnapshot)>,
    pub reads_usage: AtomicBool,
}

impl fmt::Debug for StoreInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreInner").finish_non_exhaustive()
    }
}

impl StoreInner {
    /// The counts as this pod knows them.
    pub fn lock(&self) -> MutexGuard<'_, LocalCounts> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since this began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes that the store of this generation does not answer.
    pub fn fail(&self, generation: u64, error: StoreError) {
        let state = self.state.load_full();
        if !matches!(&*state, StoreState::Up(up) if up.generation == generation) {
            return;
        }
        let before = self.state.compare_and_swap(&state, Arc::new(StoreState::Down(error)));
        if Arc::ptr_eq(&before, &state) {
            self.meters.up.set(0);
            self.wake.notify_one();
        }
    }

    /// Has the upkeep look whether the store still answers: a connection may be bad, or this process was not scheduled.
    pub(crate) fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

/// Returns 16 random hex digits.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 8];
    // Without random numbers, the time and the process will do.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(0);
        bytes = (nanos ^ (u64::from(std::process::id()) << 40)).to_be_bytes();
    }
    data_encoding::HEXLOWER.encode(&bytes)
}
