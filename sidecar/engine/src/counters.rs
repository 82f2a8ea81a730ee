//! What has been let through lately, and what is under way.

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashbrown::{Equivalent, HashMap};
use smallvec::SmallVec;

use crate::{
    shared::{Amounts, Places},
    window::{Amount, Full, Slice, Span, Timestamp, Usage},
};

/// What a limit counts under: the same text is the same count, across reloads too.
#[derive(Clone, Debug)]
pub struct Identity {
    text: Arc<str>,
    hash: u64,
}

impl Identity {
    /// An identity of this text.
    pub fn new(text: &str) -> Self {
        Self { hash: hash_of(text, 0), text: text.into() }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for Identity {}

#[expect(deprecated, reason = "std's only hasher with stable keys; identities are the policy's, not an attacker's")]
fn hash_of(text: &str, seed: u64) -> u64 {
    let mut hasher = std::hash::SipHasher::new_with_keys(seed, 0x746f_6f6c_7765_6972);
    text.hash(&mut hasher);
    hasher.finish()
}

/// One of the counts of a limit: that of a session, of a key's value, or the only one (empty).
pub type Instance = SmallVec<[u8; 24]>;

/// Instances longer than this are kept as a hash, so that a client cannot fill memory with long ones.
const LONGEST_INSTANCE: usize = 64;

/// An instance of this text.
pub fn instance(text: &str) -> Instance {
    if text.len() <= LONGEST_INSTANCE {
        return Instance::from_slice(text.as_bytes());
    }
    let mut hashed = Instance::from_slice(&[0]);
    hashed.extend_from_slice(&hash_of(text, 1).to_le_bytes());
    hashed.extend_from_slice(&hash_of(text, 2).to_le_bytes());
    hashed
}

/// An amount to be counted against one maximum.
#[derive(Clone, Debug)]
pub struct Take {
    /// The limit's identity.
    pub identity: Identity,
    /// Which of the limit's counts.
    pub instance: Instance,
    /// The window's length.
    pub span: Span,
    /// The most that may count at once.
    pub max: Amount,
    /// What the call adds.
    pub amount: Amount,
}

impl Take {
    /// Whether it fits now, on top of what was let through: nothing, where that is not kept.
    fn fits(&self, usage: Option<&mut Usage>, now: Timestamp) -> Result<(), Full> {
        match usage {
            Some(usage) => usage.check(self.span, now, self.amount, self.max),
            None if self.amount > self.max => Err(Full::Never),
            None => Ok(()),
        }
    }
}

/// A place among the calls under way.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The entry's identity.
    pub identity: Identity,
    /// How many may be under way at once.
    pub max: u64,
}

/// Why a call's limits were not taken. Indices are those of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These takes do not fit now.
    Full(SmallVec<[(usize, Full); 2]>),
    /// This hold has no place now.
    Busy(usize),
    /// More counts are live than are kept; nothing is let through that would need a new one.
    OutOfCounters(usize),
}

/// What was counted, for giving it back. Dropping it frees the places among the calls under way; what was counted
/// against windows stays counted.
#[derive(Debug, Default)]
pub struct Permit {
    counters: Option<Arc<Memory>>,
    taken: SmallVec<[(Key, Slice, Amount); 2]>,
    held: SmallVec<[Identity; 1]>,
    /// What was taken elsewhere.
    amounts: Vec<Box<dyn Amounts>>,
    places: Vec<Box<dyn Places>>,
}

impl Permit {
    /// What was taken elsewhere.
    pub(crate) fn elsewhere(amounts: Option<Box<dyn Amounts>>, places: Option<Box<dyn Places>>) -> Self {
        let mut permit = Self::default();
        permit.amounts.extend(amounts);
        permit.places.extend(places);
        permit
    }

    /// Gives back everything: nothing of the call was sent to a server.
    pub fn give_back(mut self) {
        self.amounts.drain(..).for_each(Amounts::give_back);
        if let Some(counters) = &self.counters {
            let mut inner = counters.lock();
            for (key, slice, amount) in self.taken.drain(..) {
                if let Some(counter) = inner.counters.get_mut(&key) {
                    counter.usage.give_back(slice, amount);
                    inner.first_end = Timestamp(0);
                }
            }
        }
    }

