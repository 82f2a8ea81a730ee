//! The freshness of the policies in force: whether they are what their source says.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};

use crate::registry::MetricsRegistry;

/// The freshness of the policies in force.
#[derive(Clone, Copy, Debug)]
pub enum Freshness {
    /// They are what their source says.
    Current,
    /// They may be old: not known to be what the source says since this moment, and for so long before it.
    Stale(Instant, Duration),
    /// The source has said nothing yet, since this moment. Everything is denied.
    Nothing(Instant),
}

/// The freshness of the policies in force, as it changes.
#[derive(Debug)]
pub struct PolicyFreshness {
    state: Mutex<Freshness>,
    metrics: FreshnessMetrics,
}

/// Metrics of whether the policies in force are what their source says.
#[derive(Clone, Debug)]
pub struct FreshnessMetrics {
    /// `toolweir_policy_connected`: 1 while they are.
    connected: IntGauge,
    /// `toolweir_policy_reload_failures_total`: attempts to bring a new policy into force that failed.
    reload_failures: IntCounter,
}

impl FreshnessMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connected: registry.int_gauge(
                "toolweir_policy_connected",
                "1 while the source of the policy can be read and what it says is in force.",
            )?,
            reload_failures: registry.counter(
                "toolweir_policy_reload_failures_total",
                "New policies that could not be brought into force; the last good one stayed.",
            )?,
        })
    }
}

impl PolicyFreshness {
    /// Starts with a state, and keeps the metrics in step with it from then on.
    pub fn new(first: Freshness, metrics: FreshnessMetrics) -> Self {
        metrics.connected.set(i64::from(matches!(first, Freshness::Current)));
        Self { state: Mutex::new(first), metrics }
    }

    fn state(&self) -> MutexGuard<'_, Freshness> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the policies in force as what their source says.
    pub fn set_current(&self) {
        *self.state() = Freshness::Current;
        self.metrics.connected.set(1);
    }

    /// Marks the policies in force as no longer what their source says, or not known to be.
    pub fn set_stale(&self) {
        let mut state = self.state();
        if matches!(*state, Freshness::Current) {
            *state = Freshness::Stale(Instant::now(), Duration::ZERO);
        }
        self.metrics.connected.set(0);
    }

    /// Counts new policies that could not be brought into force. The old ones stay, and are stale.
    pub fn reload_failed(&self) {
        self.metrics.reload_failures.inc();
        self.set_stale();
    }

    /// Returns for how long the policies in force have been stale; while none ever came, for how long that has been so.
    pub fn age(&self) -> Duration {
        match *self.state() {
            Freshness::Current => Duration::ZERO,
            Freshness::Stale(then, before) => before + then.elapsed(),
            Freshness::Nothing(then) => then.elapsed(),
        }
    }

    /// Returns true once the source has said something: also while that is old, and also where it says that there is no policy.
    pub fn has_policies(&self) -> bool {
        !matches!(*self.state(), Freshness::Nothing(_))
    }
}
