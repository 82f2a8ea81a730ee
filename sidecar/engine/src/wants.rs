//! The amounts and places that a call wants, before anything is taken: of this pod's own counts and of those that pods share.

use std::sync::Arc;

use smallvec::SmallVec;
use toolweir_crds::{OnStoreFailure, Scope};

use crate::{
    entry::{CompiledEntry, CompiledLimit},
    rules::Step,
    shared::{SharedDemand, SharedHold, SharedTake},
    take::{Hold, Instance, Take},
    window::Amount,
};

/// The amounts and places that a call wants of policies which decide together.
#[derive(Default)]
pub(crate) struct Wants<'s> {
    /// The amounts of this pod's own counts.
    pub takes: SmallVec<[Take; 4]>,
    /// The limit that each take stands for.
    take_sources: SmallVec<[(&'s Step, &'s Arc<str>, &'s CompiledLimit); 4]>,
    /// The places of this pod's own.
    pub holds: SmallVec<[Hold; 2]>,
    /// The entry that each hold stands for.
    hold_sources: SmallVec<[(&'s Step, &'s Arc<str>); 2]>,
    /// The amounts and places of counts that pods share.
    pub shared: SharedWants,
}

/// The amounts and places that a call wants of counts that pods share.
#[derive(Default)]
pub(crate) struct SharedWants {
    pub demand: SharedDemand,
    pub origins: Origins,
}

/// The policies and entries that the takes and holds of a [`SharedDemand`] stand for, by index.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    takes: SmallVec<[Origin<Arc<CompiledLimit>>; 2]>,
    holds: SmallVec<[Origin<Scope>; 1]>,
}

/// A policy, its entry, and the limit or scope in it.
#[derive(Debug)]
struct Origin<T> {
    policy: Arc<str>,
    entry: Arc<str>,
    detail: T,
}

/// The source of a take: the take, the policy, the entry and the limit.
pub(crate) type TakeSource<'a> = (&'a Take, &'a Arc<str>, &'a Arc<str>, &'a CompiledLimit);
/// The source of a hold: the hold, the policy, the entry and the scope.
pub(crate) type HoldSource<'a> = (&'a Hold, &'a Arc<str>, &'a Arc<str>, Scope);

/// Finds the policy and entry behind the indices of a [`crate::take::TakeError`].
pub(crate) trait Attribution {
    /// Returns the source of a take.
    fn take(&self, index: usize) -> Option<TakeSource<'_>>;
    /// Returns the source of a hold.
    fn hold(&self, index: usize) -> Option<HoldSource<'_>>;
}

impl<'s> Wants<'s> {
    /// Returns the number of amounts.
    pub fn take_count(&self) -> usize {
        self.takes.len() + self.shared.demand.takes.len()
    }

    /// Adds what a limit wants. Limits with the same count take a call once: the highest cost, against the smallest maximum.
    pub fn add(
        &mut self,
        step: &'s Step,
        entry: &'s Arc<str>,
        limit: &'s Arc<CompiledLimit>,
        instance: Instance,
        amount: Amount,
    ) {
        if let Some(pod_group) = &limit.pod_group {
            return self.shared.add(step, entry, limit, pod_group, instance, amount);
        }
        let twin = self.takes.iter().position(|take| take.identity == limit.identity && take.instance == instance);
        if let Some((take, source)) = twin.and_then(|at| Some((self.takes.get_mut(at)?, self.take_sources.get_mut(at)?))) {
            if merge(take, limit, amount) {
                *source = (step, entry, limit);
            }
        } else {
            self.takes.push(limit.take(instance, amount));
            self.take_sources.push((step, entry, limit));
        }
    }

    /// Returns what is wanted of a count, by all limits together that count there.
    pub fn find(&self, limit: &CompiledLimit, instance: &Instance) -> Option<&Take> {
        let shared = self.shared.demand.takes.iter().map(|shared| &shared.take);
        self.takes.iter().chain(shared).find(|take| take.identity == limit.identity && take.instance == *instance)
    }