    /// Counts what this pod counts itself from now on, and no longer from when it was taken: the call goes on only now.
    pub(crate) fn restamp(&mut self, now: Timestamp) {
        let Some(counters) = &self.counters else { return };
        let mut inner = counters.lock();
        for (key, slice, amount) in &mut self.taken {
            if let Some(counter) = inner.counters.get_mut(key) {
                counter.usage.give_back(*slice, *amount);
                *slice = counter.usage.take(counter.span, now, *amount);
            }
        }
    }

    /// Whether it holds a place among the calls under way.
    pub fn holds_places(&self) -> bool {
        !self.held.is_empty() || !self.places.is_empty()
    }

    /// Takes the places among the calls under way out of it: they come free with the permit that this gives.
    #[must_use]
    pub fn split_places(&mut self) -> Self {
        let mut places = Self::default();
        places.counters.clone_from(&self.counters);
        places.held.append(&mut self.held);
        places.places.append(&mut self.places);
        places
    }

    /// Puts the takes of another permit into this one.
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
            let mut inner = counters.lock();
            for identity in &self.held {
                inner.release(identity);
            }
        }
    }
}

/// Keeps counts. All takes and holds of a call succeed together or none does.
pub trait Counters {
    /// Takes every amount and place, or none.
    fn take(&self, takes: &[Take], holds: &[Hold], now: Timestamp) -> Result<Permit, Refusal>;

    /// What counts against a limit now: of the fullest of its counts.
    fn used(&self, identity: &Identity, span: Span, now: Timestamp) -> Amount;

    /// Whether [`Counters::take`] would succeed now, when `before` counts had been made newly; nothing is taken. Gives how
    /// many counts it would make newly.
    fn check(&self, takes: &[Take], holds: &[Hold], before: usize, now: Timestamp) -> Result<usize, Refusal>;

    /// What counts now in the count that a take is for, and whether the take alone fits; nothing is taken.
    fn look(&self, take: &Take, now: Timestamp) -> (Amount, Result<(), Full>);

    /// How many places of an entry are taken.
    fn under_way(&self, identity: &Identity) -> u64;
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    identity: Identity,
    instance: Instance,
}

#[derive(Clone, Copy)]
struct KeyRef<'a> {
    identity: &'a Identity,
    instance: &'a [u8],
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        KeyRef { identity: &self.identity, instance: &self.instance }.hash(state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.identity.hash);
        if !self.instance.is_empty() {
            state.write(self.instance);
        }
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.identity == key.identity && *self.instance == *key.instance
    }
}

#[derive(Debug)]
struct Counter {
    usage: Usage,
    span: Span,
}

#[derive(Debug, Default)]
struct Inner {
    counters: HashMap<Key, Counter>,
    under_way: HashMap<Arc<str>, u64>,
    /// At how many to look for counts that are over.
    sweep_at: usize,
    /// None is over before this.
    first_end: Timestamp,
}

