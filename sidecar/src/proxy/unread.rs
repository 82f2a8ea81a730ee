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
use http::{Request, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{sync::watch, time::timeout};

use super::{clients::ClientConnection, state::ProxyState};
use crate::mcp::{headers::waits_for_leave, scan::Scan};

/// The factor of the largest body up to which a body that is not taken is read.
const TIMES: usize = 16;
/// For how long.
const TIME: Duration = Duration::from_secs(10);
/// For how long nothing may come of one that is scanned: who waits for its answer may have no place among those under way.
const STALL: Duration = Duration::from_secs(2);

/// A request's body, of which what was not read is discarded when this is dropped.
pub struct Unread {
    inner: Option<Incoming>,
    /// Nothing where the rest need not be read: over HTTP/2 only its stream ends, and a client that waits for leave to
    /// send has sent nothing.
    rest: Option<Rest>,
}

struct Rest {
    state: Arc<ProxyState>,
    connection: Arc<ClientConnection>,
    /// True where the request has a place among those under way, which it keeps until the rest is discarded.
    placed: bool,
}

impl Unread {
    /// The same request with such a body.
    pub fn of(
        request: Request<Incoming>,
        state: &Arc<ProxyState>,
        connection: &Arc<ClientConnection>,
        placed: bool,
    ) -> Request<Self> {
        let sends = request.version() < Version::HTTP_2 && !waits_for_leave(request.headers());
        let rest = || Rest { state: Arc::clone(state), connection: Arc::clone(connection), placed };
        request.map(|body| Self { inner: Some(body), rest: sends.then(rest) })
    }

    /// Scans what is left of the body, within the bounds and until the sidecar stops; tells whether it was read to its end.
    /// Nothing is read again later of one that was not.
    pub async fn scan(&mut self, scan: &mut Scan, largest: usize, stopping: watch::Receiver<bool>) -> bool {
        let whole = read_on(self, largest.saturating_mul(TIMES), STALL, stopping, |piece| scan.push(piece)).await;
        if !whole {
            self.rest = None;
        }
        whole
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
        let Some(mut inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) else { return };
        let Some(Rest { state, connection, placed }) = self.rest.take() else { return };
        let place = placed.then(|| state.clients.keep_request(&connection));
        let most = state.limits.body.saturating_mul(TIMES);
        let stopping = state.stopping.clone();
        tokio::spawn(async move {
            read_on(&mut inner, most, TIME, stopping, |_| ()).await;
            drop(place);
        });
    }
}

/// Reads a body on for at most [`TIME`], until it is longer than `most` bytes, nothing has come of it for as long as `stall`, or
/// the sidecar stops. Tells whether it was read to its end.
async fn read_on<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    most: usize,
    stall: Duration,
    mut stopping: watch::Receiver<bool>,
    mut each: impl FnMut(&[u8]),
) -> bool {
    let mut left = most;
    let reads = async {
        while let Ok(next) = timeout(stall, body.frame()).await {
            let Some(frame) = next else { return true };
            let Ok(frame) = frame else { return false };
            let piece = frame.data_ref().map_or(&[][..], |data| data);
            let Some(rest) = left.checked_sub(piece.len()) else { return false };
            left = rest;
            each(piece);
        }
        false
    };
    tokio::select! {
        whole = timeout(TIME, reads) => whole.unwrap_or(false),
        _ = stopping.wait_for(|stopping| *stopping) => false,
    }
}
