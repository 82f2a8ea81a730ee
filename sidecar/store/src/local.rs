//! What one pod knows of the counts that it shares: what it did itself, the places that it has leased, and what the store said
//! last. Values in, values out: no sockets and no clock.
//!
//! All times are microseconds: `now` and deadlines on this process' clock, slices on the store's. All amounts are millionths.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::{Equivalent, HashMap};
use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Timestamp,
    counters::{Instance, Refusal, Take},
    shared::{SharedTake, Wanted},
    window::Full,
};

use crate::slices::{Slices, end_of, slice_of};

/// The longest lease.
const LONGEST_LEASE: u64 = 5_000_000;
/// For how long a full count is taken for full without asking.
const FULL: u64 = 250_000;
/// Of a window, the part that an answer may take before the call's place counts from the answer on.
const LATE: u64 = 512;
/// How long a pod's places are its own when nothing is heard of it.
pub const PLACES_LIFE: u64 = 10_000_000;
/// How long a pod counts among those of its group when nothing is heard of it.
pub const POD_LIFE: u64 = 15_000_000;

/// A count, or places: the identity and the instance of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    text: Arc<str>,
    instance: Instance,
}

#[derive(Hash)]
struct KeyRef<'a> {
    text: &'a str,
    instance: &'a [u8],
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.text == *key.text && *self.instance == *key.instance
    }
}

fn key_of(take: &Take) -> KeyRef<'_> {
    KeyRef { text: take.identity.as_str(), instance: &take.instance }
}

/// What the keys of the store are made of: the same for the same count in every pod, and short whatever its name is.
fn digest(text: &str, instance: &[u8]) -> Arc<str> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(text.as_bytes());
    hash.update(&[0]);
    hash.update(instance);
    let hash = hash.finish();
    data_encoding::BASE64URL_NOPAD.encode(hash.as_ref().get(..16).unwrap_or_default()).into()
}

/// Places that this pod may use without asking.
#[derive(Clone, Copy, Debug)]
struct Lease {
    number: u64,
    left: u64,
    /// It was taken for this maximum; limits that count together each have their own.
    max: u64,
    /// From then on it is not used: a quarter of its length before the store's end.
    deadline: u64,
}

#[derive(Debug)]
struct Count {
    digest: Arc<str>,
    window: u64,
    /// What this pod took, wherever it was counted.
    own: Slices,
    /// What it used of its lease and has not told.
    untold: Slices,
    /// What it took while the store was away.
    alone: Slices,
    lease: Option<Lease>,
    /// What counted in all pods when the store last said so.
    told: u64,
    told_at: u64,
    /// Full for such an amount and maximum, taken for granted until then, and in truth until the end.
    full_for: u64,
    full_max: u64,
    full_until: u64,
    full_end: Timestamp,
    /// Questions under way that tell of its lease or ask for one: until they are answered it is not closed.
    under_way: u32,
    /// All questions under way: until they are answered it is not forgotten.
    asked: u32,
    /// What was taken since the last look at the pace, when that was, and the pace in millionths a second.
    taken: u64,
    looked_at: u64,
    pace: u64,
    touched: u64,
}

impl Count {
    fn new(take: &Take, now: u64) -> Self {
        Self {
            digest: digest(take.identity.as_str(), &take.instance),
            window: (take.span.nanos() / 1000).max(1),
            own: Slices::default(),
            untold: Slices::default(),
            alone: Slices::default(),
            lease: None,
            told: 0,
            told_at: now,
            full_for: 0,
            full_max: 0,
            full_until: 0,
            full_end: Timestamp::default(),
            under_way: 0,
            asked: 0,
            taken: 0,
            looked_at: now,
            pace: 0,
            touched: now,
        }
    }

    /// How long a lease lasts.
    fn lease_length(&self) -> u64 {
        (self.window / 16).clamp(1, LONGEST_LEASE)
    }

    /// Whether what is leased suffices for a take.
    fn usable(&self, take: &Take, now: u64) -> bool {
        let (amount, max) = (take.amount.millionths(), take.max.millionths());
        self.lease.is_some_and(|lease| now < lease.deadline && lease.left >= amount && lease.max <= max)
    }

    /// When a take fits again, where that is known without asking: what did not fit for less or a larger maximum.
    fn full(&self, take: &Take, now: u64) -> Option<Timestamp> {
        let known = now < self.full_until && take.amount.millionths() >= self.full_for && take.max.millionths() <= self.full_max;
        known.then_some(self.full_end)
    }

