//! The counts that this pod keeps itself: of windows, and of calls in flight.

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashbrown::{Equivalent, HashMap};
use smallvec::SmallVec;

use crate::{
    shared::{GrantedAmounts, GrantedPlaces},
    take::{Hold, Identity, Instance, Take, TakeError},
    window::{Amount, Full, Slice, Span, Timestamp, Usage},
};

/// The record of what a call took, for giving it back. Dropping it frees the places among the calls in flight; what was
/// counted against windows stays counted.
#[derive(Debug, Default)]
pub struct Permit {
    counters: Option<Arc<Memory>>,
    taken: SmallVec<[(CounterKey, Slice, Amount); 2]>,
    held: SmallVec<[Identity; 1]>,
    /// The amounts and places of counts that pods share.
    amounts: Vec<Box<dyn GrantedAmounts>>,
    places: Vec<Box<dyn GrantedPlaces>>,
}

impl Permit {
    /// Makes a permit of what was taken of counts that pods share.
    pub(crate) fn from_shared(amounts: Option<Box<dyn GrantedAmounts>>, places: Option<Box<dyn GrantedPlaces>>) -> Self {
        let mut permit = Self::default();
        permit.amounts.extend(amounts);
        permit.places.extend(places);
        permit
    }

    /// Makes a permit of these places; they come free with it.
    pub fn with_places(places: Box<dyn GrantedPlaces>) -> Self {
        Self::from_shared(None, Some(places))
    }

    /// Makes a permit of these amounts; they stay taken unless it is given back.
    pub fn with_amounts(amounts: Box<dyn GrantedAmounts>) -> Self {
        Self::from_shared(Some(amounts), None)
    }

    /// Gives back everything: nothing of the call was sent to a server.
    pub fn give_back(mut self) {
        self.amounts.drain(..).for_each(GrantedAmounts::give_back);
        if let Some(counters) = &self.counters {
            let mut state = counters.lock();
            for (key, slice, amount) in self.taken.drain(..) {
                if let Some(counter) = state.counters.get_mut(&key) {
                    counter.usage.give_back(slice, amount);
                    state.first_end = Timestamp(0);
                }
            }
        }
    }

    /// Counts what this pod counts itself from `now` on, no longer from when it was taken: the call goes on only now.
    pub(crate) fn restamp(&mut self, now: Timestamp) {
        let Some(counters) = &self.counters else { return };
        let mut state = counters.lock();
        for (key, slice, amount) in &mut self.taken {
            if let Some(counter) = state.counters.get_mut(key) {
                counter.usage.give_back(*slice, *amount);
                *slice = counter.usage.take(counter.span, now, *amount);
            }
        }
    }

    /// Returns true if it holds a place among the calls in flight.
    pub fn holds_places(&self) -> bool {
        !self.held.is_empty() || !self.places.is_empty()
    }

    /// Moves the places among the calls in flight into a permit of their own: they come free with that.
    #[must_use]
    pub fn split_places(&mut self) -> Self {
        let mut places = Self::default();
        places.counters.clone_from(&self.counters);
        places.held.append(&mut self.held);
        places.places.append(&mut self.places);
        places
    }

    /// Moves everything of another permit into this one.
    pub fn join(&mut self, mut other: Self) {
        self.taken.append(&mut other.taken);
        self.held.append(&mut other.held);
        self.amounts.append(&mut other.amounts);
        self.places.append(&mut other.places);
        if self.counters.is_none() {
            self.counters = other.counters.take();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if let Some(counters) = &self.counters {
            let mut state = counters.lock();
            for identity in &self.held {
                state.release(identity);
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CounterKey {
    identity: Identity,
    instance: Instance,
}

#[derive(Clone, Copy)]
struct CounterKeyRef<'a> {
    identity: &'a Identity,
    instance: &'a [u8],
}

impl Hash for CounterKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        CounterKeyRef { identity: &self.identity, instance: &self.instance }.hash(state);
    }
}

impl Hash for CounterKeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.identity.text_hash());
        if !self.instance.is_empty() {
            state.write(self.instance);
        }
    }
}

impl Equivalent<CounterKey> for CounterKeyRef<'_> {
    fn equivalent(&self, key: &CounterKey) -> bool {
        *self.identity == key.identity && *self.instance == *key.instance
    }
}

#[derive(Debug)]
struct Counter {
    usage: Usage,
    span: Span,
}

#[derive(Debug, Default)]
struct MemoryState {
    counters: HashMap<CounterKey, Counter>,
    in_flight: HashMap<Arc<str>, u64>,
    /// The number of counts at which to look for those that are over.
    sweep_at: usize,
    /// The earliest end: no count is over before this.
    first_end: Timestamp,
}

