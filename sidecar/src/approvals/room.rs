//! Room for calls that wait for a person.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room that is left for calls that wait for a person: they use less than all that there is for bodies and requests, so that others
/// go on however long people take.
#[derive(Clone, Debug)]
pub struct WaitingRoom {
    bytes: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

/// The room that one call takes. It comes free when this is dropped.
#[derive(Debug)]
pub struct WaitingPlace {
    _bytes: OwnedSemaphorePermit,
    _call: OwnedSemaphorePermit,
}

impl WaitingRoom {
    /// Room for so many calls whose messages have so many bytes together.
    pub fn new(bytes: usize, calls: usize) -> Self {
        let of = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self { bytes: of(bytes), calls: of(calls) }
    }

    /// Takes room for a call whose message has so many bytes, at once or not at all.
    pub fn take(&self, bytes: usize) -> Option<WaitingPlace> {
        let count = u32::try_from(bytes).ok()?;
        let call = Arc::clone(&self.calls).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(count).ok()?;
        Some(WaitingPlace { _bytes: bytes, _call: call })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_calls_and_so_many_bytes() {
        let room = WaitingRoom::new(100, 2);
        let large = room.take(90).unwrap();
        assert!(room.take(11).is_none());
        let small = room.take(10).unwrap();
        assert!(room.take(0).is_none());
        drop(small);
        assert!(room.take(101).is_none() && room.take(10).is_some());
        drop(large);
        assert!(room.take(100).is_some());
    }
}
