//! A bound on the bytes that are held: of requests and lists while their meaning is decided, and of answers that wait for
//! their clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prometheus::IntGauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The bytes that a piece of an answer is counted as: as many are read from a server at once, and a shorter piece keeps the
/// memory that it was read into.
pub const PIECE: usize = 16 * 1024;
/// The largest body that is small: it finds room where large ones fill theirs.
const SMALL: usize = 16 * 1024;
/// By how much room is taken where a body's length is not known.
const STEP: usize = 64 * 1024;
/// The most requests that wait for room at once. Their bodies are not read, but their connections have taken in a part.
const WAITING: usize = 64;

/// The room that is left.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Rooms>);

#[derive(Debug)]
struct Rooms {
    /// Three quarters: for what is read whole.
    bodies: Arc<Semaphore>,
    largest: usize,
    /// A sixteenth: for small bodies, where the large ones have filled their room.
    small: Arc<Semaphore>,
    /// Three sixteenths: for answers that wait for their clients.
    clients: Arc<Semaphore>,
    waiting: AtomicUsize,
    wait: Duration,
    gauge: IntGauge,
}

/// Bytes that are accounted for until this is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    permit: OwnedSemaphorePermit,
    rooms: Arc<Rooms>,
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.rooms.gauge.sub(i64::try_from(self.permit.num_permits()).unwrap_or(i64::MAX));
    }
}

impl HeldBytes {
    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Takes this many bytes out of it; nothing where it has not as many, or none are wanted.
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        let permit = if bytes > 0 { self.permit.split(bytes)? } else { return None };
        Some(Self { permit, rooms: Arc::clone(&self.rooms) })
    }

    /// Gives back what is beyond this many bytes.
    pub fn shrink(&mut self, bytes: usize) {
        if let Some(rest) = self.permit.split(self.bytes().saturating_sub(bytes)) {
            self.rooms.gauge.sub(i64::try_from(rest.num_permits()).unwrap_or(i64::MAX));
        }
    }
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The body is larger than is accepted.
    TooLarge,
    /// No room came free in time.
    NoRoom,
    /// Its sender hung up.
    Sender,
}

/// A body that was not read to its end.
#[derive(Debug)]
pub struct NotRead {
    /// Why.
    pub why: ReadError,
    /// The pieces that were read of it, in order.
    pub read: Vec<Bytes>,
}

impl From<ReadError> for NotRead {
    fn from(why: ReadError) -> Self {
        Self { why, read: Vec::new() }
    }
}

impl Budget {
    /// Room for this many bytes; who finds none waits for `wait`.
    pub fn new(bytes: usize, wait: Duration, gauge: IntGauge) -> Self {
        let (bytes, part) = (bytes.min(Semaphore::MAX_PERMITS), |part: usize| Arc::new(Semaphore::new(part)));
        let (small, clients) = (bytes / 16, bytes / 16 * 3);
        let largest = bytes - small - clients;
        Self(Arc::new(Rooms {
            bodies: part(largest),
            largest,
            small: part(small),
            clients: part(clients),
            waiting: AtomicUsize::new(0),
            wait,
            gauge,
        }))
    }

    /// The largest body for which there can be room.
    pub fn largest(&self) -> usize {
        self.0.largest
    }

    fn held(&self, permit: OwnedSemaphorePermit) -> HeldBytes {
        self.0.gauge.add(i64::try_from(permit.num_permits()).unwrap_or(i64::MAX));
        HeldBytes { permit, rooms: Arc::clone(&self.0) }
    }

    /// Takes room for what is read whole.
    pub async fn hold(&self, bytes: usize) -> Result<HeldBytes, ReadError> {
        match self.try_hold(bytes) {
            Some(held) => Ok(held),
            None => self.wait_to_hold(bytes).await,
        }
    }

    /// Takes room among that of large bodies.
    async fn wait_to_hold(&self, bytes: usize) -> Result<HeldBytes, ReadError> {
        let count = u32::try_from(bytes).map_err(|_| ReadError::TooLarge)?;
        let _waits = Waits::begin(&self.0).ok_or(ReadError::NoRoom)?;
        let permit = timeout(self.0.wait, Arc::clone(&self.0.bodies).acquire_many_owned(count)).await;
        permit.ok().and_then(Result::ok).map(|permit| self.held(permit)).ok_or(ReadError::NoRoom)
    }

    /// Takes room for what is read whole, at once or not at all.
    pub fn try_hold(&self, bytes: usize) -> Option<HeldBytes> {
        let count = u32::try_from(bytes).ok()?;
        let of = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_many_owned(count).ok();
        let permit = of(&self.0.bodies).or_else(|| (bytes <= SMALL).then(|| of(&self.0.small)).flatten())?;
        Some(self.held(permit))
    }

