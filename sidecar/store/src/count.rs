//! One count as a pod knows it: what the pod took, its lease, and what the store said last.
//!
//! All times are microseconds: `now` and deadlines on this process' clock, slices on the store's. All amounts are millionths.

use std::{sync::Arc, time::Duration};

use hashbrown::Equivalent;
use toolweir_engine::{
    Amount, Timestamp,
    take::{Instance, Take},
    window::{Full, Slice},
};

use crate::{
    scripts::{
        CountUpdate,
        take::{CountReply, CountRequest, Wait},
    },
    slices::{Micros, Slices, slice_of},
};

/// The longest lease.
const LONGEST_LEASE: u64 = 5_000_000;
/// The longest time for which a full count is taken for full without asking.
const LONGEST_KNOWN_FULL: u64 = 250_000;
/// The part of a window that a reply may take before the call's amount counts from the reply on.
const LATE: u64 = 512;
/// The most that is leased at once.
const MOST_AHEAD: u64 = 9_000_000_000_000_000;

/// The identity and the instance of a count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CountKey {
    pub text: Arc<str>,
    pub instance: Instance,
}

/// A [`CountKey`] for looking up, without its own copy.
#[derive(Hash)]
pub(crate) struct CountKeyRef<'a> {
    text: &'a str,
    instance: &'a [u8],
}

impl Equivalent<CountKey> for CountKeyRef<'_> {
    fn equivalent(&self, key: &CountKey) -> bool {
        *self.text == *key.text && *self.instance == *key.instance
    }
}

impl From<&Take> for CountKey {
    fn from(take: &Take) -> Self {
        Self { text: take.identity.as_str().into(), instance: take.instance.clone() }
    }
}

pub(crate) fn key_of(take: &Take) -> CountKeyRef<'_> {
    CountKeyRef { text: take.identity.as_str(), instance: &take.instance }
}

/// Returns the digest in a key of the store: the same for the same count in every pod, and short whatever its name is.
pub(crate) fn digest(text: &str, instance: &[u8]) -> Arc<str> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(text.as_bytes());
    hash.update(&[0]);
    hash.update(instance);
    let hash = hash.finish();
    data_encoding::BASE64URL_NOPAD.encode(hash.as_ref().get(..16).unwrap_or_default()).into()
}

/// The window of a take, in microseconds.
pub(crate) fn window_of(take: &Take) -> u64 {
    (take.span.nanos() / 1000).max(1)
}

/// An amount that this pod may use without asking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub number: u64,
    pub left: u64,
    /// The maximum that it was taken for; limits that count together each have their own.
    pub max: u64,
    /// The end of its use: a quarter of its length before the store's end.
    pub deadline: u64,
}

/// A refusal of the store that is taken for granted for a short time.
#[derive(Clone, Copy, Debug, Default)]
struct KnownFull {
    amount: u64,
    max: u64,
    until: u64,
    /// When the amount fits, in the engine's time.
    end: Timestamp,
}

/// When a request was sent and answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyTimes {
    /// The store's clock.
    pub store: u64,
    pub sent: u64,
    pub received: u64,
    /// The engine's time.
    pub engine: Timestamp,
}

/// One count.
#[derive(Debug)]
pub(crate) struct LocalCount {
    pub digest: Arc<str>,
    pub window: u64,
    /// All that this pod took, wherever it was counted.
    pub own: Slices,
    /// Uses of the lease that are not reported yet.
    pub unreported: Slices,
    /// Amounts that were taken while the store was away.
    pub offline: Slices,
    pub lease: Option<Lease>,
    /// The amount that counted in all pods when the store last said so.
    pub used: u64,
    pub used_at: u64,
    full: KnownFull,
    /// Requests in flight that concern the lease: until they are answered it is not closed.
    pub lease_requests: u32,
    /// All requests in flight: until they are answered the count is not forgotten.
    pub requests: u32,
    /// The amount since the pace was worked out last, when that was, and the pace in millionths a second.
    pub taken_lately: u64,
    pace_at: u64,
    pace: u64,
    pub touched: u64,
}

impl LocalCount {
    pub(crate) fn new(take: &Take, now: u64) -> Self {
        Self {
            digest: digest(take.identity.as_str(), &take.instance),
            window: window_of(take),
            own: Slices::default(),
            unreported: Slices::default(),
            offline: Slices::default(),
            lease: None,
            used: 0,
            used_at: now,
            full: KnownFull::default(),
            lease_requests: 0,
            requests: 0,
            taken_lately: 0,
            pace_at: now,
            pace: 0,
            touched: now,
        }
    }