    /// How much to ask ahead: what the pace of late would use within a lease. Only what was taken makes the pace.
    fn ahead(&mut self, now: u64) -> u64 {
        let (elapsed, length) = (now.saturating_sub(self.looked_at), self.lease_length());
        if elapsed >= length / 8 {
            let pace = u64::try_from(u128::from(self.taken) * 1_000_000 / u128::from(elapsed.max(1))).unwrap_or(u64::MAX);
            self.pace = if elapsed > 4 * length { pace } else { u64::midpoint(self.pace, pace).max(pace / 2) };
            self.taken = 0;
            self.looked_at = now;
        }
        let wanted = u64::try_from(u128::from(self.pace) * u128::from(length) / 1_000_000).unwrap_or(u64::MAX);
        let left = self.lease.filter(|lease| now < lease.deadline).map_or(0, |lease| lease.left);
        wanted.saturating_sub(left).min(9_000_000_000_000_000)
    }

    /// A question is not under way any more.
    fn is_answered(&mut self, asked: &AskedCount) {
        self.asked = self.asked.saturating_sub(1);
        if asked.tells() {
            self.under_way = self.under_way.saturating_sub(1);
        }
    }

    /// Whether anything would be lost with it.
    fn is_idle(&self) -> bool {
        self.own.is_empty() && self.lease.is_none() && self.alone.is_empty() && self.asked == 0
    }
}

/// The pod's places of one kind.
#[derive(Debug, Default)]
struct Held {
    digest: Arc<str>,
    /// How many it holds, and asks for.
    count: u64,
    /// The store may not know of the last change.
    changed: bool,
}

/// How the store's clock relates to this process': at `now` the store's is from `now + least` to `now + most`.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    least: i128,
    most: i128,
    set: bool,
}

impl Clock {
    fn at(offset: i128, now: u64) -> u64 {
        u64::try_from(i128::from(now) + offset).unwrap_or(0)
    }
}

/// Where an amount was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Lease(u64),
    Store,
    Alone,
}

/// Amounts that were taken, for giving them back.
#[derive(Clone, Debug)]
pub struct Took {
    key: Key,
    slice: u64,
    amount: u64,
    by: By,
}

/// What is to be told to a count of the store: a negative amount is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// The count.
    pub digest: Arc<str>,
    /// Its window.
    pub window: u64,
    /// Slices and amounts.
    pub slices: Vec<(u64, i64)>,
}

/// What was taken for one [`Wanted`].
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The amounts.
    pub took: SmallVec<[Took; 2]>,
    /// The places.
    pub places: SmallVec<[Arc<str>; 1]>,
    /// What was done instead of asking.
    pub without_store: Option<OnStoreFailure>,
}

/// What is said of one [`Wanted`].
#[derive(Debug)]
pub enum Said {
    /// All of it was taken.
    Taken(Taken),
    /// Nothing was.
    Refused(Refusal),
    /// Nothing was, by this pod's part: the store does not answer.
    RefusedAlone(Refusal),
    /// It has to be denied.
    Unavailable,
    /// It was not asked for.
    NotAsked,
}

/// What is said of each [`Wanted`] of a call.
pub type AllSaid = SmallVec<[Said; 2]>;

/// A count in a question to the store.
#[derive(Debug)]
pub struct AskedCount {
    /// Its key.
    pub digest: Arc<str>,
    /// Window, max, amount, ahead, length and number of the lease, whether it is closed.
    pub numbers: [u64; 7],
    /// Its uses that are told.
    pub uses: Vec<(u64, u64)>,
}

impl AskedCount {
    /// Whether it tells of a lease or asks for one.
    fn tells(&self) -> bool {
        let [_, _, _, ahead, ..] = self.numbers;
        ahead > 0 || !self.uses.is_empty()
    }
}

/// A place in a question to the store.
#[derive(Debug)]
pub struct AskedPlace {
    /// Its key.
    pub digest: Arc<str>,
    /// Max, the message's number, held with this one, life.
    pub numbers: [u64; 4],
}

/// What is asked for one [`Wanted`].
#[derive(Debug, Default)]
pub struct AskedGroup {
    /// The counts.
    pub counts: SmallVec<[AskedCount; 2]>,
    /// The places.
    pub places: SmallVec<[AskedPlace; 1]>,
}

