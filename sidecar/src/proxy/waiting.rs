//! What waits for clients: pieces of answers that were read from a server and not yet taken by the client.
//!
//! A piece is asked for only where there is room for it, so a server is read no faster than its client reads. A connection
//! has room for one piece of its own, whatever others hold, and shares the rest: no client waits for another that does not
//! read. One that takes nothing for long is cut off, sooner where others are turned away.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    body::{Answer, BodyError},
    budget::{Budget, Held},
};

/// What a piece of an answer is counted as: as many bytes are read from a server at once, and a shorter piece keeps the
/// memory that it was read into.
pub const PIECE: usize = 16 * 1024;
/// How many pieces may wait for one connection, beside its own.
const PIECES: usize = 16;
/// How often connections are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which a client that takes nothing is cut off.
const PATIENCE: u32 = 30;
/// The same while others are turned away or wait for room.
const SHORT: u32 = 2;

/// How many requests of one connection find a place where three quarters of all places are taken.
const FEW: usize = 4;
/// How long the only request of a connection waits for a place: longer than it takes to cut off who does not read.
const TURN: Duration = Duration::from_secs(4);

/// One connection, as far as something waits for it.
#[derive(Debug)]
pub struct Connection {
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    /// Pieces that wait.
    waiting: AtomicUsize,
    /// Its requests under way.
    requests: AtomicUsize,
    /// Counts what the client takes.
    moves: AtomicU64,
    cut: Notify,
}

impl Connection {
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

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// Room for one piece.
#[derive(Debug)]
#[expect(dead_code, reason = "the permits are kept for their drop")]
enum Room {
    Own(OwnedSemaphorePermit),
    Shared(OwnedSemaphorePermit, Held),
}

/// Takes room at once, or not at all.
fn take(connection: &Connection, budget: &Budget) -> Option<Room> {
    if let Ok(own) = Arc::clone(&connection.own).try_acquire_owned() {
        return Some(Room::Own(own));
    }
    let place = Arc::clone(&connection.shared).try_acquire_owned().ok()?;
    budget.try_hold_for_client(PIECE).map(|held| Room::Shared(place, held))
}

/// Waits for room: that of the connection's own, or among what all share.
async fn wait(connection: Arc<Connection>, budget: Budget, clients: Arc<Clients>) -> Option<Room> {
    let shared = async {
        let place = Arc::clone(&connection.shared).acquire_owned().await.ok()?;
        if let Some(held) = budget.try_hold_for_client(PIECE) {
            return Some(Room::Shared(place, held));
        }
        let _waits = Waits::begin(&clients);
        let held = budget.hold_for_client(PIECE).await?;
        Some(Room::Shared(place, held))
    };
    tokio::select! {
        own = Arc::clone(&connection.own).acquire_owned() => own.ok().map(Room::Own),
        shared = shared => shared,
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

/// A wait for room among what all share.
struct Waits<'a>(&'a Clients);

impl<'a> Waits<'a> {
    fn begin(clients: &'a Clients) -> Self {
        clients.waiting.fetch_add(1, Ordering::Relaxed);
        Self(clients)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of an answer on its way to the client, with its room; both are gone once it is written.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    connection: Arc<Connection>,
    _room: Option<Room>,
    _held: Option<Held>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.connection.waiting.fetch_sub(1, Ordering::Relaxed);
        self.connection.moved();
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.connection.moved();
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
    /// Requests that wait for a place, and how they hear of one.
    turns: AtomicUsize,
    free: Notify,
    /// How many wait for room.
    waiting: AtomicUsize,
    /// For how many looks it matters that somebody was turned away.
    pressed: AtomicU32,
}

#[derive(Debug)]
struct Watched {
    connection: Arc<Connection>,
    moves: u64,
    /// For how many looks nothing was taken though something waits.
    still: u32,
}

/// An open connection; dropped, it is forgotten.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub connection: Arc<Connection>,
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.clients.lock().1.remove(&self.number);
    }
}

/// A request under way, until its answer has ended.
#[derive(Debug)]
pub struct UnderWay {
    clients: Arc<Clients>,
    connection: Arc<Connection>,
}

impl Drop for UnderWay {
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
    pub fn open(self: &Arc<Self>) -> Opened {
        let connection = Arc::new(Connection::new());
        let mut open = self.lock();
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, Watched { connection: Arc::clone(&connection), moves: 0, still: 0 });
        Opened { connection, clients: Arc::clone(self), number }
    }

