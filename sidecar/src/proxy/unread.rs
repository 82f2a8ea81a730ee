//! The body of a request that is answered before it was read.
//!
//! Clients send a request to its end before they read the answer, and closing a connection on which bytes wait resets
//! it, which takes the answer with it (RFC 9112, section 9.6). So what is left is read and thrown away, within bounds.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use super::{service::Shared, waiting::Connection};

/// How many times the largest body may come after the answer.
pub const TIMES: usize = 16;
/// How long it may take.
pub const TIME: Duration = Duration::from_secs(10);

/// A request's body, of which what was not read is discarded when this is dropped.
pub struct Unread {
    inner: Option<Incoming>,
    /// Nothing where the rest need not be read: over HTTP/2 only its stream ends, and a client that waits for leave to
    /// send has sent nothing.
    rest: Option<Rest>,
}

struct Rest {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// Whether the request has a place among those under way, which it keeps until the rest is discarded.
    placed: bool,
}

impl Unread {
    /// The same request with such a body.
    pub fn of(request: Request<Incoming>, shared: &Arc<Shared>, connection: &Arc<Connection>, placed: bool) -> Request<Self> {
        let sends = request.version() < Version::HTTP_2 && !request.headers().contains_key(header::EXPECT);
        let rest = || Rest { shared: Arc::clone(shared), connection: Arc::clone(connection), placed };
        request.map(|body| Self { inner: Some(body), rest: sends.then(rest) })
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) else { return };
        let Some(Rest { shared, connection, placed }) = self.rest.take() else { return };
        let place = placed.then(|| shared.clients.stay(&connection));
        let most = shared.limits.body.saturating_mul(TIMES);
        let mut stopping = shared.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = timeout(TIME, discard(inner, most)) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            drop(place);
        });
    }
}

/// Reads a body to its end, or until it is longer than `most` bytes.
async fn discard(mut body: Incoming, most: usize) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}
