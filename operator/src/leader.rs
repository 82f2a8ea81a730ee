//! Elects the replica that writes status: the one that holds the Lease, as Kubernetes' own components do it
//! (`coordination.k8s.io/v1`, `Lease`).

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::metrics::OperatorRegistry;

/// The time after which a lease that is not renewed may be taken.
const DURATION: Duration = Duration::from_secs(15);
/// The time that the leader goes on without renewing the lease. Shorter than [`DURATION`], so that there are never two.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const PACE: Duration = Duration::from_secs(2);

/// The metric of leadership.
#[derive(Clone, Debug)]
pub struct LeaderMetrics {
    /// 1 while this replica leads.
    pub leader: IntGauge,
}

impl LeaderMetrics {
    /// Registers the metric.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self { leader: registry.gauge("toolweir_operator_leader", "1 at the replica that writes status.")? })
    }
}

/// The lease as it was seen last, and since when it has not changed by this replica's own clock: the clocks of others may be
/// wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    spec: Option<LeaseSpec>,
    since: Option<Instant>,
}

impl Observed {
    /// Takes the lease as it is now.
    pub fn see(&mut self, spec: Option<&LeaseSpec>, now: Instant) {
        if self.since.is_none() || self.spec.as_ref() != spec {
            *self = Self { spec: spec.cloned(), since: Some(now) };
        }
    }

    /// Returns whether this replica may take or renew the lease.
    pub fn is_free(&self, me: &str, now: Instant) -> bool {
        let holder = self.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == me {
            return true;
        }
        let seconds = self.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let holds = Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).max(PACE);
        self.since.is_some_and(|since| now.saturating_duration_since(since) > holds)
    }
}

/// Returns the spec of a lease that this replica takes or renews.
pub fn taken(before: Option<&LeaseSpec>, me: &str, now: Timestamp) -> LeaseSpec {
    let before = before.cloned().unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(me);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        acquire_time: if mine { before.acquire_time.clone() } else { Some(MicroTime(now)) },
        lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!mine)),
        ..before
    }
}

/// Takes and keeps the lease for as long as `stopping` is false, then gives it back. `leads` holds whether this replica leads.
pub async fn lead(
    client: Client,
    namespace: &str,
    name: &str,
    me: &str,
    leads: watch::Sender<bool>,
    metrics: &LeaderMetrics,
    mut stopping: watch::Receiver<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let say = |is_leader: bool| {
        if leads.send_if_modified(|leads| std::mem::replace(leads, is_leader) != is_leader) {
            tracing::info!(leader = is_leader, "leadership changed");
        }
        metrics.leader.set(i64::from(is_leader));
    };
    let mut observed = Observed::default();
    let mut renewed: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        match timeout(DEADLINE / 2, attempt(&api, name, me, &mut observed)).await {
            Ok(Ok(true)) => {
                renewed = Some(asked);
                say(true);
            }
            Ok(Ok(false)) => {
                renewed = None;
                say(false);
            }
            Ok(Err(error)) => tracing::warn!(%error, lease = name, "the lease cannot be renewed; it is tried again"),
            Err(_) => tracing::warn!(lease = name, "the lease was not renewed in time; it is tried again"),
        }
        // Before another replica may take it.
        if renewed.is_some_and(|renewed| renewed.elapsed() + PACE > DEADLINE) {
            renewed = None;
            say(false);
        }
        tokio::select! {
            () = sleep(PACE) => {}
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
    }
    let led = *leads.borrow();
    say(false);
    if led && let Err(error) = give_back(&api, name, me).await {
        tracing::debug!(%error, "the lease was not given back; it runs out");
    }
}

async fn attempt(api: &Api<Lease>, name: &str, me: &str, observed: &mut Observed) -> Result<bool, kube::Error> {
    let found = api.get_opt(name).await?;
    let now = Instant::now();
    observed.see(found.as_ref().and_then(|lease| lease.spec.as_ref()), now);
    if !observed.is_free(me, now) {
        return Ok(false);
    }
    let written = match found {
        None => {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(taken(None, me, Timestamp::now())) };
            api.create(&PostParams::default(), &lease).await
        }
        Some(mut lease) => {
            lease.spec = Some(taken(lease.spec.as_ref(), me, Timestamp::now()));
            api.replace(name, &PostParams::default(), &lease).await
        }
    };
    match written {
        Ok(lease) => {
            observed.see(lease.spec.as_ref(), now);
            Ok(true)
        }
        // Another one was faster.
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn give_back(api: &Api<Lease>, name: &str, me: &str) -> Result<(), kube::Error> {
    let mut lease = api.get(name).await?;
    if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) {
        spec.holder_identity = None;
        api.replace(name, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        let renew_time = Some(MicroTime(Timestamp::from_second(renewed).unwrap()));
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time,
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_after_it_was_seen_unchanged_for_its_duration() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut observed = Observed::default();
        // By its own times it ran out long ago: the clock of whoever wrote it may be wrong.
        observed.see(Some(&spec("other", 0)), start);
        assert!(!observed.is_free("me", after(15)));
        assert!(observed.is_free("me", after(16)));
        observed.see(Some(&spec("other", 1)), after(14));
        assert!(!observed.is_free("me", after(29)));
        observed.see(Some(&spec("other", 1)), after(29));
        assert!(observed.is_free("me", after(30)));
    }

    #[test]
    fn a_lease_that_nobody_or_this_replica_holds_is_free() {
        let now = Instant::now();
        for holder in [None, Some(spec("", 0)), Some(spec("me", 0))] {
            let mut observed = Observed::default();
            observed.see(holder.as_ref(), now);
            assert!(observed.is_free("me", now), "{holder:?}");
        }
    }

    #[test]
    fn a_renewal_keeps_what_a_takeover_changes() {
        let first = taken(None, "a", Timestamp::from_second(1).unwrap());
        let renewed = taken(Some(&first), "a", Timestamp::from_second(5).unwrap());
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(1), &first.acquire_time));
        assert_ne!(renewed.renew_time, first.renew_time);
        let other = taken(Some(&renewed), "b", Timestamp::from_second(9).unwrap());
        assert_eq!((other.lease_transitions, other.holder_identity.as_deref()), (Some(2), Some("b")));
        assert_ne!(other.acquire_time, first.acquire_time);
    }
}