/// A question to the store.
#[derive(Debug)]
pub struct Question {
    /// For each [`Wanted`].
    pub groups: SmallVec<[AskedGroup; 2]>,
    /// When it was made.
    pub sent: u64,
}

impl Question {
    /// Whether numbers have the form of an answer: for each group how it is, three for each count and one for each place, of which some
    /// one says why where it is refused.
    fn is_answered_by(&self, numbers: &[i64]) -> bool {
        let mut rest = numbers;
        for AskedGroup { counts, places } in &self.groups {
            let Some((status, after)) = rest.split_first() else { return false };
            let Some((of_counts, after)) = after.split_at_checked(3 * counts.len()) else { return false };
            let Some((of_places, after)) = after.split_at_checked(places.len()) else { return false };
            let why = of_counts.chunks(3).any(|count| count.get(1) != Some(&0)) || of_places.contains(&0);
            if !matches!(status, 0..=2) || (*status == 0 && !why) {
                return false;
            }
            rest = after;
        }
        rest.is_empty()
    }
}

/// What can be said at once.
#[derive(Debug)]
pub enum Plan {
    /// Everything, without a round trip.
    Said(AllSaid),
    /// Nothing: the store has to be asked.
    Ask(Question),
}

/// How a pod shares.
#[derive(Debug)]
pub struct Local {
    counts: HashMap<Key, Count>,
    places: HashMap<Arc<str>, Held>,
    /// How many pods each group had when that was last known.
    pods: BTreeMap<Arc<str>, u64>,
    clock: Clock,
    clock_at: u64,
    leases: bool,
    most: usize,
    next: u64,
    gives: Vec<Add>,
    /// A lease was begun.
    begun: bool,
    sweep_at: usize,
}

/// What the answer of the store cannot be read for.
#[derive(Debug, thiserror::Error)]
#[error("the store's answer has another form")]
pub struct Unreadable;

impl Local {
    /// Nothing known yet; at most so many counts are kept.
    pub fn new(leases: bool, most: usize) -> Self {
        Self {
            counts: HashMap::new(),
            places: HashMap::new(),
            pods: BTreeMap::new(),
            clock: Clock::default(),
            clock_at: 0,
            leases,
            most,
            next: 1,
            gives: Vec::new(),
            begun: false,
            sweep_at: 64,
        }
    }

    /// Whether places are taken ahead of use.
    pub fn set_leases(&mut self, leases: bool) {
        self.leases = leases;
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The store's clock said `store` to a question that was sent at `sent` and answered at `received`.
    pub fn set_clock(&mut self, store: u64, sent: u64, received: u64) {
        let (least, most) = (i128::from(store) - i128::from(received), i128::from(store) - i128::from(sent));
        // The tightest of the last second: a slow answer says less.
        let tighter = most - least <= self.clock.most - self.clock.least;
        if !self.clock.set {
            // What was taken before the store's clock was known counts from now on.
            for count in self.counts.values_mut() {
                let slice = slice_of(store, count.window);
                count.own.move_to(slice);
                count.alone.move_to(slice);
            }
        }
        if !self.clock.set || tighter || received.saturating_sub(self.clock_at) > 1_000_000 {
            self.clock = Clock { least, most, set: true };
            self.clock_at = received;
        }
    }

    /// The same of a server that may be another: what was known of the clock is over.
    pub fn new_clock(&mut self, store: u64, sent: u64, received: u64) {
        self.set_clock(store, sent, received);
        let (least, most) = (i128::from(store) - i128::from(received), i128::from(store) - i128::from(sent));
        self.clock = Clock { least, most, set: true };
        self.clock_at = received;
    }

    /// The store's clock now, or somewhat later than that.
    pub fn store_now(&self, now: u64) -> u64 {
        Clock::at(self.clock.most, now)
    }

    /// Makes room for counts that are not known yet; false when there is none.
    fn know(&mut self, wanted: &[Wanted], now: u64) -> Result<(), usize> {
        for take in wanted.iter().flat_map(|wanted| &wanted.takes) {
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
                return Err(0);
            }
            let key = Key { text: take.identity.as_str().into(), instance: take.instance.clone() };
            self.counts.insert(key, Count::new(take, now));
        }
        Ok(())
    }

    /// Forgets what is over.
    pub fn sweep(&mut self, now: u64) {
        let store = Clock::at(self.clock.least, now);
        self.counts.retain(|_, count| {
            count.own.forget(slice_of(store, count.window));
            !count.is_idle() || now.saturating_sub(count.touched) < 1_000_000
        });
        self.places.retain(|_, held| held.count > 0 || held.changed);
    }