    /// The length of a lease.
    pub(crate) fn lease_length(&self) -> u64 {
        (self.window / 16).clamp(1, LONGEST_LEASE)
    }

    /// Returns whether the lease suffices for a take.
    pub(crate) fn has_leased(&self, take: &Take, now: u64) -> bool {
        let (amount, max) = (take.amount.millionths(), take.max.millionths());
        self.lease.is_some_and(|lease| now < lease.deadline && lease.left >= amount && lease.max <= max)
    }

    /// Returns when a take fits again, where that is known without asking: less did not fit, or a larger maximum.
    pub(crate) fn known_full(&self, take: &Take, now: u64) -> Option<Timestamp> {
        let KnownFull { amount, max, until, end } = self.full;
        (now < until && take.amount.millionths() >= amount && take.max.millionths() <= max).then_some(end)
    }

    /// Forgets that the count was full.
    pub(crate) fn is_not_full(&mut self) {
        self.full.until = 0;
    }

    /// Returns the amount to lease: what the pace of late would use within a lease. Only what was taken makes the pace.
    fn ahead(&mut self, now: u64) -> u64 {
        let (elapsed, length) = (now.saturating_sub(self.pace_at), self.lease_length());
        if elapsed >= length / 8 {
            let pace = u64::try_from(u128::from(self.taken_lately) * 1_000_000 / u128::from(elapsed.max(1))).unwrap_or(u64::MAX);
            self.pace = if elapsed > 4 * length { pace } else { u64::midpoint(self.pace, pace).max(pace / 2) };
            self.taken_lately = 0;
            self.pace_at = now;
        }
        let wanted = u64::try_from(u128::from(self.pace) * u128::from(length) / 1_000_000).unwrap_or(u64::MAX);
        let left = self.lease.filter(|lease| now < lease.deadline).map_or(0, |lease| lease.left);
        wanted.saturating_sub(left).min(MOST_AHEAD)
    }

    /// Makes the request for a take. `next` is the number of a lease that may begin.
    pub(crate) fn request(&mut self, take: &Take, next: u64, leases: bool, now: u64) -> CountRequest {
        // One at a time: whoever is answered second could not tell which lease it is.
        let ahead = if leases && self.lease_requests == 0 { self.ahead(now) } else { 0 };
        // A lease that is over is closed, and what is leased after that is another.
        let over = self.lease_requests == 0 && self.lease.is_some_and(|lease| now >= lease.deadline);
        let lease_number = self.lease.map_or(next, |lease| lease.number);
        let uses = if self.lease.is_some() { self.unreported.drain() } else { Vec::new() };
        let ahead = if over { 0 } else { ahead };
        if over {
            self.lease = None;
        }
        let request = CountRequest {
            digest: Arc::clone(&self.digest),
            window: Micros(self.window),
            max: take.max,
            amount: take.amount,
            ahead: Amount::from_millionths(ahead),
            lease_length: Micros(self.lease_length()),
            lease_number,
            closes_lease: over,
            uses,
        };
        self.requests += 1;
        if request.concerns_lease() {
            self.lease_requests += 1;
        }
        request
    }

    /// Ends the lease if it is over, and returns the request that closes it.
    pub(crate) fn close_lease(&mut self, now: u64) -> Option<CountRequest> {
        let lease = self.lease.filter(|lease| now >= lease.deadline && self.lease_requests == 0)?;
        self.lease = None;
        Some(CountRequest {
            digest: Arc::clone(&self.digest),
            window: Micros(self.window),
            max: Amount::ZERO,
            amount: Amount::ZERO,
            ahead: Amount::ZERO,
            lease_length: Micros(self.lease_length()),
            lease_number: lease.number,
            closes_lease: true,
            uses: self.unreported.drain(),
        })
    }

    /// Notes that a request is no longer in flight.
    pub(crate) fn request_ended(&mut self, request: &CountRequest) {
        self.requests = self.requests.saturating_sub(1);
        if request.concerns_lease() {
            self.lease_requests = self.lease_requests.saturating_sub(1);
        }
    }

