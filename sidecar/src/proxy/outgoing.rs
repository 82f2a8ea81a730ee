//! Answers on their way to clients: pieces that were read from a server and not yet taken by the client.
//!
//! A piece is asked for only where there is room for it, so a server is read no faster than its client reads.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    body::{BodyError, ResponseBody},
    budget::{Budget, HeldBytes, PIECE},
    clients::{ClientConnection, Clients, RequestSlot},
};

/// Room for one piece.
#[derive(Debug)]
#[expect(dead_code, reason = "the permits are kept for their drop")]
enum PieceRoom {
    Own(OwnedSemaphorePermit),
    Shared(OwnedSemaphorePermit, HeldBytes),
}

/// Takes room at once, or not at all.
fn take(connection: &ClientConnection, budget: &Budget) -> Option<PieceRoom> {
    if let Ok(own) = Arc::clone(&connection.own).try_acquire_owned() {
        return Some(PieceRoom::Own(own));
    }
    let place = Arc::clone(&connection.shared).try_acquire_owned().ok()?;
    budget.try_hold_for_client(PIECE).map(|held| PieceRoom::Shared(place, held))
}

/// Waits for room: that of the connection's own, or among what all share.
async fn wait(connection: Arc<ClientConnection>, budget: Budget, clients: Arc<Clients>) -> Option<PieceRoom> {
    let shared = async {
        let place = Arc::clone(&connection.shared).acquire_owned().await.ok()?;
        if let Some(held) = budget.try_hold_for_client(PIECE) {
            return Some(PieceRoom::Shared(place, held));
        }
        let _waits = Waits::begin(&clients);
        let held = budget.hold_for_client(PIECE).await?;
        Some(PieceRoom::Shared(place, held))
    };
    tokio::select! {
        own = Arc::clone(&connection.own).acquire_owned() => own.ok().map(PieceRoom::Own),
        shared = shared => shared,
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
pub struct OutgoingPiece {
    bytes: Bytes,
    connection: Arc<ClientConnection>,
    _room: Option<PieceRoom>,
    _held: Option<HeldBytes>,
}

impl Drop for OutgoingPiece {
    fn drop(&mut self) {
        self.connection.waiting.fetch_sub(1, Ordering::Relaxed);
        self.connection.moved();
    }
}

impl Buf for OutgoingPiece {
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

/// A wait for room.
type Waiting = Pin<Box<dyn Future<Output = Option<PieceRoom>> + Send>>;

/// An answer on its way to a client.
pub struct OutgoingBody {
    answer: ResponseBody,
    connection: Arc<ClientConnection>,
    clients: Arc<Clients>,
    budget: Budget,
    waits: Option<Waiting>,
    /// The request is under way until its answer has ended; nothing for one that found no place.
    _slot: Option<RequestSlot>,
}

impl OutgoingBody {
    /// An answer to a request on this connection.
    pub fn new(
        answer: ResponseBody,
        connection: Arc<ClientConnection>,
        clients: Arc<Clients>,
        budget: Budget,
        slot: Option<RequestSlot>,
    ) -> Self {
        Self { answer, connection, clients, budget, waits: None, _slot: slot }
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Option<PieceRoom>> {
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

impl Body for OutgoingBody {
    type Data = OutgoingPiece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<OutgoingPiece>, BodyError>>> {
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
            OutgoingPiece { bytes, connection: Arc::clone(connection), _room: room, _held: held }
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
