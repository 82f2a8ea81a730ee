//! The bodies of answers: given whole, streamed as they come, or streamed with events changed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prometheus::IntCounter;
use tokio::sync::mpsc;
use toolweir_engine::Permit;

use super::{budget::Budget, budget::Held, legacy::Open};
use crate::{
    governor::Governor,
    mcp::{
        list::{self, Filtered},
        sse::{Rewriter, SseError, Verdict, holds_tools, spells_tools},
    },
};

/// Why a body ends early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A future that is done when the sidecar stops.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer.
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its answer")]
pub enum Answer {
    /// Given whole.
    Whole(Option<Bytes>),
    /// Passed on as it comes. The permit is kept to the end: the call is under way until then.
    Stream {
        /// The server's body.
        inner: Incoming,
        /// Places among the calls under way.
        permit: Permit,
        /// Ends the stream: set for those that a client keeps open for as long as it lives.
        stop: Option<Stop>,
    },
    /// Events, some of which change.
    Events(Box<Events>),
}

/// A stream whose events are looked at.
pub struct Events {
    /// The server's body; nothing once it has ended.
    inner: Option<Incoming>,
    rewriter: Rewriter,
    filter: Filter,
    inject: Option<mpsc::Receiver<Bytes>>,
    budget: Budget,
    held: Option<Held>,
    stop: Option<Stop>,
}

/// Decides on events.
pub struct Filter {
    /// The policies.
    pub governor: Arc<Governor>,
    /// The server.
    pub server: String,
    /// Counts the tools that were cut out.
    pub hidden: IntCounter,
    /// The client's stream, where it can be of the HTTP+SSE transport.
    pub open: Option<Open>,
}

impl Filter {
    /// Shows of a tools/list result what may be called now.
    pub fn list(&self, body: &[u8]) -> Result<Filtered, SseError> {
        filter_list(&self.governor, &self.server, &self.hidden, body).map_err(|_| SseError::Unreadable)
    }

    fn event(&mut self, name: &[u8], data: &[u8]) -> Result<Verdict, SseError> {
        if name == b"endpoint"
            && let Some(open) = &mut self.open
        {
            let named = std::str::from_utf8(data).map_err(|_| SseError::Unreadable)?;
            return open.endpoint(named).map(|path| Verdict::Replace(path.into_bytes())).ok_or(SseError::Unreadable);
        }
        if !holds_tools(data) {
            return Ok(Verdict::Pass);
        }
        match self.list(data) {
            Ok(Filtered::Edited(new)) => Ok(Verdict::Replace(new)),
            // A client that is less strict may read what this cannot.
            Err(error) if spells_tools(data) => Err(error),
            Ok(Filtered::Same) | Err(_) => Ok(Verdict::Pass),
        }
    }
}

/// Shows of a tools/list result what may be called now.
pub fn filter_list(
    governor: &Governor,
    server: &str,
    hidden: &IntCounter,
    body: &[u8],
) -> Result<Filtered, toolweir_engine::json::JsonError> {
    let in_force = governor.in_force();
    let shows = |tool: &str| {
        let shows = in_force.engine.shows(server, tool);
        if !shows {
            hidden.inc();
        }
        shows
    };
    list::filter(body, &shows, &mut |tool| governor.learn(server, tool))
}

impl Answer {
    /// A body that is given whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A stream whose events `filter` decides on.
    pub fn events(
        inner: Incoming,
        most: usize,
        filter: Filter,
        inject: Option<mpsc::Receiver<Bytes>>,
        budget: Budget,
        stop: Option<Stop>,
    ) -> Self {
        let rewriter = Rewriter::new(most);
        Self::Events(Box::new(Events { inner: Some(inner), rewriter, filter, inject, budget, held: None, stop }))
    }
}

impl Events {
    /// Accounts for what is held; a stream that finds no room ends.
    fn account(&mut self) -> Result<(), BodyError> {
        let bytes = self.rewriter.held();
        self.held = None;
        if bytes > 0 {
            let held = self.budget.try_hold(bytes).ok_or("no room to hold an event")?;
            self.held = Some(held);
        }
        Ok(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.rewriter.between_events()
                && let Some(Poll::Ready(Some(event))) = self.inject.as_mut().map(|inject| inject.poll_recv(context))
            {
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            if stopped(&mut self.stop, context) && self.rewriter.between_events() {
                return Poll::Ready(None);
            }
            let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
            let out = match std::task::ready!(Pin::new(inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let filter = &mut self.filter;
                        if let Some(open) = &mut filter.open {
                            open.seen(&data);
                        }
                        let out = self.rewriter.push(&data, &mut |name, data| filter.event(name, data));
                        let out = out.inspect_err(|error| {
                            tracing::warn!(server = %filter.server, %error, "stream ended");
                        })?;
                        self.account()?;
                        out
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.inner = None;
                    self.rewriter.finish()
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }
}

fn stopped(stop: &mut Option<Stop>, context: &mut Context<'_>) -> bool {
    let stopped = stop.as_mut().is_some_and(|stop| stop.as_mut().poll(context).is_ready());
    if stopped {
        // A future must not be polled again once it is done; this one may be.
        *stop = Some(Box::pin(std::future::poll_fn(|_| Poll::Ready(()))));
    }
    stopped
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { inner, stop, .. } => {
                if stopped(stop, context) {
                    return Poll::Ready(None);
                }
                Pin::new(inner).poll_frame(context).map_err(Into::into)
            }
            Self::Events(events) => events.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { inner, .. } => inner.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { inner, .. } => inner.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
