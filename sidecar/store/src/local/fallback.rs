//! Decisions while the store does not answer.

use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Timestamp,
    shared::{SharedDemand, SharedTake},
    take::TakeError,
    window::Full,
};

use super::LocalCounts;
use crate::{
    answer::{CountedIn, DemandAnswer, DemandAnswers, DemandGrant, TakenAmount},
    count::{key_of, later},
    slices::{end_of, slice_of},
};

impl LocalCounts {
    /// Decides a call about which the store cannot be asked: as its policies say, the strictest first. With `in_flight` a request of
    /// the call is still on its way, and holds its places.
    pub fn fall_back(&mut self, wanted: &[SharedDemand], now: u64, engine: Timestamp, in_flight: bool) -> DemandAnswers {
        let mut answers = DemandAnswers::new();
        if !self.add_counts(wanted, now) {
            answers.extend(wanted.iter().map(|_| DemandAnswer::Unavailable));
            return answers;
        }
        for demand in wanted {
            let answer = match answers.first() {
                Some(DemandAnswer::RefusedAlone(_) | DemandAnswer::Unavailable) => DemandAnswer::NotAsked,
                _ => self.take_offline(demand, now, engine, in_flight).unwrap_or_else(|refusal| refusal),
            };
            answers.push(answer);
        }
        answers
    }

    /// This pod's share of a maximum; nothing where it is not known how many pods there are.
    fn pod_share(&self, group: &str, max: u64) -> Option<u64> {
        let pods = self.pods.get(group).copied().filter(|pods| *pods > 0)?;
        Some((max / pods).max(1))
    }

    /// Takes a demand within this pod's share.
    ///
    /// # Errors
    /// The answer, where it is not taken.
    fn take_offline(
        &mut self,
        demand: &SharedDemand,
        now: u64,
        engine: Timestamp,
        in_flight: bool,
    ) -> Result<DemandAnswer, DemandAnswer> {
        if demand.is_empty() {
            return Ok(DemandAnswer::Taken(DemandGrant::default()));
        }
        self.fits_share(demand, now, engine)?;
        self.places_fit_share(demand, in_flight)?;
        let failures = demand.takes.iter().map(|take| take.failure).chain(demand.holds.iter().map(|hold| hold.failure));
        let strict = failures.min_by_key(|failure| matches!(failure, OnStoreFailure::Allow));
        let mut grant = DemandGrant { fallback: strict, ..DemandGrant::default() };
        let store = self.clock.latest(now);
        for SharedTake { take, .. } in &demand.takes {
            let amount = take.amount.millionths();
            let (key, count) = self.counts.get_key_value_mut(&key_of(take)).ok_or(DemandAnswer::Unavailable)?;
            let slice = slice_of(store, count.window);
            count.own.add(slice, amount);
            // What is beyond all bounds is not counted, and so not given back.
            let amount = count.offline.add(slice, amount);
            count.offline.forget(slice);
            grant.amounts.push(TakenAmount { key: key.clone(), slice, amount, counted_in: CountedIn::Pod });
        }
        for hold in &demand.holds {
            let held = self.held_places(hold.hold.identity.as_str());
            held.count += 1;
            held.changed = true;
            grant.places.push(hold.hold.identity.as_str().into());
        }
        Ok(DemandAnswer::Taken(grant))
    }

    fn fits_share(&mut self, demand: &SharedDemand, now: u64, engine: Timestamp) -> Result<(), DemandAnswer> {
        let store = self.clock.earliest(now);
        let mut full = SmallVec::new();
        for (index, SharedTake { take, pod_group, failure }) in demand.takes.iter().enumerate() {
            match failure {
                OnStoreFailure::Deny => return Err(DemandAnswer::Unavailable),
                OnStoreFailure::Allow => {}
                OnStoreFailure::PerPod => {
                    let whole = take.max.millionths() / Amount::ONE.millionths();
                    let share = self.pod_share(pod_group, whole).ok_or(DemandAnswer::Unavailable)?;
                    let share = Amount::whole(share).millionths();
                    let amount = take.amount.millionths();
                    let count = self.counts.get_mut(&key_of(take)).ok_or(DemandAnswer::Unavailable)?;
                    count.own.forget(slice_of(store, count.window));
                    if amount > share {
                        full.push((index, Full::Never));
                    } else if count.own.total().saturating_add(amount) > share {
                        let end = count.own.fits_after(amount, share).map_or(0, |slice| end_of(slice, count.window));
                        full.push((index, Full::Until(later(engine, end.saturating_sub(store).max(1)))));
                    }
                }
            }
        }
        if full.is_empty() { Ok(()) } else { Err(DemandAnswer::RefusedAlone(TakeError::Full(full))) }
    }

    fn places_fit_share(&mut self, demand: &SharedDemand, in_flight: bool) -> Result<(), DemandAnswer> {
        for (index, hold) in demand.holds.iter().enumerate() {
            let share = match hold.failure {
                OnStoreFailure::Deny => None,
                OnStoreFailure::Allow => Some(u64::MAX),
                OnStoreFailure::PerPod => self.pod_share(&hold.pod_group, hold.hold.max),
            };
            let share = share.ok_or(DemandAnswer::Unavailable)?;
            let held = self.held_places(hold.hold.identity.as_str()).count;
            if held.saturating_sub(u64::from(in_flight)) >= share {
                return Err(DemandAnswer::RefusedAlone(TakeError::Busy(index)));
            }
        }
        Ok(())
    }
}
