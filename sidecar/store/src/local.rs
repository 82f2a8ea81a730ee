//! The counts that a pod shares, as the pod knows them: what it took itself, what it has leased, and what the store said last. Values
//! in, values out: no sockets and no clock.
//!
//! All times are microseconds: `now` and deadlines on this process' clock, slices on the store's. All amounts are millionths.

mod fallback;
mod sync;

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;
use smallvec::SmallVec;
use toolweir_engine::{
    Amount, Timestamp,
    shared::{SharedDemand, SharedTake},
    take::{Take, TakeError},
    window::Full,
};

use crate::{
    answer::{CountedIn, DemandAnswer, DemandAnswers, DemandGrant, TakenAmount},
    count::{ClockOffset, CountKey, LocalCount, ReplyTimes, digest, key_of, window_of},
    scripts::{
        CountPeek, CountUpdate,
        take::{DemandReply, DemandRequest, DemandStatus, PlaceRequest, TakeRequest, UnreadableReply},
    },
    slices::{Micros, slice_of},
};

/// The time after which a pod of which nothing is heard holds no places, in microseconds.
pub const PLACES_LIFE: u64 = 10_000_000;
/// The time after which a pod of which nothing is heard does not count in its groups, in microseconds.
pub const POD_LIFE: u64 = 15_000_000;

/// The pod's places of one kind.
#[derive(Debug, Default)]
struct HeldPlaces {
    digest: Arc<str>,
    /// The number of places that it holds, and asks for.
    count: u64,
    /// The store may not know of the last change.
    changed: bool,
}

/// A decision about a call.
#[derive(Debug)]
pub enum LocalDecision {
    /// The answers are known without a round trip.
    Answered(DemandAnswers),
    /// The store has to be asked.
    Ask(TakeRequest),
}

/// A count of a call is not known where it must be. The call has to be denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a count or a lease of the call is not known")]
pub struct UnknownCount;

/// The counts that a pod shares.
#[derive(Debug)]
pub struct LocalCounts {
    counts: HashMap<CountKey, LocalCount>,
    places: HashMap<Arc<str>, HeldPlaces>,
    /// The number of pods of each group when that was last known.
    pods: BTreeMap<Arc<str>, u64>,
    clock: ClockOffset,
    clock_at: u64,
    leases: bool,
    most: usize,
    last_number: u64,
    updates: Vec<CountUpdate>,
    lease_begun: bool,
    sweep_at: usize,
}

impl LocalCounts {
    /// Nothing known yet. At most `most` counts are kept.
    pub fn new(leases: bool, most: usize) -> Self {
        Self {
            counts: HashMap::new(),
            places: HashMap::new(),
            pods: BTreeMap::new(),
            clock: ClockOffset::default(),
            clock_at: 0,
            leases,
            most,
            last_number: 1,
            updates: Vec::new(),
            lease_begun: false,
            sweep_at: 64,
        }
    }

