//! The open connections of clients and the requests under way on them, within bounds.
//!
//! A connection has room for one piece of its own, whatever others hold, and shares the rest: no client waits for another that
//! does not read. One that takes nothing for long is cut off, sooner where others are turned away.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The most pieces that wait for one connection, beside its own.
const PIECES: usize = 16;
/// The interval at which connections are checked.
const CHECK: Duration = Duration::from_secs(1);
/// Checks after which a client that takes nothing is cut off.
const PATIENCE: u32 = 30;
/// The same while others are turned away or wait for room.
const SHORT: u32 = 2;

/// The requests of one connection that find a place where three quarters of all places are taken.
const FEW: usize = 4;
/// The time that the only request of a connection waits for a place: longer than it takes to cut off who does not read.
const TURN: Duration = Duration::from_secs(4);

/// A connection of a client.
#[derive(Debug)]
pub struct ClientConnection {
    /// Room for one piece that no other connection can take.
    pub own: Arc<Semaphore>,
    /// Places for pieces in the room that all connections share.
    pub shared: Arc<Semaphore>,
    /// The pieces that wait.
    pub waiting: AtomicUsize,
    /// Its requests under way.
    requests: AtomicUsize,
    /// Counts what the client takes.
    moves: AtomicU64,
    cut: Notify,
}

impl ClientConnection {
    fn new() -> Self {
        Self {
            own: Arc::new(Semaphore::new(1)),
            shared: Arc::new(Semaphore::new(PIECES)),
            waiting: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            cut: Notify::new(),
        }
    }

    /// Waits until the client is to be cut off.
    pub async fn cut(&self) {
        self.cut.notified().await;
    }

    /// Notes that the client has taken something.
    pub fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// A wait for a place among the requests under way.
struct Turn<'a>(&'a Clients);

impl<'a> Turn<'a> {
    fn begin(clients: &'a Clients) -> Self {
        clients.turns.fetch_add(1, Ordering::AcqRel);
        Self(clients)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The open connections of clients, and the requests under way on them.
#[derive(Debug)]
pub struct Clients {
    open: Mutex<(u64, HashMap<u64, Watched>)>,
    requests: AtomicUsize,
    most: usize,
    /// Places for connections over HTTP/2.
    http2: Arc<Semaphore>,
    /// The requests that wait for a place, and who tells them of one.
    turns: AtomicUsize,
    free: Notify,
    /// The answers that wait for room.
    pub waiting: AtomicUsize,
    /// The checks for which it matters that somebody was turned away.
    pressed: AtomicU32,
}

#[derive(Debug)]
struct Watched {
    connection: Arc<ClientConnection>,
    moves: u64,
    /// The checks in a row that found nothing taken though something waits.
    still: u32,
}

/// An open connection; dropped, it is forgotten.
#[derive(Debug)]
pub struct ClientConnectionGuard {
    /// The connection.
    pub connection: Arc<ClientConnection>,
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for ClientConnectionGuard {
    fn drop(&mut self) {
        self.clients.lock().1.remove(&self.number);
    }
}

/// A request under way, until its answer has ended.
#[derive(Debug)]
pub struct RequestSlot {
    clients: Arc<Clients>,
    connection: Arc<ClientConnection>,
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.connection.requests.fetch_sub(1, Ordering::AcqRel);
        self.clients.requests.fetch_sub(1, Ordering::AcqRel);
        if self.clients.turns.load(Ordering::Acquire) > 0 {
            self.clients.free.notify_one();
        }
    }
}

impl Clients {
    /// Clients that may have this many requests under way, and of this many connections one in 32 over HTTP/2: such a
    /// connection holds as much as many others, and one serves a client for all of its requests.
    pub fn new(most: usize, connections: usize) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            requests: AtomicUsize::new(0),
            most,
            http2: Arc::new(Semaphore::new((connections / 32).max(1))),
            turns: AtomicUsize::new(0),
            free: Notify::new(),
            waiting: AtomicUsize::new(0),
            pressed: AtomicU32::new(0),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, HashMap<u64, Watched>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that a client has opened.
    pub fn open(self: &Arc<Self>) -> ClientConnectionGuard {
        let connection = Arc::new(ClientConnection::new());
        let mut open = self.lock();
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, Watched { connection: Arc::clone(&connection), moves: 0, still: 0 });
        ClientConnectionGuard { connection, clients: Arc::clone(self), number }
    }

    /// A place for a connection over HTTP/2; nothing where there are as many as may be.
    pub fn http2_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.http2).try_acquire_owned().ok()
    }

    /// A place for a request; nothing where as many are under way as may be. The last quarter is for connections that have
    /// few, and the only request of a connection waits a while.
    pub async fn begin_request(self: &Arc<Self>, connection: &Arc<ClientConnection>) -> Option<RequestSlot> {
        if let Some(place) = self.try_begin(connection) {
            return Some(place);
        }
        self.turned_away();
        if connection.requests.load(Ordering::Acquire) > 0 {
            return None;
        }
        let _turn = Turn::begin(self);
        let free = async {
            loop {
                let free = self.free.notified();
                if let Some(place) = self.try_begin(connection) {
                    return place;
                }
                self.turned_away();
                free.await;
            }
        };
        timeout(TURN, free).await.ok()
    }

    fn try_begin(self: &Arc<Self>, connection: &Arc<ClientConnection>) -> Option<RequestSlot> {
        let theirs = connection.requests.fetch_add(1, Ordering::AcqRel);
        let all = self.requests.fetch_add(1, Ordering::AcqRel);
        if all < self.most / 4 * 3 || (theirs < FEW && all < self.most) {
            return Some(RequestSlot { clients: Arc::clone(self), connection: Arc::clone(connection) });
        }
        self.requests.fetch_sub(1, Ordering::AcqRel);
        connection.requests.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// A place for what is left of a request that has one, which it keeps when its answer has ended.
    pub fn keep_request(self: &Arc<Self>, connection: &Arc<ClientConnection>) -> RequestSlot {
        connection.requests.fetch_add(1, Ordering::AcqRel);
        self.requests.fetch_add(1, Ordering::AcqRel);
        RequestSlot { clients: Arc::clone(self), connection: Arc::clone(connection) }
    }

    /// Somebody was turned away: who does not read is cut off sooner.
    pub fn turned_away(&self) {
        self.pressed.store(SHORT + 1, Ordering::Relaxed);
    }

    /// Cuts off clients that take nothing of what waits for them, for ever. `cut` is told how many.
    pub async fn watch(&self, cut: impl Fn(usize)) {
        let mut ticks = tokio::time::interval(CHECK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let gone = self.check();
            if gone > 0 {
                cut(gone);
            }
        }
    }

    /// Checks every connection once, and returns how many were cut off.
    fn check(&self) -> usize {
        let turned_away = self.pressed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |looks| looks.checked_sub(1)).is_ok();
        let patience = if turned_away || self.waiting.load(Ordering::Relaxed) > 0 { SHORT } else { PATIENCE };
        let mut gone = 0;
        for watched in self.lock().1.values_mut() {
            let moves = watched.connection.moves.load(Ordering::Relaxed);
            let waits = watched.connection.waiting.load(Ordering::Relaxed) > 0;
            watched.still = if waits && moves == watched.moves { watched.still + 1 } else { 0 };
            watched.moves = moves;
            if watched.still >= patience {
                watched.still = 0;
                watched.connection.cut.notify_one();
                gone += 1;
            }
        }
        gone
    }
}
