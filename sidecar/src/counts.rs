//! The counts of calls: of this process, and of the store that pods share.

use std::sync::Arc;

use prometheus::IntCounterVec;
use toolweir_crds::OnStoreFailure;
use toolweir_engine::Memory;
use toolweir_store::{Meters, Store, StoreConfig, StoreError, StoreFault};

use crate::registry::MetricsRegistry;

/// The counts against which limits are held.
#[derive(Debug)]
pub struct Counts {
    /// The counts of this pod, which live on when the policies are replaced.
    pub memory: Arc<Memory>,
    shared: Option<StoreCounts>,
}

/// The counts that pods share.
#[derive(Debug)]
struct StoreCounts {
    store: Store,
    metrics: StoreMetrics,
}

impl Counts {
    /// Counts of this process alone: limits across pods deny. At most `most` counts of sessions and keys are kept.
    pub fn of_pod(most: usize) -> Self {
        Self { memory: Memory::new(most), shared: None }
    }

    /// Counts that pods can share, once [`Counts::set_store`] says where. At most `most` counts of sessions and keys are kept.
    ///
    /// # Errors
    /// Metrics of the store are registered already.
    pub fn with_store(most: usize, registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let metrics = StoreMetrics::new(registry)?;
        let store = Store::new(metrics.meters.clone(), most);
        Ok(Self { memory: Memory::new(most), shared: Some(StoreCounts { store, metrics }) })
    }

    /// The store that pods share, where a call can wait for it.
    pub fn store(&self) -> Option<&Store> {
        self.shared.as_ref().map(|shared| &shared.store)
    }

    /// Sets where the shared counts are from now on; nothing: nowhere. Policies with limits across pods must be compiled
    /// anew.
    pub fn set_store(&self, config: Option<Result<StoreConfig, StoreError>>) {
        let Some(StoreCounts { store, metrics }) = &self.shared else { return };
        if config.is_some()
            && let Err(error) = metrics.registry.publish()
        {
            tracing::error!(%error, "a metric of the shared store is not on the page");
        }
        store.set_config(config);
    }

    /// Returns true if pods can share counts.
    pub fn are_shared(&self) -> bool {
        self.store().is_some_and(Store::is_configured)
    }

    /// Counts a decision for which the shared store did not answer, by what was done instead.
    pub fn count_fallback(&self, action: OnStoreFailure) {
        if let Some(shared) = &self.shared {
            shared.metrics.fallbacks.with_label_values(&[action.as_str()]).inc();
        }
    }
}

/// The ends of a call that wants something of the shared store: the label `outcome` of
/// `toolweir_shared_store_calls_total`.
pub const STORE_OUTCOMES: [&str; 6] = ["ok", "lease", "refused", "known_full", "unavailable", "timeout"];

/// Buckets from 50 µs, a store on this machine, to 10 s, the largest budget.
const ROUND_TRIP_BUCKETS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Metrics of the shared store. They come onto the page with the first store, so that a sidecar without one shows none.
#[derive(Debug)]
struct StoreMetrics {
    registry: MetricsRegistry,
    meters: Meters,
    /// `toolweir_shared_store_fallbacks_total`
    fallbacks: IntCounterVec,
}

impl StoreMetrics {
    fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let registry = registry.deferred();
        let calls = registry.counters(
            "toolweir_shared_store_calls_total",
            "Calls with limits across pods, by how the shared store or a lease answered them.",
            &["outcome"],
        )?;
        let [asked, leased, refused, known_full, unavailable, timeout] =
            STORE_OUTCOMES.map(|outcome| calls.with_label_values(&[outcome]));
        let up = registry.int_gauge(
            "toolweir_shared_store_up",
            "0 while the policies in force need the shared store and it does not answer, else 1.",
        )?;
        let failures = registry.counters(
            "toolweir_shared_store_failures_total",
            "Times that the shared store could not be reached or was lost, by why.",
            &["fault"],
        )?;
        for fault in StoreFault::ALL {
            failures.with_label_values(&[fault.as_str()]);
        }
        let round_trip = registry.histogram(
            "toolweir_shared_store_round_trip_seconds",
            "Time from a question to the shared store's answer.",
            &ROUND_TRIP_BUCKETS,
        )?;
        let fallbacks = registry.counters(
            "toolweir_shared_store_fallbacks_total",
            "Decisions for which the shared store did not answer, by what its policy has done then.",
            &["action"],
        )?;
        for action in [OnStoreFailure::Deny, OnStoreFailure::PerPod, OnStoreFailure::Allow] {
            fallbacks.with_label_values(&[action.as_str()]);
        }
        let meters = Meters { up, asked, leased, refused, known_full, unavailable, timeout, failures, round_trip };
        Ok(Self { registry, meters, fallbacks })
    }
}