impl MemoryState {
    fn release(&mut self, identity: &Identity) {
        if let Some(count) = self.in_flight.get_mut(&**identity.text()) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight.remove(&**identity.text());
            }
        }
    }

    /// Checks that all of it can be taken, and makes room for the new counts. Returns the number of new counts.
    fn check(&mut self, takes: &[Take], holds: &[Hold], most: usize, now: Timestamp) -> Result<usize, TakeError> {
        let mut full = SmallVec::new();
        let mut missing: SmallVec<[usize; 2]> = SmallVec::new();
        for (index, take) in takes.iter().enumerate() {
            let key = CounterKeyRef { identity: &take.identity, instance: &take.instance };
            let mut counter = self.counters.get_mut(&key);
            let check = take.check(counter.as_deref_mut().map(|counter| &mut counter.usage), now);
            // One that is over is swept away with the others.
            if counter.is_none_or(|counter| counter.usage.end(take.span) <= now) {
                missing.push(index);
            }
            if let Err(why) = check {
                full.push((index, why));
            }
        }
        if !full.is_empty() {
            return Err(TakeError::Full(full));
        }
        for (index, hold) in holds.iter().enumerate() {
            if self.in_flight(&hold.identity) >= hold.max {
                return Err(TakeError::Busy(index));
            }
        }
        // Room for all that are new, before the first is made.
        if let Some(first) = missing.first()
            && !self.make_room(most.saturating_sub(missing.len() - 1), now)
        {
            return Err(TakeError::OutOfCounters(*first));
        }
        Ok(missing.len())
    }

    fn in_flight(&self, identity: &Identity) -> u64 {
        self.in_flight.get(&**identity.text()).copied().unwrap_or(0)
    }

    /// Makes room for a new count. Returns false if all that are kept are live.
    fn make_room(&mut self, most: usize, now: Timestamp) -> bool {
        if self.counters.len() >= self.sweep_at.min(most) && self.first_end <= now {
            let mut first_end = Timestamp(u64::MAX);
            self.counters.retain(|_, counter| {
                let end = counter.usage.end(counter.span);
                if end > now {
                    first_end = first_end.min(end);
                }
                end > now
            });
            self.first_end = first_end;
            // Amortised: the next sweep comes when there are twice as many as are live now.
            self.sweep_at = (self.counters.len() * 2).max(64);
            if self.counters.capacity() > self.sweep_at * 4 {
                self.counters.shrink_to(self.sweep_at);
            }
        }
        self.counters.len() < most
    }
}

/// Counts in memory. All takes and holds of a call succeed together, or none does.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<MemoryState>,
    most: usize,
    this: std::sync::Weak<Self>,
}

impl Memory {
    /// The number of live counts that are kept unless configured otherwise.
    pub const COUNTERS: usize = 10_000;

    /// Makes counts of which at most `most` are live at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { state: Mutex::default(), most, this: this.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        // Nothing is left half done when a holder panics: every change is a single step of saturating arithmetic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of counts that are kept.
    pub fn len(&self) -> usize {
        self.lock().counters.len()
    }

    /// Returns true if none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes every amount and place, or none.
    ///
    /// # Errors
    /// The takes or the hold that do not fit now.
    pub fn take(&self, takes: &[Take], holds: &[Hold], now: Timestamp) -> Result<Permit, TakeError> {
        if takes.is_empty() && holds.is_empty() {
            return Ok(Permit::default());
        }
        let mut state = self.lock();
        state.check(takes, holds, self.most, now)?;
        let mut permit = Permit::default();
        permit.counters = self.this.upgrade();
        for take in takes {
            let key = CounterKeyRef { identity: &take.identity, instance: &take.instance };
            let owned = CounterKey { identity: take.identity.clone(), instance: take.instance.clone() };
            let slice = if let Some(counter) = state.counters.get_mut(&key) {
                counter.usage.take(take.span, now, take.amount)
            } else {
                let mut usage = Usage::default();
                let slice = usage.take(take.span, now, take.amount);
                state.first_end = state.first_end.min(usage.end(take.span));
                state.counters.insert(owned.clone(), Counter { usage, span: take.span });
                slice
            };
            permit.taken.push((owned, slice, take.amount));
        }
        for hold in holds {
            *state.in_flight.entry(Arc::clone(hold.identity.text())).or_insert(0) += 1;
            permit.held.push(hold.identity.clone());
        }
        Ok(permit)
    }

    /// Returns what counts now in the fullest count of an identity; `keyed` leaves out the one that is for no session and no value.
    pub fn fullest(&self, identity: &Identity, keyed: bool, span: Span, now: Timestamp) -> Amount {
        self.lock()
            .counters
            .iter_mut()
            .filter(|(key, _)| key.identity == *identity && !(keyed && key.instance.is_empty()))
            .map(|(_, counter)| counter.usage.used(span, now))
            .max()
            .unwrap_or_default()
    }

    /// Checks that [`Memory::take`] would succeed now, if `before` counts had been made newly. Takes nothing. Returns the number of
    /// counts that it would make newly.
    ///
    /// # Errors
    /// The takes or the hold that do not fit now.
    pub fn check(&self, takes: &[Take], holds: &[Hold], before: usize, now: Timestamp) -> Result<usize, TakeError> {
        self.lock().check(takes, holds, self.most.saturating_sub(before), now)
    }

    /// Returns what counts now in the count that a take is for, and whether the take alone fits. Takes nothing.
    pub fn peek(&self, take: &Take, now: Timestamp) -> (Amount, Result<(), Full>) {
        let mut state = self.lock();
        let counter = state.counters.get_mut(&CounterKeyRef { identity: &take.identity, instance: &take.instance });
        let mut usage = counter.map(|counter| &mut counter.usage);
        let used = usage.as_deref_mut().map(|usage| usage.used(take.span, now)).unwrap_or_default();
        (used, take.check(usage, now))
    }

    /// Returns the number of places of an entry that are taken.
    pub fn in_flight(&self, identity: &Identity) -> u64 {
        self.lock().in_flight(identity)
    }
}