    /// What can be said of what a call wants. `engine` is the engine's time of now.
    pub fn plan(&mut self, wanted: &[Wanted], now: u64, engine: Timestamp) -> Plan {
        if let Err(index) = self.know(wanted, now) {
            let refused = std::iter::once(Said::Refused(Refusal::OutOfCounters(index)));
            return Plan::Said(refused.chain(wanted.iter().skip(1).map(|_| Said::NotAsked)).collect());
        }
        match self.leased(wanted, now, engine) {
            Some(said) => Plan::Said(said),
            None => Plan::Ask(self.question(wanted, now)),
        }
    }

    /// The answer where leases and what is known to be full suffice for it.
    fn leased(&mut self, wanted: &[Wanted], now: u64, engine: Timestamp) -> Option<AllSaid> {
        if !self.leases {
            return None;
        }
        let mut full = SmallVec::<[_; 2]>::new();
        for group in wanted {
            let mut found = SmallVec::<[(usize, Full); 2]>::new();
            let mut enough = group.holds.is_empty();
            for (index, SharedTake { take, .. }) in group.takes.iter().enumerate() {
                let count = self.counts.get(&key_of(take))?;
                if let Some(end) = count.full(take, now) {
                    found.push((index, Full::Until(end.max(engine))));
                } else if !count.usable(take, now) {
                    enough = false;
                }
            }
            if found.is_empty() && !enough {
                return None;
            }
            full.push(found);
        }
        let mut all = AllSaid::new();
        for (group, full) in wanted.iter().zip(full) {
            if matches!(all.first(), Some(Said::Refused(_))) {
                all.push(Said::NotAsked);
            } else if full.is_empty() {
                all.push(Said::Taken(self.use_leases(group, now)));
            } else {
                all.push(Said::Refused(Refusal::Full(full)));
            }
        }
        Some(all)
    }

    /// Uses what was leased: it is there.
    fn use_leases(&mut self, group: &Wanted, now: u64) -> Taken {
        // The later moment, so that no place comes free early.
        let store = Clock::at(self.clock.most, now);
        let mut taken = Taken::default();
        for SharedTake { take, .. } in &group.takes {
            let amount = take.amount.millionths();
            let Some((key, count)) = self.counts.get_key_value_mut(&key_of(take)) else { continue };
            let slice = slice_of(store, count.window);
            let Some(lease) = &mut count.lease else { continue };
            lease.left = lease.left.saturating_sub(amount);
            let by = By::Lease(lease.number);
            count.own.add(slice, amount);
            count.own.forget(slice);
            count.untold.add(slice, amount);
            count.taken = count.taken.saturating_add(amount);
            taken.took.push(Took { key: key.clone(), slice, amount, by });
        }
        taken
    }

    fn question(&mut self, wanted: &[Wanted], now: u64) -> Question {
        let mut groups = SmallVec::new();
        for group in wanted {
            let AskedGroup { mut counts, mut places } = AskedGroup::default();
            for SharedTake { take, .. } in &group.takes {
                let (next, leases) = (self.number(), self.leases);
                let Some(count) = self.counts.get_mut(&key_of(take)) else { continue };
                let amount = take.amount.millionths();
                // One at a time: whoever is answered second could not tell which lease it is.
                let ahead = if leases && count.under_way == 0 { count.ahead(now) } else { 0 };
                // A lease that is over is closed, and what is leased after that is another.
                let over = count.under_way == 0 && count.lease.is_some_and(|lease| now >= lease.deadline);
                let number = count.lease.map_or(next, |lease| lease.number);
                let uses = if count.lease.is_some() { count.untold.drain() } else { Vec::new() };
                let ahead = if over { 0 } else { ahead };
                if over {
                    count.lease = None;
                }
                count.asked += 1;
                if ahead > 0 || !uses.is_empty() {
                    count.under_way += 1;
                }
                let length = count.lease_length();
                let numbers = [count.window, take.max.millionths(), amount, ahead, length, number, u64::from(over)];
                counts.push(AskedCount { digest: Arc::clone(&count.digest), numbers, uses });
            }
            for hold in &group.holds {
                let number = self.number();
                let held = self.held(hold.hold.identity.as_str());
                held.count += 1;
                let numbers = [hold.hold.max, number, held.count, PLACES_LIFE];
                places.push(AskedPlace { digest: Arc::clone(&held.digest), numbers });
            }
            groups.push(AskedGroup { counts, places });
        }
        Question { groups, sent: now }
    }

