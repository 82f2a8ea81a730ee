//! A semaphore that evicts. Where no units are free, the oldest holder that can be evicted has to give its units back. So a
//! client that is slow on purpose cannot keep others out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};

/// Tells a holder that it is evicted: it turns true. Clones share one value.
pub type EvictionSignal = watch::Sender<bool>;

/// Returns a signal that has not been given.
pub fn eviction_signal() -> EvictionSignal {
    watch::Sender::new(false)
}

/// Waits until a signal is given.
pub async fn evicted(signal: &EvictionSignal) {
    let mut hears = signal.subscribe();
    // The sender is borrowed, so it is not gone.
    let _ = hears.wait_for(|evicted| *evicted).await;
}

/// No units are free and too many callers wait already, or a job did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCapacity;

/// A semaphore over units of any kind, such as requests or bytes. A clone is another handle on the same units.
#[derive(Clone, Debug)]
pub struct EvictingSemaphore(Arc<SemaphoreState>);

#[derive(Debug)]
struct SemaphoreState {
    units: Arc<Semaphore>,
    /// One caller at a time looks for units, in the order in which they came.
    turn: Semaphore,
    waiting: Arc<Semaphore>,
    grace: Duration,
    held: Mutex<Holders>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    /// Units of evicted holders that are not given back yet.
    evicted_units: usize,
    /// Holders that can be evicted, the oldest first.
    evictable: BTreeMap<u64, EvictableHolder>,
}

#[derive(Debug)]
struct EvictableHolder {
    since: Instant,
    units: usize,
    signal: EvictionSignal,
}

impl SemaphoreState {
    fn held(&self) -> MutexGuard<'_, Holders> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts as many holders as it takes to free `units`. Returns when to try again where a holder is within its grace period.
    fn evict(&self, units: usize) -> Option<Instant> {
        let now = Instant::now();
        let mut held = self.held();
        let mut free = self.units.available_permits() + held.evicted_units;
        while free < units {
            let oldest = held.evictable.first_entry()?;
            let until = oldest.get().since + self.grace;
            if until > now {
                return Some(until);
            }
            let oldest = oldest.remove();
            oldest.signal.send_replace(true);
            held.evicted_units += oldest.units;
            free += oldest.units;
        }
        None
    }
}

/// Units that are taken. Dropping the permit gives them back.
#[derive(Debug)]
pub struct EvictablePermit {
    semaphore: Arc<SemaphoreState>,
    permit: OwnedSemaphorePermit,
    number: u64,
    /// True if it was protected, and so not evicted, when it left [`Holders::evictable`].
    protected: bool,
}

impl EvictingSemaphore {
    /// Creates a semaphore with this many units, for which at most `waiting` callers wait. No holder is evicted before `grace`
    /// has passed.
    pub fn new(units: usize, waiting: usize, grace: Duration) -> Self {
        Self(Arc::new(SemaphoreState {
            units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            turn: Semaphore::new(1),
            waiting: Arc::new(Semaphore::new(waiting)),
            grace,
            held: Mutex::default(),
        }))
    }

    /// Takes units, and waits for them. The permit can be evicted: `signal` is given when its units must be given back.
    ///
    /// # Errors
    /// Too many callers wait already.
    pub async fn take(&self, units: usize, signal: &EvictionSignal) -> Result<EvictablePermit, NoCapacity> {
        let semaphore = &self.0;
        let count = u32::try_from(units).map_err(|_| NoCapacity)?;
        let _waiting = Arc::clone(&semaphore.waiting).try_acquire_owned().map_err(|_| NoCapacity)?;
        let _turn = semaphore.turn.acquire().await.map_err(|_| NoCapacity)?;
        let permit = loop {
            let units_free = Arc::clone(&semaphore.units);
            if let Ok(permit) = Arc::clone(&semaphore.units).try_acquire_many_owned(count) {
                break permit;
            }
            let again = semaphore.evict(units).unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
            tokio::select! {
                permit = units_free.acquire_many_owned(count) => break permit.map_err(|_| NoCapacity)?,
                () = sleep_until(again) => {}
            }
        };
        let mut held = semaphore.held();
        let number = held.next;
        held.next += 1;
        held.evictable.insert(number, EvictableHolder { since: Instant::now(), units, signal: signal.clone() });
        drop(held);
        Ok(EvictablePermit { semaphore: Arc::clone(semaphore), permit, number, protected: false })
    }