    /// Adds an amount that the store has counted. Returns its slice, and the update that moves it there where the reply was late.
    pub(crate) fn add_granted(&mut self, amount: u64, times: ReplyTimes) -> (Slice, Option<CountUpdate>) {
        let counted = slice_of(times.store, self.window);
        // The call goes on only now. Where that is late, its amount counts from now on.
        let elapsed = times.received.saturating_sub(times.sent);
        let late = elapsed > self.window / LATE;
        let slice = if late { slice_of(times.store + elapsed, self.window) } else { counted };
        let update = (slice > counted).then(|| {
            let moved = i64::try_from(amount).unwrap_or(i64::MAX);
            self.update(vec![(slice, moved), (counted, -moved)])
        });
        self.own.add(slice, amount);
        self.own.forget(counted);
        self.taken_lately = self.taken_lately.saturating_add(amount);
        (slice, update)
    }

    /// Adds what was leased to the lease that was asked for, or begins it. Returns whether one began.
    pub(crate) fn extend_lease(&mut self, request: &CountRequest, leased: Amount, take: &Take, sent: u64) -> bool {
        let (leased, max, number) = (leased.millionths(), take.max.millionths(), request.lease_number);
        if leased == 0 {
            return false;
        }
        let deadline = sent + request.lease_length.0 / 4 * 3;
        match &mut self.lease {
            Some(lease) if lease.number == number => {
                lease.left = lease.left.saturating_add(leased);
                lease.max = lease.max.max(max);
                lease.deadline = lease.deadline.max(deadline);
                false
            }
            Some(_) => false,
            lease @ None => {
                *lease = Some(Lease { number, left: leased, max, deadline });
                true
            }
        }
    }

    /// Notes what the store said of the count. Returns why the take does not fit, if so.
    pub(crate) fn note_reply(&mut self, take: &Take, reply: &CountReply, times: ReplyTimes) -> Option<Full> {
        self.used = reply.used.millionths();
        self.used_at = times.received;
        match reply.wait {
            Wait::Fits => None,
            Wait::After(Micros(wait)) => {
                let end = later(times.engine, wait);
                let until = times.sent + wait.min(self.window / 128).min(LONGEST_KNOWN_FULL);
                self.full = KnownFull { amount: take.amount.millionths(), max: take.max.millionths(), until, end };
                Some(Full::Until(end))
            }
            Wait::Never => Some(Full::Never),
        }
    }

    /// Gives the lease up: all of it counts as used.
    pub(crate) fn drop_lease(&mut self) {
        self.lease = None;
        self.unreported = Slices::default();
    }

    /// Returns whether nothing would be lost with the count.
    pub(crate) fn is_idle(&self) -> bool {
        self.own.is_empty() && self.lease.is_none() && self.offline.is_empty() && self.requests == 0
    }

    /// An update of this count in the store.
    pub(crate) fn update(&self, slices: Vec<(Slice, i64)>) -> CountUpdate {
        CountUpdate { digest: Arc::clone(&self.digest), window: Micros(self.window), slices }
    }

    /// An update that adds amounts; nothing where there are none.
    pub(crate) fn addition(&self, slices: impl Iterator<Item = (Slice, u64)>) -> Option<CountUpdate> {
        let slices: Vec<_> = slices.map(|(slice, amount)| (slice, i64::try_from(amount).unwrap_or(i64::MAX))).collect();
        (!slices.is_empty()).then(|| self.update(slices))
    }
}

/// The engine's time after a wait of so many microseconds.
pub(crate) fn later(engine: Timestamp, wait: u64) -> Timestamp {
    engine.after(Duration::from_micros(wait))
}

/// The offset of the store's clock: at `now` of this process it is from `now + least` to `now + most`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClockOffset {
    least: i128,
    most: i128,
    /// The store's clock is known.
    pub is_known: bool,
}

impl ClockOffset {
    /// The offset where the store's clock said `store` to a request that was sent at `sent` and answered at `received`.
    pub(crate) fn new(store: u64, sent: u64, received: u64) -> Self {
        let store = i128::from(store);
        Self { least: store - i128::from(received), most: store - i128::from(sent), is_known: true }
    }

    /// Returns whether it is known at least as exactly as another.
    pub(crate) fn is_as_exact_as(&self, other: &Self) -> bool {
        self.most - self.least <= other.most - other.least
    }

    /// The earliest time that the store's clock may show.
    pub(crate) fn earliest(&self, now: u64) -> u64 {
        Self::at(self.least, now)
    }

    /// The latest time that the store's clock may show.
    pub(crate) fn latest(&self, now: u64) -> u64 {
        Self::at(self.most, now)
    }

    fn at(offset: i128, now: u64) -> u64 {
        u64::try_from(i128::from(now) + offset).unwrap_or(0)
    }
}
