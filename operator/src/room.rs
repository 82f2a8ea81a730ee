//! Room for what strangers send: so much and no more. Where there is none left, what is oldest and not whole yet is put out, so
//! that whoever is slow on purpose does not keep out whoever is not.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

/// Tells somebody that it is put out. A clone rings the same.
pub type Bell = watch::Sender<bool>;

/// A bell that has not rung.
pub fn bell() -> Bell {
    watch::Sender::new(false)
}

/// Waits until a bell rings.
pub async fn rung(bell: &Bell) {
    let mut hears = bell.subscribe();
    // The sender is borrowed, so it is not gone.
    let _ = hears.wait_for(|rung| *rung).await;
}

/// There is no room, and too many wait for it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Room for a number of units, whatever they are: requests, or bytes.
#[derive(Clone, Debug)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    units: Arc<Semaphore>,
    /// One looks for room at a time, in the order in which they came.
    turn: Semaphore,
    waiting: Arc<Semaphore>,
    grace: Duration,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// Units that are about to be given back.
    leaving: usize,
    /// What may be put out, the oldest first.
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    units: usize,
    bell: Bell,
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts out so many that there is room for `units`. Gives when to look again, where somebody has to stay a while longer.
    fn put_out(&self, units: usize) -> Option<Instant> {
        let now = Instant::now();
        let mut held = self.held();
        let mut free = self.units.available_permits() + held.leaving;
        while free < units {
            let oldest = held.open.first_entry()?;
            let until = oldest.get().since + self.grace;
            if until > now {
                return Some(until);
            }
            let oldest = oldest.remove();
            oldest.bell.send_replace(true);
            held.leaving += oldest.units;
            free += oldest.units;
        }
        None
    }
}

/// Units that are taken until this is dropped.
#[derive(Debug)]
pub struct Ticket {
    room: Arc<Inner>,
    permit: OwnedSemaphorePermit,
    number: u64,
    /// Whether it counts among those that leave once it is no longer among those that may be put out.
    settled: bool,
}

impl Room {
    /// Room for this many units, and for this many that wait. Nobody is put out before `grace` has passed.
    pub fn new(units: usize, waiting: usize, grace: Duration) -> Self {
        Self(Arc::new(Inner {
            units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            turn: Semaphore::new(1),
            waiting: Arc::new(Semaphore::new(waiting)),
            grace,
            held: Mutex::default(),
        }))
    }

    /// Takes units, and waits for them. `bell` rings when they must be given back.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn take(&self, units: usize, bell: &Bell) -> Result<Ticket, Full> {
        let room = &self.0;
        let count = u32::try_from(units).map_err(|_| Full)?;
        let _waiting = Arc::clone(&room.waiting).try_acquire_owned().map_err(|_| Full)?;
        let _turn = room.turn.acquire().await.map_err(|_| Full)?;
        let permit = loop {
            let units_free = Arc::clone(&room.units);
            if let Ok(permit) = Arc::clone(&room.units).try_acquire_many_owned(count) {
                break permit;
            }
            let again = room.put_out(units).unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
            tokio::select! {
                permit = units_free.acquire_many_owned(count) => break permit.map_err(|_| Full)?,
                () = sleep_until(again) => {}
            }
        };
        let mut held = room.held();
        let number = held.next;
        held.next += 1;
        held.open.insert(number, Open { since: Instant::now(), units, bell: bell.clone() });
        drop(held);
        Ok(Ticket { room: Arc::clone(room), permit, number, settled: false })
    }

    /// Units that nobody has.
    pub fn free(&self) -> usize {
        self.0.units.available_permits()
    }
}

impl Ticket {
    /// From now on it is not put out: it is about to be done with. False where it was put out already.
    #[must_use]
    pub fn settle(&mut self) -> bool {
        let there = self.room.held().open.remove(&self.number).is_some();
        self.settled |= there;
        self.settled
    }

    /// From now on it may be put out again, by another bell, and takes no more than `units` of what it had.
    pub fn reopen(&mut self, units: usize, bell: &Bell) {
        if !self.settle() {
            return;
        }
        let surplus = self.permit.num_permits().saturating_sub(units);
        drop(self.permit.split(surplus));
        let mut held = self.room.held();
        self.number = held.next;
        held.next += 1;
        let open = Open { since: Instant::now(), units: self.permit.num_permits(), bell: bell.clone() };
        held.open.insert(self.number, open);
        self.settled = false;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.room.held();
        if held.open.remove(&self.number).is_none() && !self.settled {
            held.leaving = held.leaving.saturating_sub(self.permit.num_permits());
        }
        // The permit goes after the lock: whoever looks meanwhile sees less room than there is, and looks again.
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after another, so that of what is large there is one at a time, and always in the same part of the
/// heap. It begins with the first thing to do.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    waiting: usize,
    jobs: OnceLock<mpsc::Sender<Job>>,
}

impl Worker {
    /// A worker for which at most this many wait.
    pub fn new(name: &'static str, waiting: usize) -> Self {
        Self { name, waiting, jobs: OnceLock::new() }
    }