    /// Returns how many units are free.
    pub fn free(&self) -> usize {
        self.0.units.available_permits()
    }
}

impl EvictablePermit {
    /// Protects the permit from eviction. Returns false where it was evicted already.
    #[must_use]
    pub fn protect(&mut self) -> bool {
        let there = self.semaphore.held().evictable.remove(&self.number).is_some();
        self.protected |= there;
        self.protected
    }

    /// Makes the permit evictable again, with another signal, and keeps at most `units` of its units.
    pub fn make_evictable(&mut self, units: usize, signal: &EvictionSignal) {
        if !self.protect() {
            return;
        }
        let surplus = self.permit.num_permits().saturating_sub(units);
        drop(self.permit.split(surplus));
        let mut held = self.semaphore.held();
        self.number = held.next;
        held.next += 1;
        let holder = EvictableHolder { since: Instant::now(), units: self.permit.num_permits(), signal: signal.clone() };
        held.evictable.insert(self.number, holder);
        self.protected = false;
    }
}

impl Drop for EvictablePermit {
    fn drop(&mut self) {
        let mut held = self.semaphore.held();
        if held.evictable.remove(&self.number).is_none() && !self.protected {
            held.evicted_units = held.evicted_units.saturating_sub(self.permit.num_permits());
        }
        // The permit goes after the lock: a caller that looks meanwhile sees fewer units than there are, and looks again.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_the_oldest_that_is_not_whole_is_evict_and_not_before_its_time() {
        let semaphore = EvictingSemaphore::new(10, 4, GRACE);
        let (first, second, third) = (eviction_signal(), eviction_signal(), eviction_signal());
        let mut whole = semaphore.take(4, &first).await.unwrap();
        assert!(whole.protect());
        let slow = semaphore.take(6, &second).await.unwrap();
        let began = Instant::now();
        let next = tokio::spawn({
            let (semaphore, third) = (semaphore.clone(), third.clone());
            async move { semaphore.take(5, &third).await.unwrap() }
        });
        evicted(&second).await;
        assert_eq!(began.elapsed(), GRACE);
        assert!(!*first.borrow());
        drop(slow);
        let next = next.await.unwrap();
        assert_eq!(semaphore.free(), 1);
        drop((whole, next));
        assert_eq!((semaphore.free(), semaphore.0.held().evicted_units), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_evict_is_counted_once_for_all_who_wait() {
        let semaphore = EvictingSemaphore::new(2, 8, GRACE);
        let bells: Vec<EvictionSignal> = (0..2).map(|_| eviction_signal()).collect();
        let held = [semaphore.take(1, &bells[0]).await.unwrap(), semaphore.take(1, &bells[1]).await.unwrap()];
        let waits = tokio::spawn({
            let semaphore = semaphore.clone();
            async move { semaphore.take(1, &eviction_signal()).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((*bells[0].borrow(), *bells[1].borrow()), (true, false));
        drop(held);
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let semaphore = EvictingSemaphore::new(1, 2, GRACE);
        let mut held = semaphore.take(1, &eviction_signal()).await.unwrap();
        assert!(held.protect());
        let wait = || {
            let semaphore = semaphore.clone();
            tokio::spawn(async move { semaphore.take(1, &eviction_signal()).await.map(drop) })
        };
        let waiting = [wait(), wait()];
        tokio::task::yield_now().await;
        assert_eq!(semaphore.take(1, &eviction_signal()).await.err(), Some(NoCapacity));
        drop(held);
        for waits in waiting {
            assert_eq!(waits.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_answered_may_be_evict_again_and_takes_what_the_answer_takes() {
        let semaphore = EvictingSemaphore::new(10, 4, GRACE);
        let (sending, connection) = (eviction_signal(), eviction_signal());
        let mut ticket = semaphore.take(10, &sending).await.unwrap();
        assert!(ticket.protect());
        ticket.make_evictable(2, &connection);
        assert_eq!(semaphore.free(), 8);
        let next = tokio::spawn({
            let semaphore = semaphore.clone();
            async move { semaphore.take(10, &eviction_signal()).await.unwrap() }
        });
        evicted(&connection).await;
        assert!(!*sending.borrow());
        drop(ticket);
        drop(next.await.unwrap());
        assert_eq!(semaphore.free(), 10);
    }
}
