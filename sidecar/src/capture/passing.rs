//! Room for connections that pass. What the kernel keeps of them, sent and not read yet, counts as the pod's memory: whoever does not
//! read must not have the sidecar killed for it, since its counts would begin anew.

use std::sync::Arc;

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// The most connections that pass at once.
const MOST: usize = 256;
/// The number of these that are wide: fast where much passes.
const WIDE: usize = 16;
/// The kernel's buffers of each side of a connection, sent and received, in bytes. The kernel doubles them, so that a wide connection
/// holds 1 MiB at most, another 128 KiB, and all of them 46 MiB.
const WIDE_BUFFER: usize = 128 * 1024;
const BUFFER: usize = 16 * 1024;

/// Room for connections that pass.
#[derive(Clone, Debug)]
pub struct PassingRoom {
    all: Arc<Semaphore>,
    wide: Arc<Semaphore>,
}

impl Default for PassingRoom {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MOST)), wide: Arc::new(Semaphore::new(WIDE)) }
    }
}

impl PassingRoom {
    /// Room for one more connection, if there is some.
    pub fn take(&self) -> Option<PassingSlot> {
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(PassingSlot { wide: Arc::clone(&self.wide).try_acquire_owned().ok(), _place: place })
    }
}

/// The room of one connection, until it is dropped.
#[derive(Debug)]
pub struct PassingSlot {
    wide: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

impl PassingSlot {
    /// Bounds what the kernel keeps of one side of the connection.
    pub fn bound(&self, stream: &TcpStream) {
        let buffer = if self.wide.is_some() { WIDE_BUFFER } else { BUFFER };
        let socket = SockRef::from(stream);
        let _ = socket.set_send_buffer_size(buffer).and_then(|()| socket.set_recv_buffer_size(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_pass_than_there_is_room_for() {
        let room = PassingRoom::default();
        let slots: Vec<PassingSlot> = std::iter::from_fn(|| room.take()).collect();
        assert_eq!((slots.len(), slots.iter().filter(|slot| slot.wide.is_some()).count()), (MOST, WIDE));
        drop(slots);
        let slot = room.take().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        slot.bound(&stream);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.recv_buffer_size().unwrap(), 2 * WIDE_BUFFER);
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * WIDE_BUFFER);
    }
}