    /// Sets whether amounts are leased ahead of use.
    pub fn set_leases(&mut self, leases: bool) {
        self.leases = leases;
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Notes that the store's clock said `store` to a request that was sent at `sent` and answered at `received`.
    pub fn set_clock(&mut self, store: u64, sent: u64, received: u64) {
        let clock = ClockOffset::new(store, sent, received);
        if !self.clock.is_known {
            // What was taken before the store's clock was known counts from now on.
            for count in self.counts.values_mut() {
                let slice = slice_of(store, count.window);
                count.own.move_to(slice);
                count.offline.move_to(slice);
            }
        }
        // The tightest of the last second: a slow answer says less.
        if !self.clock.is_known || clock.is_as_exact_as(&self.clock) || received.saturating_sub(self.clock_at) > 1_000_000 {
            self.clock = clock;
            self.clock_at = received;
        }
    }

    /// As [`Self::set_clock`], where the server may be another: what was known of the clock is over.
    pub fn replace_clock(&mut self, store: u64, sent: u64, received: u64) {
        self.set_clock(store, sent, received);
        self.clock = ClockOffset::new(store, sent, received);
        self.clock_at = received;
    }

    /// The store's clock now, or somewhat later than that.
    pub fn store_now(&self, now: u64) -> u64 {
        self.clock.latest(now)
    }

    /// Adds the counts of a call that are not known yet. Returns false where there is no room for them.
    fn add_counts(&mut self, wanted: &[SharedDemand], now: u64) -> bool {
        for take in wanted.iter().flat_map(|demand| &demand.takes) {
            let take = &take.take;
            if let Some(count) = self.counts.get_mut(&key_of(take)) {
                count.touched = now;
                continue;
            }
            if self.counts.len() >= self.sweep_at.min(self.most) {
                self.sweep(now);
                self.sweep_at = (self.counts.len() * 2).max(64);
            }
            if self.counts.len() >= self.most {
                return false;
            }
            self.counts.insert(take.into(), LocalCount::new(take, now));
        }
        true
    }

    /// Forgets what is over.
    pub fn sweep(&mut self, now: u64) {
        let store = self.clock.earliest(now);
        self.counts.retain(|_, count| {
            count.own.forget(slice_of(store, count.window));
            !count.is_idle() || now.saturating_sub(count.touched) < 1_000_000
        });
        self.places.retain(|_, held| held.count > 0 || held.changed);
    }

    /// Decides what a call wants, as far as that is possible without the store. `engine` is the engine's time of now.
    ///
    /// # Errors
    /// A count is not known: a defect. Nothing is taken then.
    pub fn decide(&mut self, wanted: &[SharedDemand], now: u64, engine: Timestamp) -> Result<LocalDecision, UnknownCount> {
        if !self.add_counts(wanted, now) {
            let refused = std::iter::once(DemandAnswer::Refused(TakeError::OutOfCounters(0)));
            let answers = refused.chain(wanted.iter().skip(1).map(|_| DemandAnswer::NotAsked)).collect();
            return Ok(LocalDecision::Answered(answers));
        }
        match self.answer_from_leases(wanted, now, engine)? {
            Some(answers) => Ok(LocalDecision::Answered(answers)),
            None => self.request(wanted, now).map(LocalDecision::Ask),
        }
    }

    /// The answers where leases and what is known to be full suffice for them.
    fn answer_from_leases(
        &mut self,
        wanted: &[SharedDemand],
        now: u64,
        engine: Timestamp,
    ) -> Result<Option<DemandAnswers>, UnknownCount> {
        if !self.leases {
            return Ok(None);
        }
        let mut full = SmallVec::<[_; 2]>::new();
        for demand in wanted {
            let mut found = SmallVec::<[(usize, Full); 2]>::new();
            let mut enough = demand.holds.is_empty();
            for (index, SharedTake { take, .. }) in demand.takes.iter().enumerate() {
                let count = self.counts.get(&key_of(take)).ok_or(UnknownCount)?;
                if let Some(end) = count.known_full(take, now) {
                    found.push((index, Full::Until(end.max(engine))));
                } else if !count.has_leased(take, now) {
                    enough = false;
                }
            }
            if found.is_empty() && !enough {
                return Ok(None);
            }
            full.push(found);
        }
        let mut answers = DemandAnswers::new();
        for (demand, full) in wanted.iter().zip(full) {
            if matches!(answers.first(), Some(DemandAnswer::Refused(_))) {
                answers.push(DemandAnswer::NotAsked);
            } else if full.is_empty() {
                match self.use_leases(demand, now) {
                    Ok(grant) => answers.push(DemandAnswer::Taken(grant)),
                    Err(error) => {
                        for answer in &answers {
                            if let DemandAnswer::Taken(grant) = answer {
                                self.give_back(&grant.amounts, now);
                            }
                        }
                        return Err(error);
                    }
                }
            } else {
                answers.push(DemandAnswer::Refused(TakeError::Full(full)));
            }
        }
        Ok(Some(answers))
    }

    /// Takes a demand out of the leases, which suffice for it.
    fn use_leases(&mut self, demand: &SharedDemand, now: u64) -> Result<DemandGrant, UnknownCount> {
        let mut grant = DemandGrant::default();
        for SharedTake { take, .. } in &demand.takes {
            match self.use_lease(take, now) {
                Ok(amount) => grant.amounts.push(amount),
                Err(error) => {
                    self.give_back(&grant.amounts, now);
                    return Err(error);
                }
            }
        }
        Ok(grant)
    }

    fn use_lease(&mut self, take: &Take, now: u64) -> Result<TakenAmount, UnknownCount> {
        let amount = take.amount.millionths();
        let (key, count) = self.counts.get_key_value_mut(&key_of(take)).ok_or(UnknownCount)?;
        let lease = count.lease.as_mut().ok_or(UnknownCount)?;
        lease.left = lease.left.saturating_sub(amount);
        let counted_in = CountedIn::Lease(lease.number);
        // The later moment, so that no place comes free early.
        let slice = slice_of(self.clock.latest(now), count.window);
        count.own.add(slice, amount);
        count.own.forget(slice);
        count.unreported.add(slice, amount);
        count.taken_lately = count.taken_lately.saturating_add(amount);
        Ok(TakenAmount { key: key.clone(), slice, amount, counted_in })
    }

    /// The request to take what a call wants.
    fn request(&mut self, wanted: &[SharedDemand], now: u64) -> Result<TakeRequest, UnknownCount> {
        let mut demands = SmallVec::new();
        for demand in wanted {
            let mut request = DemandRequest::default();
            for SharedTake { take, .. } in &demand.takes {
                let (next, leases) = (self.next_number(), self.leases);
                let Some(count) = self.counts.get_mut(&key_of(take)) else {
                    demands.push(request);
                    self.request_not_sent(wanted, &TakeRequest { demands, sent: now });
                    return Err(UnknownCount);
                };
                request.counts.push(count.request(take, next, leases, now));
            }
            for hold in &demand.holds {
                let number = self.next_number();
                let held = self.held_places(hold.hold.identity.as_str());
                held.count += 1;
                let (digest, max, held) = (Arc::clone(&held.digest), hold.hold.max, held.count);
                request.places.push(PlaceRequest { digest, max, number, held, life: Micros(PLACES_LIFE) });
            }
            demands.push(request);
        }
        Ok(TakeRequest { demands, sent: now })
    }

    fn held_places(&mut self, text: &str) -> &mut HeldPlaces {
        self.places.entry(text.into()).or_insert_with(|| HeldPlaces { digest: digest(text, b"places"), ..HeldPlaces::default() })
    }

    /// Applies the store's reply, of which `numbers` are those after the time. Called once for each request that was answered.
    ///
    /// # Errors
    /// The numbers are no reply to the request, which counts as not answered then.
    pub fn apply_reply(
        &mut self,
        wanted: &[SharedDemand],
        request: &TakeRequest,
        store: u64,
        numbers: &[i64],
        received: u64,
        engine: Timestamp,
    ) -> Result<DemandAnswers, UnreadableReply> {
        let replies = request.read_reply(numbers)?;
        self.set_clock(store, request.sent, received);
        let times = ReplyTimes { store, sent: request.sent, received, engine };
        let demands = wanted.iter().zip(&request.demands).zip(&replies);
        Ok(demands.map(|((demand, asked), reply)| self.apply_demand(demand, asked, reply, times)).collect())
    }

    fn apply_demand(
        &mut self,
        demand: &SharedDemand,
        asked: &DemandRequest,
        reply: &DemandReply,
        times: ReplyTimes,
    ) -> DemandAnswer {
        let (mut full, mut grant) = (SmallVec::new(), DemandGrant::default());
        let counts = asked.counts.iter().zip(&reply.counts);
        for (index, (SharedTake { take, .. }, (asked, reply_of_count))) in demand.takes.iter().zip(counts).enumerate() {
            let Some((key, count)) = self.counts.get_key_value_mut(&key_of(take)) else { continue };
            count.request_ended(asked);
            if reply.status == DemandStatus::Taken {
                let amount = take.amount.millionths();
                let (slice, moved) = count.add_granted(amount, times);
                self.updates.extend(moved);
                grant.amounts.push(TakenAmount { key: key.clone(), slice, amount, counted_in: CountedIn::Store });
            }
            self.lease_begun |= count.extend_lease(asked, reply_of_count.leased, take, times.sent);
            full.extend(count.note_reply(take, reply_of_count, times).map(|full| (index, full)));
        }
        if reply.status != DemandStatus::Taken {
            self.release_places(demand);
        }
        match reply.status {
            DemandStatus::Taken => {
                grant.places = demand.holds.iter().map(|hold| hold.hold.identity.as_str().into()).collect();
                DemandAnswer::Taken(grant)
            }
            DemandStatus::NotAsked => DemandAnswer::NotAsked,
            DemandStatus::Refused if !full.is_empty() => DemandAnswer::Refused(TakeError::Full(full)),
            DemandStatus::Refused => {
                let busy = reply.places.iter().position(|fits| !fits);
                DemandAnswer::Refused(TakeError::Busy(busy.unwrap_or_default()))
            }
        }
    }

    /// Ends a request that was sent and not answered; it may be carried out all the same, now or later. The places that it asked for
    /// are not held. A lease of which it told is given up, so that nothing of it is returned twice: the store counts all of it as used.
    pub fn request_lost(&mut self, wanted: &[SharedDemand], request: &TakeRequest) {
        for (demand, DemandRequest { counts, .. }) in wanted.iter().zip(&request.demands) {
            for (SharedTake { take, .. }, asked) in demand.takes.iter().zip(counts) {
                let Some(count) = self.counts.get_mut(&key_of(take)) else { continue };
                count.request_ended(asked);
                if asked.concerns_lease() {
                    count.drop_lease();
                }
            }
            self.release_places(demand);
        }
    }

    /// Ends a request that was not sent, or not made to its end. What it would have told is told another time.
    pub fn request_not_sent(&mut self, wanted: &[SharedDemand], request: &TakeRequest) {
        for (demand, DemandRequest { counts, places }) in wanted.iter().zip(&request.demands) {
            for (SharedTake { take, .. }, asked) in demand.takes.iter().zip(counts) {
                let Some(count) = self.counts.get_mut(&key_of(take)) else { continue };
                count.request_ended(asked);
                // Of one that is over, or was given up meanwhile, all counts as used.
                if count.lease.is_some_and(|lease| lease.number == asked.lease_number) {
                    for (slice, amount) in &asked.uses {
                        count.unreported.add(*slice, amount.millionths());
                    }
                }
            }
            // Those of the demand that it had come to.
            for (hold, _) in demand.holds.iter().zip(places) {
                self.release_place(hold.hold.identity.as_str());
            }
        }
    }

    fn release_places(&mut self, demand: &SharedDemand) {
        for hold in &demand.holds {
            self.release_place(hold.hold.identity.as_str());
        }
    }

    /// Gives a place back.
    pub fn release_place(&mut self, text: &str) {
        if let Some(held) = self.places.get_mut(text) {
            held.count = held.count.saturating_sub(1);
            held.changed = true;
        }
    }

    /// Gives amounts back. Returns whether the store has to be told.
    pub fn give_back(&mut self, amounts: &[TakenAmount], now: u64) -> bool {
        let before = self.updates.len();
        for TakenAmount { key, slice, amount, counted_in } in amounts {
            let Some(count) = self.counts.get_mut(key) else { continue };
            count.own.remove(*slice, *amount);
            count.is_not_full();
            let here = match counted_in {
                CountedIn::Lease(_) => count.unreported.remove(*slice, *amount),
                CountedIn::Pod => count.offline.remove(*slice, *amount),
                CountedIn::Store => 0,
            };
            if let (CountedIn::Lease(number), Some(lease)) = (counted_in, &mut count.lease)
                && lease.number == *number
                && now < lease.deadline
            {
                // What the store does not know as used is leased still.
                lease.left += here;
            }
            let rest = i64::try_from(amount - here).unwrap_or(0);
            if rest > 0 {
                self.updates.push(count.update(vec![(*slice, -rest)]));
            }
        }
        self.updates.len() > before
    }

    /// Sets how many pods a group has.
    pub fn set_pods(&mut self, group: &Arc<str>, pods: u64) {
        self.pods.insert(Arc::clone(group), pods);
    }

    /// The peek at the count of a take.
    pub fn peek_of(take: &Take) -> CountPeek {
        CountPeek {
            digest: digest(take.identity.as_str(), &take.instance),
            window: Micros(window_of(take)),
            max: take.max,
            amount: take.amount,
        }
    }

    /// The digest in the key of places.
    pub fn places_digest(text: &str) -> Arc<str> {
        digest(text, b"places")
    }

    /// Returns what counted in all pods when the store last said so, or more if this pod alone took more: of the fullest count of each
    /// limit, by its identity.
    pub fn used(&mut self, now: u64) -> std::collections::HashMap<Arc<str>, Amount> {
        let store = self.clock.earliest(now);
        let mut all = std::collections::HashMap::new();
        for (key, count) in &mut self.counts {
            count.own.forget(slice_of(store, count.window));
            let used = if now.saturating_sub(count.used_at) < count.window { count.used } else { 0 };
            let used = Amount::from_millionths(used.max(count.own.total()));
            let most = all.entry(Arc::clone(&key.text)).or_insert(used);
            *most = (*most).max(used);
        }
        all
    }

    /// Returns whether a take needs no request, since this pod has leased so much.
    pub fn is_leased(&self, take: &Take, now: u64) -> bool {
        self.leases && self.counts.get(&key_of(take)).is_some_and(|count| count.has_leased(take, now))
    }

    /// Returns whether a lease was begun since this was asked last.
    pub fn has_begun_lease(&mut self) -> bool {
        std::mem::take(&mut self.lease_begun)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use toolweir_crds::OnStoreFailure;
    use toolweir_engine::{
        shared::SharedHold,
        take::{Hold, Identity, instance},
        window::Span,
    };

    use super::*;
    use crate::count::Lease;

    const TEN: u64 = 10_000_000;

    fn take(name: &str) -> SharedTake {
        let take = Take {
            identity: Identity::new(name),
            instance: instance(""),
            span: Span::new(Duration::from_secs(60)),
            max: Amount::whole(10),
            amount: Amount::ONE,
        };
        SharedTake { take, pod_group: "Namespace a".into(), failure: OnStoreFailure::Allow }
    }

    fn demand(takes: &[&str], holds: &[&str]) -> SharedDemand {
        let hold = |name: &&str| SharedHold {
            hold: Hold { identity: Identity::new(name), max: 3 },
            pod_group: "Namespace a".into(),
            failure: OnStoreFailure::Allow,
        };
        SharedDemand { takes: takes.iter().map(|name| take(name)).collect(), holds: holds.iter().map(hold).collect() }
    }

    #[test]
    fn a_call_whose_count_is_not_known_is_an_error_and_takes_nothing() {
        let mut pod = LocalCounts::new(true, 10);
        let known = demand(&["known"], &["slow"]);
        assert!(pod.add_counts(std::slice::from_ref(&known), 1));
        let key = CountKey::from(&take("known").take);

        let wanted = [known, demand(&["known", "unknown"], &["slow"])];
        assert_eq!(pod.request(&wanted, 1).unwrap_err(), UnknownCount);
        assert_eq!((pod.counts[&key].requests, pod.counts[&key].lease_requests), (0, 0));
        assert_eq!(pod.places["slow"].count, 0, "the place that the first demand asked for");

        let both = demand(&["known", "unknown"], &[]);
        assert_eq!(pod.use_leases(&both, 1).unwrap_err(), UnknownCount, "there is no lease");
        pod.counts.get_mut(&key).unwrap().lease = Some(Lease { number: 7, left: TEN, max: TEN, deadline: 100 });
        assert_eq!(pod.use_leases(&both, 1).unwrap_err(), UnknownCount, "there is no count");
        let count = &pod.counts[&key];
        assert_eq!((count.lease.unwrap().left, count.own.total(), count.unreported.total()), (TEN, 0, 0));
    }
}