    /// Adds the place that an entry wants.
    pub fn add_hold(&mut self, step: &'s Step, entry: &'s CompiledEntry) {
        let Some(of) = &entry.hold else { return };
        if of.pod_group.is_some() {
            return self.shared.add_hold(step, entry);
        }
        self.holds.push(of.hold.clone());
        self.hold_sources.push((step, &entry.name));
    }
}

impl SharedWants {
    /// Adds what a limit wants that these pods share.
    pub fn add(
        &mut self,
        step: &Step,
        entry: &Arc<str>,
        limit: &Arc<CompiledLimit>,
        pod_group: &Arc<str>,
        instance: Instance,
        amount: Amount,
    ) {
        let origin = || Origin { policy: Arc::clone(&step.rules.policy), entry: Arc::clone(entry), detail: Arc::clone(limit) };
        let mut others = self.demand.takes.iter_mut().zip(&mut self.origins.takes);
        let twin = others.find(|(other, _)| other.take.identity == limit.identity && other.take.instance == instance);
        if let Some((other, from)) = twin {
            if merge(&mut other.take, limit, amount) {
                *from = origin();
            }
            return;
        }
        let failure = step.rules.on_store_failure;
        self.demand.takes.push(SharedTake { take: limit.take(instance, amount), pod_group: Arc::clone(pod_group), failure });
        self.origins.takes.push(origin());
    }

    /// Adds the place that an entry wants, if it is one that pods share.
    pub fn add_hold(&mut self, step: &Step, entry: &CompiledEntry) {
        let Some(of) = &entry.hold else { return };
        let Some(pod_group) = &of.pod_group else { return };
        let failure = step.rules.on_store_failure;
        self.demand.holds.push(SharedHold { hold: of.hold.clone(), pod_group: Arc::clone(pod_group), failure });
        let (policy, entry) = (Arc::clone(&step.rules.policy), Arc::clone(&entry.name));
        self.origins.holds.push(Origin { policy, entry, detail: of.scope });
    }
}

impl Origins {
    /// Returns the policy and entry to name where the store does not answer: the first that denies then, else the first.
    pub fn of_store_failure(&self, demand: &SharedDemand) -> Option<(&Arc<str>, &Arc<str>)> {
        let takes = demand.takes.iter().map(|take| take.failure);
        let takes = takes.zip(self.takes.iter().map(|origin| (&origin.policy, &origin.entry)));
        let holds = demand.holds.iter().map(|hold| hold.failure);
        let holds = holds.zip(self.holds.iter().map(|origin| (&origin.policy, &origin.entry)));
        let mut all = takes.chain(holds);
        let first = all.clone().next();
        all.find(|(failure, _)| *failure == OnStoreFailure::Deny).or(first).map(|(_, origin)| origin)
    }
}

/// Adds to a take what another limit of the same count wants. Returns true if that limit has the smaller maximum.
fn merge(take: &mut Take, limit: &CompiledLimit, amount: Amount) -> bool {
    take.amount = take.amount.max(amount);
    let smaller = limit.maximum() < take.max;
    if smaller {
        take.max = limit.maximum();
    }
    smaller
}

impl Attribution for Wants<'_> {
    fn take(&self, index: usize) -> Option<TakeSource<'_>> {
        let (step, entry, limit) = self.take_sources.get(index)?;
        Some((self.takes.get(index)?, &step.rules.policy, entry, limit))
    }

    fn hold(&self, index: usize) -> Option<HoldSource<'_>> {
        let (step, entry) = self.hold_sources.get(index)?;
        Some((self.holds.get(index)?, &step.rules.policy, entry, Scope::Pod))
    }
}

impl Attribution for (&SharedDemand, &Origins) {
    fn take(&self, index: usize) -> Option<TakeSource<'_>> {
        let origin = self.1.takes.get(index)?;
        Some((&self.0.takes.get(index)?.take, &origin.policy, &origin.entry, &origin.detail))
    }

    fn hold(&self, index: usize) -> Option<HoldSource<'_>> {
        let origin = self.1.holds.get(index)?;
        Some((&self.0.holds.get(index)?.hold, &origin.policy, &origin.entry, origin.detail))
    }
}