    fn held(&mut self, text: &str) -> &mut Held {
        self.places.entry(text.into()).or_insert_with(|| Held { digest: digest(text, b"places"), ..Held::default() })
    }

    /// What the store's answer means. `numbers` are those after the time. Called once for each question that was answered.
    ///
    /// # Errors
    /// It is no answer to the question, which is not answered then.
    pub fn answered(
        &mut self,
        wanted: &[Wanted],
        question: &Question,
        store: u64,
        numbers: &[i64],
        received: u64,
        engine: Timestamp,
    ) -> Result<AllSaid, Unreadable> {
        if !question.is_answered_by(numbers) {
            return Err(Unreadable);
        }
        self.set_clock(store, question.sent, received);
        let mut numbers = numbers.iter().copied();
        let mut all = AllSaid::new();
        for (group, AskedGroup { counts, places }) in wanted.iter().zip(&question.groups) {
            let status = numbers.next().ok_or(Unreadable)?;
            let (mut full, mut taken, mut busy) = (SmallVec::new(), Taken::default(), None);
            for (index, (SharedTake { take, .. }, asked)) in group.takes.iter().zip(counts).enumerate() {
                let mut next = || numbers.next().ok_or(Unreadable);
                let (used, wait, leased) = (next()?, next()?, next()?);
                let Some((key, count)) = self.counts.get_key_value_mut(&key_of(take)) else { continue };
                count.is_answered(asked);
                count.told = u64::try_from(used).unwrap_or(0);
                count.told_at = received;
                let amount = take.amount.millionths();
                if status == 1 {
                    let counted = slice_of(store, count.window);
                    // The call goes on only now. Where that is late, its place counts from now on.
                    let elapsed = received.saturating_sub(question.sent);
                    let late = elapsed > count.window / LATE;
                    let slice = if late { slice_of(store + elapsed, count.window) } else { counted };
                    if slice > counted {
                        let moved = i64::try_from(amount).unwrap_or(i64::MAX);
                        let slices = vec![(slice, moved), (counted, -moved)];
                        self.gives.push(Add { digest: Arc::clone(&count.digest), window: count.window, slices });
                    }
                    count.own.add(slice, amount);
                    count.own.forget(counted);
                    count.taken = count.taken.saturating_add(amount);
                    taken.took.push(Took { key: key.clone(), slice, amount, by: By::Store });
                }
                if let Some(leased) = u64::try_from(leased).ok().filter(|leased| *leased > 0) {
                    let [.., length, number, _] = asked.numbers;
                    let deadline = question.sent + length / 4 * 3;
                    match &mut count.lease {
                        Some(lease) if lease.number == number => {
                            lease.left = lease.left.saturating_add(leased);
                            lease.max = lease.max.max(take.max.millionths());
                            lease.deadline = lease.deadline.max(deadline);
                        }
                        Some(_) => {}
                        lease @ None => {
                            *lease = Some(Lease { number, left: leased, max: take.max.millionths(), deadline });
                            self.begun = true;
                        }
                    }
                }
                match wait {
                    0 => {}
                    1.. => {
                        let wait = u64::try_from(wait).unwrap_or(0);
                        count.full_for = amount;
                        count.full_max = take.max.millionths();
                        count.full_until = question.sent + wait.min(count.window / 128).min(FULL);
                        count.full_end = later(engine, wait);
                        full.push((index, Full::Until(count.full_end)));
                    }
                    _ => full.push((index, Full::Never)),
                }
            }
            for (index, _) in places.iter().enumerate() {
                if numbers.next().ok_or(Unreadable)? == 0 {
                    busy.get_or_insert(index);
                }
            }
            if status == 1 {
                taken.places = group.holds.iter().map(|hold| hold.hold.identity.as_str().into()).collect();
            } else {
                self.let_go(group);
            }
            all.push(match (status, busy) {
                (1, _) => Said::Taken(taken),
                (2, _) => Said::NotAsked,
                (_, _) if !full.is_empty() => Said::Refused(Refusal::Full(full)),
                (_, Some(index)) => Said::Refused(Refusal::Busy(index)),
                _ => return Err(Unreadable),
            });
        }
        Ok(all)
    }

