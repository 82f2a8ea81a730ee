//! The connections of a port. Anybody may connect, so the connections that wait for something (a handshake, a head, a body, the
//! next request) are bounded: where there are too many, the one that has waited longest is closed. A connection that is held is
//! not counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::evicting_semaphore::{EvictionSignal, evicted, eviction_signal};

/// The connections of a port.
#[derive(Debug)]
pub struct Seats {
    most: usize,
    grace: Duration,
    waiting: Mutex<Waiting>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// The connections that wait, the one that has waited longest first.
    seats: BTreeMap<u64, (Instant, EvictionSignal)>,
}

impl Seats {
    /// Lets at most `most` connections wait. None is closed for another before `grace` has passed.
    pub fn new(most: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Self { most, grace, waiting: Mutex::default(), left: Notify::new() })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many connections wait.
    pub fn waits(&self) -> usize {
        self.waiting().seats.len()
    }

    /// Waits for a seat for a new connection.
    pub async fn seat(self: &Arc<Self>) -> Arc<Seat> {
        loop {
            let left = self.left.notified();
            let Some(until) = self.make_room() else { break };
            tokio::select! {
                () = left => {}
                () = sleep_until(until) => {}
            }
        }
        let seat = Seat { seats: Arc::clone(self), eviction: eviction_signal(), changed: Notify::new(), state: Mutex::default() };
        seat.wait(&mut seat.state());
        Arc::new(seat)
    }

    /// Closes the connections that have waited longest, where there are too many. Returns when to try again where all are within
    /// their grace period.
    fn make_room(&self) -> Option<Instant> {
        let mut waiting = self.waiting();
        while waiting.seats.len() >= self.most {
            let longest = waiting.seats.first_entry()?;
            let until = longest.get().0 + self.grace;
            if until > Instant::now() {
                return Some(until);
            }
            longest.remove().1.send_replace(true);
        }
        None
    }
}

/// A connection.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    eviction: EvictionSignal,
    changed: Notify,
    state: Mutex<SeatState>,
}

#[derive(Debug, Default)]
struct SeatState {
    /// Its place among those that wait, and since when.
    waits: Option<(u64, Instant)>,
    /// The number of guards that hold it.
    holds: usize,
    /// Requests that are not answered.
    requests: usize,
    /// True once there was a request.
    asked: bool,
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits from now on, behind all others.
    fn wait(&self, state: &mut SeatState) {
        let now = Instant::now();
        let mut waiting = self.seats.waiting();
        if let Some((before, _)) = state.waits {
            // One that was put out does not come back.
            if waiting.seats.remove(&before).is_none() {
                return;
            }
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.seats.insert(number, (now, self.eviction.clone()));
        state.waits = Some((number, now));
    }

    /// Returns the signal that is given when the connection is to be closed.
    pub fn eviction(&self) -> &EvictionSignal {
        &self.eviction
    }

    /// Waits until the connection is to be closed.
    pub async fn put_out(&self) {
        evicted(&self.eviction).await;
    }

    /// Counts a request. It is under way until the returned guard is dropped.
    pub fn request(self: &Arc<Self>) -> SeatRequest {
        let mut state = self.state();
        state.requests += 1;
        state.asked = true;
        SeatRequest(Arc::clone(self))
    }

    /// Holds the connection: it does not count among those that wait, and is not closed, until the returned guard is dropped.
    pub fn hold(self: &Arc<Self>) -> SeatHold {
        let mut state = self.state();
        state.holds += 1;
        if let Some((number, _)) = state.waits
            && self.seats.waiting().seats.remove(&number).is_some()
        {
            state.waits = None;
            self.seats.left.notify_one();
        }
        SeatHold(Arc::clone(self))
    }

    /// Returns since when no request is under way, and whether there ever was one; none while one is.
    pub fn idle(&self) -> Option<(Instant, bool)> {
        let state = self.state();
        let (_, since) = state.waits.filter(|_| state.holds == 0 && state.requests == 0)?;
        Some((since, state.asked))
    }

    /// Waits until [`Seat::idle`] may say something else.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((number, _)) = self.state().waits {
            self.seats.waiting().seats.remove(&number);
        }
        self.seats.left.notify_one();
    }
}

/// A request that is under way, until this is dropped.
#[derive(Debug)]
pub struct SeatRequest(Arc<Seat>);

impl Drop for SeatRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests = state.requests.saturating_sub(1);
        if state.holds == 0 {
            self.0.wait(&mut state);
        }
        self.0.changed.notify_one();
    }
}

/// Keeps a connection from being closed, until it is dropped.
#[derive(Debug)]
pub struct SeatHold(Arc<Seat>);

impl Drop for SeatHold {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holds = state.holds.saturating_sub(1);
        if state.holds == 0 {
            self.0.wait(&mut state);
        }
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn where_too_many_wait_the_one_that_has_waited_longest_goes() {
        let seats = Seats::new(2, GRACE);
        let (first, second) = (seats.seat().await, seats.seat().await);
        // The first one asks something, and then has waited for less long than the other.
        drop(first.request());
        let began = Instant::now();
        let third = seats.seat().await;
        assert_eq!(began.elapsed(), GRACE, "nobody goes before the time");
        assert_eq!((*first.eviction().borrow(), *second.eviction().borrow(), *third.eviction().borrow()), (false, true, false));
        assert_eq!(seats.waits(), 2);
        drop((first, second, third));
        assert_eq!(seats.waits(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_a_seat_does_not_wait_and_does_not_go() {
        let seats = Seats::new(1, GRACE);
        let held = seats.seat().await;
        let holds = (held.hold(), held.hold());
        assert_eq!((seats.waits(), held.idle()), (0, None));
        let other = seats.seat().await;
        drop(holds);
        assert_eq!(held.idle(), Some((Instant::now(), false)));
        drop(held);
        drop(other);
        assert_eq!(seats.waits(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_put_out_does_not_come_back() {
        let seats = Seats::new(1, Duration::ZERO);
        let slow = seats.seat().await;
        let request = slow.request();
        let next = seats.seat().await;
        slow.put_out().await;
        drop(request);
        assert_eq!(seats.waits(), 1);
        drop(slow);
        assert_eq!(seats.waits(), 1);
        drop(next);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_comes_free_is_taken_at_once() {
        let seats = Seats::new(1, GRACE);
        let first = seats.seat().await;
        let began = Instant::now();
        let (second, ()) = tokio::join!(seats.seat(), async { drop(first) });
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(second);
    }
}
