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
        sse::{Endpoint, Event, Rewriter, SseError, Verdict, Watch, spells_tools},
    },
};

/// Why a body ends early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A future that is done when the sidecar stops.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer.
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its answer")]
pub enum Answer {
    /// Given whole, with the room that it takes where it is of a size to speak of.
    Whole(Option<Bytes>, Option<Held>),
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
    /// Places among the calls under way.
    _permit: Permit,
    stop: Option<Stop>,
}

/// A piece of a body, and the room that it takes beyond that of any piece.
pub type Piece = (Frame<Bytes>, Option<Held>);

/// The largest event for whose reading no room is taken: it is read and gone within a moment.
const SMALL: usize = 16 * 1024;

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
    /// What is looked for.
    pub watch: Watch,
}

impl Filter {
    /// Shows of a tools/list result what may be called now.
    pub fn list(&self, body: &[u8]) -> Result<Filtered, SseError> {
        filter_list(&self.governor, &self.server, &self.hidden, body).map_err(|_| SseError::Unreadable)
    }

    fn event(&mut self, event: Event<'_>, budget: &Budget) -> Result<Verdict, SseError> {
        let Event { data, endpoint, .. } = event;
        if let Some(open) = &mut self.open {
            match endpoint {
                Endpoint::Yes => {
                    let named = std::str::from_utf8(data).map_err(|_| SseError::UnclearEndpoint)?;
                    let path = open.endpoint(named).ok_or(SseError::ForeignEndpoint)?;
                    return Ok(Verdict::Replace(path.into_bytes()));
                }
                Endpoint::Unclear => return Err(SseError::UnclearEndpoint),
                Endpoint::No => {}
            }
        }
        if !spells_tools(data) {
            return Ok(Verdict::Pass);
        }
        // What is read is there up to three times at once.
        let _room = match data.len() {
            ..=SMALL => None,
            length => Some(budget.try_hold(length * 2).ok_or(SseError::NoRoom)?),
        };
        match self.list(data) {
            Ok(Filtered::Edited(new)) => Ok(Verdict::Replace(new)),
            Ok(Filtered::Same) => Ok(Verdict::Pass),
            // A client that is less strict may read what this cannot.
            Err(error) => Err(error),
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
    let shows = |tool: &str| in_force.engine.shows(server, tool);
    list::filter(body, &shows, &mut |tool, shown| {
        governor.learn(server, tool);
        if !shown {
            hidden.inc();
        }
    })
}

impl Answer {
    /// A body that is given whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()), None)
    }

    /// A body that is given whole, with the room that it takes until it is written.
    pub fn held(bytes: impl Into<Bytes>, held: Held) -> Self {
        Self::Whole(Some(bytes.into()), Some(held))
    }

    /// A stream whose events `filter` decides on.
    pub fn events(
        inner: Incoming,
        most: usize,
        filter: Filter,
        inject: Option<mpsc::Receiver<Bytes>>,
        budget: Budget,
        permit: Permit,
        stop: Option<Stop>,
    ) -> Self {
        let rewriter = Rewriter::new(most, filter.watch);
        Self::Events(Box::new(Events { inner: Some(inner), rewriter, filter, inject, budget, held: None, _permit: permit, stop }))
    }
}

impl Events {
    /// Accounts for what is held, and for what leaves where that is larger than a piece; a stream that finds no room ends.
    fn account(&mut self, leaves: usize) -> Result<Option<Held>, SseError> {
        let leaving = if leaves > SMALL { leaves } else { 0 };
        let bytes = self.rewriter.room() + leaving;
        let mut held = self.held.take().filter(|held| held.bytes() >= bytes);
        if held.is_none() && bytes > 0 {
            held = Some(self.budget.try_hold(bytes).ok_or(SseError::NoRoom)?);
        }
        let Some(mut held) = held else { return Ok(None) };
        held.shrink(bytes);
        let left = held.split(leaving);
        self.held = Some(held).filter(|held| held.bytes() > 0);
        Ok(left)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        loop {
            if self.rewriter.between_events()
                && let Some(Poll::Ready(Some(event))) = self.inject.as_mut().map(|inject| inject.poll_recv(context))
            {
                return Poll::Ready(Some(Ok((Frame::data(event), None))));
            }
            if stopped(&mut self.stop, context) && self.rewriter.between_events() {
                return Poll::Ready(None);
            }
            let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
            let Self { filter, budget, rewriter, .. } = self;
            let out = match std::task::ready!(Pin::new(inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(open) = &mut filter.open {
                            open.seen(&data);
                        }
                        rewriter.push(&data, &mut |event| filter.event(event, budget))
                    }
                    Err(frame) => return Poll::Ready(Some(Ok((frame, None)))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.inner = None;
                    rewriter.finish(&mut |event| filter.event(event, budget))
                }
            };
            let out = out.and_then(|out| self.account(out.len()).map(|held| (out, held)));
            let (out, held) = out.inspect_err(|error| {
                tracing::warn!(server = %self.filter.server, %error, "stream ended");
            })?;
            if !out.is_empty() {
                return Poll::Ready(Some(Ok((Frame::data(out), held))));
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

impl Answer {
    /// The next piece of the body.
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        match self {
            Self::Whole(bytes, held) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                Poll::Ready(bytes.map(|bytes| Ok((Frame::data(bytes), held.take()))))
            }
            Self::Stream { inner, stop, .. } => {
                if stopped(stop, context) {
                    return Poll::Ready(None);
                }
                Pin::new(inner).poll_frame(context).map_ok(|frame| (frame, None)).map_err(Into::into)
            }
            Self::Events(events) => events.poll(context),
        }
    }

    /// Whether nothing is left of the body.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { inner, .. } => inner.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    /// What is known of the body's length.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { inner, .. } => inner.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