impl Inner {
    fn release(&mut self, identity: &Identity) {
        if let Some(count) = self.under_way.get_mut(&*identity.text) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.under_way.remove(&*identity.text);
            }
        }
    }

    /// Whether all of it can be taken, with room for what is new made; gives how many counts are new.
    fn check(&mut self, takes: &[Take], holds: &[Hold], most: usize, now: Timestamp) -> Result<usize, Refusal> {
        let mut full = SmallVec::new();
        let mut missing: SmallVec<[usize; 2]> = SmallVec::new();
        for (index, take) in takes.iter().enumerate() {
            let key = KeyRef { identity: &take.identity, instance: &take.instance };
            let mut counter = self.counters.get_mut(&key);
            let check = take.fits(counter.as_deref_mut().map(|counter| &mut counter.usage), now);
            // One that is over is swept away with the others.
            if counter.is_none_or(|counter| counter.usage.end(take.span) <= now) {
                missing.push(index);
            }
            if let Err(why) = check {
                full.push((index, why));
            }
        }
        if !full.is_empty() {
            return Err(Refusal::Full(full));
        }
        for (index, hold) in holds.iter().enumerate() {
            if self.under_way(&hold.identity) >= hold.max {
                return Err(Refusal::Busy(index));
            }
        }
        // Room for all that are new, before the first is made.
        if let Some(first) = missing.first()
            && !self.room(most.saturating_sub(missing.len() - 1), now)
        {
            return Err(Refusal::OutOfCounters(*first));
        }
        Ok(missing.len())
    }

    fn under_way(&self, identity: &Identity) -> u64 {
        self.under_way.get(&*identity.text).copied().unwrap_or(0)
    }

    /// Makes room for a new count; false when all that are kept are live.
    fn room(&mut self, most: usize, now: Timestamp) -> bool {
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

/// Counts in memory.
#[derive(Debug)]
pub struct Memory {
    inner: Mutex<Inner>,
    most: usize,
    this: std::sync::Weak<Self>,
}

impl Memory {
    /// How many live counts are kept unless said otherwise.
    pub const COUNTERS: usize = 10_000;

    /// Counts of which at most `most` are live at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { inner: Mutex::default(), most, this: this.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done when a holder panics: every change is a single step of saturating arithmetic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many counts are kept.
    pub fn len(&self) -> usize {
        self.lock().counters.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Counters for Memory {
    fn take(&self, takes: &[Take], holds: &[Hold], now: Timestamp) -> Result<Permit, Refusal> {
        if takes.is_empty() && holds.is_empty() {
            return Ok(Permit::default());
        }
        let mut inner = self.lock();
        inner.check(takes, holds, self.most, now)?;
        let mut permit = Permit::default();
        permit.counters = self.this.upgrade();
        for take in takes {
            let key = KeyRef { identity: &take.identity, instance: &take.instance };
            let owned = Key { identity: take.identity.clone(), instance: take.instance.clone() };
            let slice = if let Some(counter) = inner.counters.get_mut(&key) {
                counter.usage.take(take.span, now, take.amount)
            } else {
                let mut usage = Usage::default();
                let slice = usage.take(take.span, now, take.amount);
                inner.first_end = inner.first_end.min(usage.end(take.span));
                inner.counters.insert(owned.clone(), Counter { usage, span: take.span });
                slice
            };
            permit.taken.push((owned, slice, take.amount));
        }
        for hold in holds {
            *inner.under_way.entry(Arc::clone(&hold.identity.text)).or_insert(0) += 1;
            permit.held.push(hold.identity.clone());
        }
        Ok(permit)
    }

    fn used(&self, identity: &Identity, span: Span, now: Timestamp) -> Amount {
        let mut inner = self.lock();
        if let Some(counter) = inner.counters.get_mut(&KeyRef { identity, instance: &[] }) {
            return counter.usage.used(span, now);
        }
        inner
            .counters
            .iter_mut()
            .filter(|(key, _)| key.identity == *identity)
            .map(|(_, counter)| counter.usage.used(span, now))
            .max()
            .unwrap_or_default()
    }

    fn check(&self, takes: &[Take], holds: &[Hold], before: usize, now: Timestamp) -> Result<usize, Refusal> {
        self.lock().check(takes, holds, self.most.saturating_sub(before), now)
    }

    fn look(&self, take: &Take, now: Timestamp) -> (Amount, Result<(), Full>) {
        let mut inner = self.lock();
        let counter = inner.counters.get_mut(&KeyRef { identity: &take.identity, instance: &take.instance });
        let mut usage = counter.map(|counter| &mut counter.usage);
        let used = usage.as_deref_mut().map(|usage| usage.used(take.span, now)).unwrap_or_default();
        (used, take.fits(usage, now))
    }

    fn under_way(&self, identity: &Identity) -> u64 {
        self.lock().under_way(identity)
    }
}
