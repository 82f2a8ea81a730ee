//! Metrics of credentials.

use prometheus::{IntCounterVec, IntGaugeVec};
use toolweir_crds::CredentialKind;

use super::grant::FetchOutcome;
use crate::registry::MetricsRegistry;

/// Metrics of credentials.
#[derive(Clone, Debug)]
pub struct CredentialMetrics {
    /// `toolweir_credential_fetches_total`
    fetches: IntCounterVec,
    /// `toolweir_credential_ready`
    ready: IntGaugeVec,
    /// `toolweir_credential_expiry_seconds`
    expiry: IntGaugeVec,
}

impl CredentialMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            fetches: registry.counters(
                "toolweir_credential_fetches_total",
                "Requests for tokens to token endpoints, by outcome.",
                &["server", "outcome"],
            )?,
            ready: registry.int_gauges(
                "toolweir_credential_ready",
                "1 if the server's credential can be used.",
                &["server", "kind"],
            )?,
            expiry: registry.int_gauges(
                "toolweir_credential_expiry_seconds",
                "Seconds until the server's credential expires, where that is known.",
                &["server", "kind"],
            )?,
        })
    }

    /// Lets the series of a server begin at 0.
    pub(super) fn begin(&self, server: &str, kind: CredentialKind) {
        self.ready.with_label_values(&[server, kind.as_str()]).set(0);
        for outcome in FetchOutcome::ALL.into_iter().filter(|_| kind.asks_for_tokens()) {
            self.fetches.with_label_values(&[server, outcome.as_str()]);
        }
    }

    /// Counts a request for a token.
    pub(super) fn fetched(&self, server: &str, outcome: FetchOutcome) {
        self.fetches.with_label_values(&[server, outcome.as_str()]).inc();
    }

    /// Sets whether a credential can be used, and the seconds until it expires where that is known.
    pub(super) fn set(&self, server: &str, kind: CredentialKind, ready: bool, expires_in: Option<i64>) {
        let labels = [server, kind.as_str()];
        self.ready.with_label_values(&labels).set(ready.into());
        match expires_in {
            Some(seconds) => self.expiry.with_label_values(&labels).set(seconds),
            None => drop(self.expiry.remove_label_values(&labels)),
        }
    }

    /// Forgets a server whose credential is no longer in force.
    pub(super) fn end(&self, server: &str, kind: CredentialKind) {
        let labels = [server, kind.as_str()];
        let _ = self.ready.remove_label_values(&labels);
        let _ = self.expiry.remove_label_values(&labels);
        for outcome in FetchOutcome::ALL {
            let _ = self.fetches.remove_label_values(&[server, outcome.as_str()]);
        }
    }
}