    fn jobs(&self) -> &mpsc::Sender<Job> {
        self.jobs.get_or_init(|| {
            let (sender, mut jobs) = mpsc::channel::<Job>(self.waiting);
            let work = move || {
                while let Some(job) = jobs.blocking_recv() {
                    // Whoever asked sees that there is no answer.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a job panicked; that is a defect of the operator");
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name(self.name.to_owned()).spawn(work) {
                tracing::error!(%error, thread = self.name, "a thread cannot be started");
            }
            sender
        })
    }

    /// Does something there. Nobody who stopped waiting is worked for.
    ///
    /// # Errors
    /// Too many wait already, it did not begin within `patience`, or it panicked.
    pub async fn run<T: Send + 'static>(&self, patience: Duration, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Full> {
        let (began, begins) = oneshot::channel();
        let (done, mut answer) = oneshot::channel();
        let job = Box::new(move || {
            if began.send(()).is_ok() {
                let _ = done.send(job());
            }
        });
        self.jobs().try_send(job).map_err(|_| Full)?;
        tokio::time::timeout(patience, begins).await.map_err(|_| Full)?.map_err(|_| Full)?;
        (&mut answer).await.map_err(|_| Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_the_oldest_that_is_not_whole_is_put_out_and_not_before_its_time() {
        let room = Room::new(10, 4, GRACE);
        let (first, second, third) = (bell(), bell(), bell());
        let mut whole = room.take(4, &first).await.unwrap();
        assert!(whole.settle());
        let slow = room.take(6, &second).await.unwrap();
        let began = Instant::now();
        let next = tokio::spawn({
            let (room, third) = (room.clone(), third.clone());
            async move { room.take(5, &third).await.unwrap() }
        });
        rung(&second).await;
        assert_eq!(began.elapsed(), GRACE);
        assert!(!*first.borrow());
        drop(slow);
        let next = next.await.unwrap();
        assert_eq!(room.free(), 1);
        drop((whole, next));
        assert_eq!((room.free(), room.0.held().leaving), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_out_is_counted_once_for_all_who_wait() {
        let room = Room::new(2, 8, GRACE);
        let bells: Vec<Bell> = (0..2).map(|_| bell()).collect();
        let held = [room.take(1, &bells[0]).await.unwrap(), room.take(1, &bells[1]).await.unwrap()];
        let waits = tokio::spawn({
            let room = room.clone();
            async move { room.take(1, &bell()).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((*bells[0].borrow(), *bells[1].borrow()), (true, false));
        drop(held);
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let room = Room::new(1, 2, GRACE);
        let mut held = room.take(1, &bell()).await.unwrap();
        assert!(held.settle());
        let wait = || {
            let room = room.clone();
            tokio::spawn(async move { room.take(1, &bell()).await.map(drop) })
        };
        let waiting = [wait(), wait()];
        tokio::task::yield_now().await;
        assert_eq!(room.take(1, &bell()).await.err(), Some(Full));
        drop(held);
        for waits in waiting {
            assert_eq!(waits.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_answered_may_be_put_out_again_and_takes_what_the_answer_takes() {
        let room = Room::new(10, 4, GRACE);
        let (sending, connection) = (bell(), bell());
        let mut ticket = room.take(10, &sending).await.unwrap();
        assert!(ticket.settle());
        ticket.reopen(2, &connection);
        assert_eq!(room.free(), 8);
        let next = tokio::spawn({
            let room = room.clone();
            async move { room.take(10, &bell()).await.unwrap() }
        });
        rung(&connection).await;
        assert!(!*sending.borrow());
        drop(ticket);
        drop(next.await.unwrap());
        assert_eq!(room.free(), 10);
    }

    #[tokio::test]
    async fn a_worker_does_one_thing_at_a_time_and_outlives_a_panic() {
        let worker = Worker::new("test", 4);
        let long = Duration::from_secs(30);
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let slow = worker.run(long, move || gate.recv().is_ok());
        let behind = worker.run(Duration::from_millis(20), || ());
        let (slow, behind) = tokio::join!(slow, async {
            let behind = behind.await;
            go.send(()).unwrap();
            behind
        });
        assert_eq!((slow, behind), (Ok(true), Err(Full)), "what did not begin in time is given up");
        assert_eq!(worker.run(long, || { assert!(std::hint::black_box(false)) }).await, Err(Full));
        assert_eq!(worker.run(long, || 7).await, Ok(7));
    }
}