    /// A question was not answered, and may be carried out all the same, now or later. The places that it asked for are not held;
    /// a lease of which it told is given up, so that nothing of it is returned twice: the store counts all of it as used.
    pub fn unanswered(&mut self, wanted: &[Wanted], question: &Question) {
        for (group, AskedGroup { counts, .. }) in wanted.iter().zip(&question.groups) {
            for (SharedTake { take, .. }, asked) in group.takes.iter().zip(counts) {
                let Some(count) = self.counts.get_mut(&key_of(take)) else { continue };
                count.is_answered(asked);
                if asked.tells() {
                    count.lease = None;
                    count.untold = Slices::default();
                }
            }
            self.let_go(group);
        }
    }

    /// A question was not sent. What it would have told is told another time.
    pub fn unasked(&mut self, wanted: &[Wanted], question: &Question) {
        for (group, AskedGroup { counts, .. }) in wanted.iter().zip(&question.groups) {
            for (SharedTake { take, .. }, asked) in group.takes.iter().zip(counts) {
                let [.., number, _] = asked.numbers;
                let Some(count) = self.counts.get_mut(&key_of(take)) else { continue };
                count.is_answered(asked);
                // Of one that is over, or was given up meanwhile, all counts as used.
                if count.lease.is_some_and(|lease| lease.number == number) {
                    for (slice, amount) in &asked.uses {
                        count.untold.add(*slice, *amount);
                    }
                }
            }
            self.let_go(group);
        }
    }

    fn let_go(&mut self, group: &Wanted) {
        for hold in &group.holds {
            self.release(hold.hold.identity.as_str());
        }
    }

    /// A place comes free.
    pub fn release(&mut self, text: &str) {
        if let Some(held) = self.places.get_mut(text) {
            held.count = held.count.saturating_sub(1);
            held.changed = true;
        }
    }

    /// What is done with a call that the store cannot be asked about: as its policies say, the strictest first.
    /// `asked`: a question of it is still under way, and holds its places.
    pub fn without_store(&mut self, wanted: &[Wanted], now: u64, engine: Timestamp, asked: bool) -> AllSaid {
        let mut all = AllSaid::new();
        if self.know(wanted, now).is_err() {
            all.extend(wanted.iter().map(|_| Said::Unavailable));
            return all;
        }
        for group in wanted {
            let said = match all.first() {
                Some(Said::RefusedAlone(_) | Said::Unavailable) => Said::NotAsked,
                _ => self.alone(group, now, engine, asked),
            };
            all.push(said);
        }
        all
    }

    /// This pod's part of a maximum; nothing where it is not known how many share it.
    fn part(&self, whose: &str, max: u64) -> Option<u64> {
        let pods = self.pods.get(whose).copied().filter(|pods| *pods > 0)?;
        Some((max / pods).max(1))
    }

    fn alone(&mut self, group: &Wanted, now: u64, engine: Timestamp, asked: bool) -> Said {
        if group.is_empty() {
            return Said::Taken(Taken::default());
        }
        let (early, late) = (Clock::at(self.clock.least, now), Clock::at(self.clock.most, now));
        let mut full = SmallVec::new();
        for (index, SharedTake { take, whose, failure }) in group.takes.iter().enumerate() {
            match failure {
                OnStoreFailure::Deny => return Said::Unavailable,
                OnStoreFailure::Allow => {}
                OnStoreFailure::PerPod => {
                    let whole = take.max.millionths() / Amount::ONE.millionths();
                    let Some(part) = self.part(whose, whole) else { return Said::Unavailable };
                    let part = Amount::whole(part).millionths();
                    let amount = take.amount.millionths();
                    let Some(count) = self.counts.get_mut(&key_of(take)) else { return Said::Unavailable };
                    count.own.forget(slice_of(early, count.window));
                    if amount > part {
                        full.push((index, Full::Never));
                    } else if count.own.total().saturating_add(amount) > part {
                        let end = count.own.fits_after(amount, part).map_or(0, |slice| end_of(slice, count.window));
                        full.push((index, Full::Until(later(engine, end.saturating_sub(early).max(1)))));
                    }
                }
            }
        }
        if !full.is_empty() {
            return Said::RefusedAlone(Refusal::Full(full));
        }
        for (index, hold) in group.holds.iter().enumerate() {
            let part = match hold.failure {
                OnStoreFailure::Deny => None,
                OnStoreFailure::Allow => Some(u64::MAX),
                OnStoreFailure::PerPod => self.part(&hold.whose, hold.hold.max),
            };
            let Some(part) = part else { return Said::Unavailable };
            let held = self.held(hold.hold.identity.as_str()).count;
            if held.saturating_sub(u64::from(asked)) >= part {
                return Said::RefusedAlone(Refusal::Busy(index));
            }
        }
        let failures = group.takes.iter().map(|take| take.failure).chain(group.holds.iter().map(|hold| hold.failure));
        let strict = failures.min_by_key(|failure| matches!(failure, OnStoreFailure::Allow));
        let mut taken = Taken { without_store: strict, ..Taken::default() };
        for SharedTake { take, .. } in &group.takes {
            let amount = take.amount.millionths();
            let Some((key, count)) = self.counts.get_key_value_mut(&key_of(take)) else { continue };
            let slice = slice_of(late, count.window);
            count.own.add(slice, amount);
            // What is beyond all bounds is not counted, and so not given back.
            let amount = count.alone.add(slice, amount);
            count.alone.forget(slice);
            taken.took.push(Took { key: key.clone(), slice, amount, by: By::Alone });
        }
        for hold in &group.holds {
            let held = self.held(hold.hold.identity.as_str());
            held.count += 1;
            held.changed = true;
            taken.places.push(hold.hold.identity.as_str().into());
        }
        Said::Taken(taken)
    }

