//! The page of metrics, with what is computed when somebody asks for it.

use std::{borrow::Cow, sync::Arc};

use arc_swap::Guard;
use prometheus::{Gauge, GaugeVec, IntGaugeVec};
use toolweir_crds::OperationKind;

use crate::governor::Governor;

/// Gives the page of metrics.
#[derive(Debug)]
pub struct Scraper {
    governor: Arc<Governor>,
    limit_used: GaugeVec,
    policy_info: IntGaugeVec,
    policy_age: Gauge,
    policy_invalid: IntGaugeVec,
}

impl Scraper {
    /// Registers the metrics that are computed at a scrape.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(governor: Arc<Governor>) -> Result<Self, prometheus::Error> {
        let registry = &governor.metrics.registry;
        Ok(Self {
            limit_used: registry.gauges(
                "toolweir_limit_used_ratio",
                "How full a limit is; of a limit for each session, the fullest. Over 1 for a while when max was lowered.",
                &["server", "tool", "policy", "limit"],
            )?,
            policy_info: registry.int_gauges(
                "toolweir_policy_info",
                "The policies in force; always 1.",
                &["policy", "mode", "version"],
            )?,
            policy_age: registry.gauge(
                "toolweir_policy_age_seconds",
                "Time since the policy in force was last known to be what its source says; 0 while it is.",
            )?,
            policy_invalid: registry.int_gauges(
                "toolweir_policy_invalid",
                "Policies in force that cannot be enforced as written and deny; always 1.",
                &["policy"],
            )?,
            governor,
        })
    }

    /// Returns the page in the Prometheus text format, as it is now.
    ///
    /// # Errors
    /// Those of the encoder.
    pub async fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        let governor = &self.governor;
        let in_force = Guard::into_inner(governor.in_force());
        let usage = governor.shared_usage(&in_force).await;
        // Series of policies that are gone go with them.
        self.policy_info.reset();
        for policy in &in_force.policies {
            self.policy_info.with_label_values(&[policy.name.as_str(), policy.mode, in_force.version.as_str()]).set(1);
        }
        self.policy_invalid.reset();
        for problem in &in_force.problems {
            self.policy_invalid.with_label_values(&[problem.policy.as_str()]).set(1);
        }
        self.limit_used.reset();
        for limit in in_force.engine.limits(governor.now(), &usage) {
            if !limit.keyed {
                // A prompt can have the name of a tool, and the same limit.
                let entry = match limit.kind {
                    OperationKind::Tool => Cow::Borrowed(limit.tool),
                    kind => Cow::Owned(format!("{kind} {}", limit.tool)),
                };
                let gauge = self.limit_used.with_label_values(&[limit.server, &*entry, limit.policy, limit.limit]);
                #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
                gauge.set(limit.used / limit.max as f64);
            }
        }
        self.policy_age.set(governor.freshness.age().as_secs_f64());
        governor.metrics.registry.encode()
    }
}