    /// A place for a connection over HTTP/2; nothing where there are as many as may be.
    pub fn http2(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.http2).try_acquire_owned().ok()
    }

    /// A place for a request; nothing where as many are under way as may be. The last quarter is for connections that have
    /// few, and the only request of a connection waits a while.
    pub async fn begin(self: &Arc<Self>, connection: &Arc<Connection>) -> Option<UnderWay> {
        if let Some(place) = self.try_begin(connection) {
            return Some(place);
        }
        self.press();
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
                self.press();
                free.await;
            }
        };
        timeout(TURN, free).await.ok()
    }

    fn try_begin(self: &Arc<Self>, connection: &Arc<Connection>) -> Option<UnderWay> {
        let theirs = connection.requests.fetch_add(1, Ordering::AcqRel);
        let all = self.requests.fetch_add(1, Ordering::AcqRel);
        if all < self.most / 4 * 3 || (theirs < FEW && all < self.most) {
            return Some(UnderWay { clients: Arc::clone(self), connection: Arc::clone(connection) });
        }
        self.requests.fetch_sub(1, Ordering::AcqRel);
        connection.requests.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// A place for what is left of a request that has one, which it keeps when its answer has ended.
    pub fn stay(self: &Arc<Self>, connection: &Arc<Connection>) -> UnderWay {
        connection.requests.fetch_add(1, Ordering::AcqRel);
        self.requests.fetch_add(1, Ordering::AcqRel);
        UnderWay { clients: Arc::clone(self), connection: Arc::clone(connection) }
    }

    /// Somebody was turned away: who does not read is cut off sooner.
    pub fn press(&self) {
        self.pressed.store(SHORT + 1, Ordering::Relaxed);
    }

    /// Cuts off clients that take nothing of what waits for them, for ever. `cut` is told how many.
    pub async fn watch(&self, cut: impl Fn(usize)) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let gone = self.look();
            if gone > 0 {
                cut(gone);
            }
        }
    }

    /// Looks at every connection once, and gives how many were cut off.
    fn look(&self) -> usize {
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

/// A wait for room.
type Waiting = Pin<Box<dyn Future<Output = Option<Room>> + Send>>;

/// An answer on its way to a client.
pub struct Outgoing {
    answer: Answer,
    connection: Arc<Connection>,
    clients: Arc<Clients>,
    budget: Budget,
    waits: Option<Waiting>,
    /// The request is under way until its answer has ended; nothing for one that found no place.
    _under_way: Option<UnderWay>,
}

impl Outgoing {
    /// An answer to a request on this connection.
    pub fn new(
        answer: Answer,
        connection: Arc<Connection>,
        clients: Arc<Clients>,
        budget: Budget,
        under_way: Option<UnderWay>,
    ) -> Self {
        Self { answer, connection, clients, budget, waits: None, _under_way: under_way }
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Option<Room>> {
        if self.waits.is_none() {
            if let Some(room) = take(&self.connection, &self.budget) {
                return Poll::Ready(Some(room));
            }
            self.waits = Some(Box::pin(wait(Arc::clone(&self.connection), self.budget.clone(), Arc::clone(&self.clients))));
        }
        let Some(waits) = &mut self.waits else { return Poll::Ready(None) };
        let room = std::task::ready!(waits.as_mut().poll(context));
        self.waits = None;
        Poll::Ready(room)
    }
}

impl Body for Outgoing {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = &mut *self;
        if this.answer.is_end_stream() {
            return Poll::Ready(None);
        }
        // Room comes first: what cannot wait anywhere is not read from the server.
        let room = std::task::ready!(this.poll_room(context));
        // Without anything to read the room is given back: a stream that idles takes none from others.
        let Some(frame) = std::task::ready!(this.answer.poll_piece(context)) else { return Poll::Ready(None) };
        let (frame, held) = frame?;
        let connection = &this.connection;
        Poll::Ready(Some(Ok(frame.map_data(|bytes| {
            connection.waiting.fetch_add(1, Ordering::Relaxed);
            Piece { bytes, connection: Arc::clone(connection), _room: room, _held: held }
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