    /// Takes room for a part of an answer that waits for its client, at once or not at all.
    pub fn try_hold_for_client(&self, bytes: usize) -> Option<HeldBytes> {
        let count = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0.clients).try_acquire_many_owned(count).ok().map(|permit| self.held(permit))
    }

    /// The same, waiting for as long as it takes; nothing for what never fits.
    pub async fn hold_for_client(&self, bytes: usize) -> Option<HeldBytes> {
        let count = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.0.clients).acquire_many_owned(count).await.ok()?;
        Some(self.held(permit))
    }

    /// Reads a body of at most `most` bytes, with room taken before a byte is read where its length is known.
    ///
    /// # Errors
    /// The body is larger, finds no room, or breaks off. The pieces that were read of it come back.
    pub async fn read<B>(&self, mut body: B, most: usize) -> Result<(Bytes, HeldBytes), NotRead>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let most = most.min(self.0.largest);
        let hint = body.size_hint();
        let known = hint.exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
        if known.unwrap_or(0) > most {
            return Err(ReadError::TooLarge.into());
        }
        let mut held = match known {
            Some(known) => self.hold(known).await?,
            None => self.wait_to_hold(STEP.min(most)).await?,
        };
        let mut first = Bytes::new();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = match frame.map(Frame::into_data) {
                Ok(Ok(data)) => data,
                // Trailers.
                Ok(Err(_)) => continue,
                Err(_) => return Err(ReadError::Sender.into()),
            };
            let length = first.len() + rest.len() + data.len();
            let fits = length <= most;
            // Most bodies come in one piece, which needs no copy.
            if fits && first.is_empty() && rest.is_empty() && length <= held.bytes() {
                first = data;
                continue;
            }
            let grown = if fits { self.grow(&mut rest, &mut held, length, known, most).await } else { Err(ReadError::TooLarge) };
            if let Err(why) = grown {
                return Err(NotRead { why, read: vec![first, rest.into(), data] });
            }
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
        held.shrink(first.len() + rest.capacity());
        Ok((if rest.is_empty() { first } else { rest.into() }, held))
    }

    /// Makes a body that was read in part able to take `length` bytes in all, and takes the room for them.
    async fn grow(
        &self,
        body: &mut Vec<u8>,
        held: &mut HeldBytes,
        length: usize,
        known: Option<usize>,
        most: usize,
    ) -> Result<(), ReadError> {
        if length <= body.capacity() {
            return Ok(());
        }
        // What grows does so by half as much again: room is held for all of it, used or not.
        let grown = length.max(body.capacity() + body.capacity() / 2).max(STEP).min(most);
        let capacity = known.map_or(grown, |known| known.max(length));
        if capacity > held.bytes() {
            // Of the room that is held already, which only is that of large bodies.
            let mut more = self.wait_to_hold(capacity - held.bytes()).await?;
            if let Some(permit) = more.permit.split(more.bytes()) {
                held.permit.merge(permit);
            }
        }
        body.reserve_exact(capacity - body.len());
        Ok(())
    }
}

/// A wait for room, as long as not too many wait.
struct Waits<'a>(&'a Rooms);

impl<'a> Waits<'a> {
    fn begin(rooms: &'a Rooms) -> Option<Self> {
        let waits = Self(rooms);
        (rooms.waiting.fetch_add(1, Ordering::AcqRel) < WAITING).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    fn budget(bytes: usize) -> (Budget, IntGauge) {
        let gauge = IntGauge::new("held", "held").unwrap();
        (Budget::new(bytes, Duration::from_millis(20), gauge.clone()), gauge)
    }

    #[tokio::test]
    async fn bodies_are_accounted_for_until_they_are_dropped() {
        let (budget, gauge) = budget(132);
        let (body, held) = budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.unwrap();
        assert_eq!((body.len(), gauge.get()), (60, 60));
        assert_eq!(budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.unwrap_err().why, ReadError::NoRoom);
        drop(held);
        assert_eq!(gauge.get(), 0);
        assert!(budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.is_ok());
        assert_eq!(budget.read(Full::new(Bytes::from(vec![1; 81])), 80).await.unwrap_err().why, ReadError::TooLarge);
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test]
    async fn bodies_of_unknown_length_are_bounded_too() {
        struct Pieces(usize);
        impl Body for Pieces {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
                let more = self.0.checked_sub(1).map(|left| {
                    self.0 = left;
                    Ok(Frame::data(Bytes::from(vec![b'x'; 1000])))
                });
                std::task::Poll::Ready(more)
            }
        }
        let (budget, gauge) = budget(200_000);
        let (body, held) = budget.read(Pieces(100), 150_000).await.unwrap();
        assert_eq!(body.len(), 100_000);
        assert!(gauge.get() >= 100_000);
        drop(held);
        assert_eq!(gauge.get(), 0);
        assert_eq!(budget.read(Pieces(151), 150_000).await.unwrap_err().why, ReadError::TooLarge);
    }
}
