//! A bound on the bytes of all bodies that are held while their meaning is decided.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use prometheus::IntGauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The room that is left.
#[derive(Clone, Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    wait: Duration,
    gauge: IntGauge,
}

/// Bytes that are accounted for until this is dropped.
#[derive(Debug)]
pub struct Held {
    permit: OwnedSemaphorePermit,
    gauge: IntGauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.sub(i64::try_from(self.permit.num_permits()).unwrap_or(i64::MAX));
    }
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// It is larger than is accepted.
    TooLarge,
    /// No room came free in time.
    NoRoom,
    /// Its sender hung up.
    Sender,
}

impl Budget {
    /// Room for this many bytes; who finds none waits for `wait`.
    pub fn new(bytes: usize, wait: Duration, gauge: IntGauge) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))), wait, gauge }
    }

    /// Takes room.
    pub async fn hold(&self, bytes: usize) -> Result<Held, ReadError> {
        let count = u32::try_from(bytes).map_err(|_| ReadError::TooLarge)?;
        let permit = match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) => timeout(self.wait, Arc::clone(&self.room).acquire_many_owned(count))
                .await
                .map_err(|_| ReadError::NoRoom)?
                .map_err(|_| ReadError::NoRoom)?,
        };
        self.gauge.add(i64::from(count));
        Ok(Held { permit, gauge: self.gauge.clone() })
    }

    /// Takes room at once or not at all.
    pub fn try_hold(&self, bytes: usize) -> Option<Held> {
        let count = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.room).try_acquire_many_owned(count).ok()?;
        self.gauge.add(i64::from(count));
        Some(Held { permit, gauge: self.gauge.clone() })
    }

    /// Reads a body of at most `most` bytes, with room taken before a byte is read where its length is known.
    pub async fn read<B>(&self, mut body: B, most: usize) -> Result<(Bytes, Held), ReadError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        const STEP: usize = 64 * 1024;
        let hint = body.size_hint();
        let known = hint.exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
        if known.unwrap_or(0) > most {
            return Err(ReadError::TooLarge);
        }
        let mut held = self.hold(known.unwrap_or(STEP.min(most))).await?;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| ReadError::Sender)?.into_data() else { continue };
            length += data.len();
            if length > most {
                return Err(ReadError::TooLarge);
            }
            if length > held.permit.num_permits() {
                let mut more = self.hold(STEP.max(length - held.permit.num_permits()).min(most)).await?;
                if let Some(permit) = more.permit.split(more.permit.num_permits()) {
                    held.permit.merge(permit);
                }
            }
            // Most bodies come in one piece, which needs no copy.
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                if rest.is_empty() {
                    rest.reserve(known.unwrap_or(length));
                    rest.extend_from_slice(&first);
                }
                rest.extend_from_slice(&data);
            }
        }
        Ok((if rest.is_empty() { first } else { rest.freeze() }, held))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    fn budget(bytes: usize) -> (Budget, IntGauge) {
        let gauge = IntGauge::new("held", "held").unwrap();
        (Budget::new(bytes, Duration::from_millis(20), gauge.clone()), gauge)
    }

    #[tokio::test]
    async fn bodies_are_accounted_for_until_they_are_dropped() {
        let (budget, gauge) = budget(100);
        let (body, held) = budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.unwrap();
        assert_eq!((body.len(), gauge.get()), (60, 60));
        assert_eq!(budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.unwrap_err(), ReadError::NoRoom);
        drop(held);
        assert_eq!(gauge.get(), 0);
        assert!(budget.read(Full::new(Bytes::from(vec![1; 60])), 80).await.is_ok());
        assert_eq!(budget.read(Full::new(Bytes::from(vec![1; 81])), 80).await.unwrap_err(), ReadError::TooLarge);
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
        assert_eq!(budget.read(Pieces(151), 150_000).await.unwrap_err(), ReadError::TooLarge);
    }
}