    /// Gives amounts back. True when the store has to be told.
    pub fn give_back(&mut self, took: &[Took], now: u64) -> bool {
        let before = self.gives.len();
        for Took { key, slice, amount, by } in took {
            let Some(count) = self.counts.get_mut(key) else { continue };
            count.own.remove(*slice, *amount);
            count.full_until = 0;
            let here = match by {
                By::Lease(_) => count.untold.remove(*slice, *amount),
                By::Alone => count.alone.remove(*slice, *amount),
                By::Store => 0,
            };
            if let (By::Lease(number), Some(lease)) = (by, &mut count.lease)
                && lease.number == *number
                && now < lease.deadline
            {
                // What the store does not know as used is leased still.
                lease.left += here;
            }
            let rest = i64::try_from(amount - here).unwrap_or(0);
            if rest > 0 {
                self.gives.push(Add { digest: Arc::clone(&count.digest), window: count.window, slices: vec![(*slice, -rest)] });
            }
        }
        self.gives.len() > before
    }

    /// What is to be given back to the store, or to be moved there.
    pub fn gives(&mut self) -> Vec<Add> {
        std::mem::take(&mut self.gives)
    }

    /// Whether the store is to be told of something.
    pub fn has_gives(&self) -> bool {
        !self.gives.is_empty()
    }

    /// These may not have been told. What was moved is moved once more: that frees nothing. What was given back stays counted, since it
    /// must not be given back twice.
    pub fn gives_untold(&mut self, adds: Vec<Add>) {
        self.gives.extend(adds.into_iter().filter(|add| add.slices.iter().map(|(_, amount)| amount).sum::<i64>() >= 0));
    }

    /// When the next lease is over, if there is one.
    pub fn next_deadline(&self) -> Option<u64> {
        let leased = self.counts.values().filter(|count| count.under_way == 0);
        leased.filter_map(|count| count.lease.map(|lease| lease.deadline)).min()
    }

    /// The leases that are over, for closing them: what was used of them is told, the rest is returned.
    pub fn closing(&mut self, now: u64) -> Vec<AskedCount> {
        let mut closing = Vec::new();
        for count in self.counts.values_mut() {
            let Some(lease) = count.lease.filter(|lease| now >= lease.deadline && count.under_way == 0) else { continue };
            count.lease = None;
            let numbers = [count.window, 0, 0, 0, count.lease_length(), lease.number, 1];
            closing.push(AskedCount { digest: Arc::clone(&count.digest), numbers, uses: count.untold.drain() });
        }
        closing
    }

    /// The store is in another epoch and has lost what it knew since a moment of its clock: what is to be brought there. Leases are
    /// over. What it gives second is told with it, as [`Local::taken_alone`] gives it.
    pub fn everything(&mut self, since: u64, now: u64) -> (Vec<Add>, Vec<Add>) {
        self.gives.clear();
        let store = Clock::at(self.clock.least, now);
        let mut adds = Vec::new();
        for count in self.counts.values_mut() {
            count.lease = None;
            count.untold = Slices::default();
            count.own.forget(slice_of(store, count.window));
            let first = slice_of(since, count.window);
            adds.extend(add(count, count.own.iter().filter(|(slice, _)| *slice >= first)));
            // Of these the store never knew.
            adds.extend(add(count, count.alone.iter().filter(|(slice, _)| *slice < first)));
        }
        for held in self.places.values_mut() {
            held.changed = true;
        }
        (adds, self.taken_alone())
    }

    /// What this pod took without the store and the store does not know yet, for bringing it there.
    pub fn taken_alone(&self) -> Vec<Add> {
        self.counts.values().filter_map(|count| add(count, count.alone.iter())).collect()
    }

    /// The store knows this of what was taken alone.
    pub fn alone_told(&mut self, adds: &[Add]) {
        if adds.is_empty() {
            return;
        }
        let told: HashMap<&str, &Add> = adds.iter().map(|add| (&*add.digest, add)).collect();
        for count in self.counts.values_mut() {
            for (slice, amount) in told.get(&*count.digest).into_iter().flat_map(|add| &add.slices) {
                count.alone.remove(*slice, u64::try_from(*amount).unwrap_or(0));
            }
        }
    }

    /// The places for a sign of life: key, number, held.
    pub fn all_places(&mut self) -> Vec<(Arc<str>, u64, u64)> {
        let number = self.number();
        let mut all = Vec::new();
        for held in self.places.values_mut().filter(|held| held.count > 0 || held.changed) {
            held.changed = false;
            all.push((Arc::clone(&held.digest), number, held.count));
        }
        all
    }

    /// Whether some place came free of which the store may not know.
    pub fn places_changed(&self) -> bool {
        self.places.values().any(|held| held.changed)
    }

    /// The places were not told.
    pub fn places_untold(&mut self) {
        for held in self.places.values_mut() {
            held.changed = true;
        }
    }

    /// So many pods are in a group.
    pub fn set_pods(&mut self, whose: &Arc<str>, pods: u64) {
        self.pods.insert(Arc::clone(whose), pods);
    }

    /// How many pods were last known of each group.
    pub fn pods(&self) -> &BTreeMap<Arc<str>, u64> {
        &self.pods
    }

    /// The key of a count, and its window.
    pub fn asked(take: &Take) -> (Arc<str>, u64) {
        (digest(take.identity.as_str(), &take.instance), (take.span.nanos() / 1000).max(1))
    }

    /// The key of places.
    pub fn asked_places(text: &str) -> Arc<str> {
        digest(text, b"places")
    }

    /// What counted in all pods when the store last said so, or more if this pod alone took more: of the fullest count of each limit,
    /// by its identity.
    pub fn used(&mut self, now: u64) -> std::collections::HashMap<Arc<str>, Amount> {
        let store = Clock::at(self.clock.least, now);
        let mut all = std::collections::HashMap::new();
        for (key, count) in &mut self.counts {
            count.own.forget(slice_of(store, count.window));
            let told = if now.saturating_sub(count.told_at) < count.window { count.told } else { 0 };
            let used = Amount::of_millionths(told.max(count.own.total()));
            let most = all.entry(Arc::clone(&key.text)).or_insert(used);
            *most = (*most).max(used);
        }
        all
    }

    /// Whether a take needs no question, since this pod has leased so much.
    pub fn is_leased(&self, take: &Take, now: u64) -> bool {
        self.leases && self.counts.get(&key_of(take)).is_some_and(|count| count.usable(take, now))
    }

    /// Whether a lease was begun since this was asked last.
    pub fn has_begun_lease(&mut self) -> bool {
        std::mem::take(&mut self.begun)
    }

    /// All leases are over now, and no other begins; gives what [`Local::closing`] does.
    pub fn end_leases(&mut self) -> Vec<AskedCount> {
        self.leases = false;
        self.closing(u64::MAX)
    }
}

fn add(count: &Count, slices: impl Iterator<Item = (u64, u64)>) -> Option<Add> {
    let slices: Vec<(u64, i64)> = slices.map(|(slice, amount)| (slice, i64::try_from(amount).unwrap_or(i64::MAX))).collect();
    (!slices.is_empty()).then(|| Add { digest: Arc::clone(&count.digest), window: count.window, slices })
}

fn later(engine: Timestamp, wait: u64) -> Timestamp {
    engine.after(std::time::Duration::from_micros(wait))
}
