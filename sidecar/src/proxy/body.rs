//! The bodies of answers: given whole, streamed as they come, or streamed with events changed.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use toolweir_engine::Permit;

use super::{
    budget::{Budget, HeldBytes},
    legacy::OpenLegacyStream,
    list_changes::{DeclarationWatch, ListChangedNotifier},
    pages::PageFiller,
};
use crate::{
    lists::Lists,
    mcp::{
        edits::Filtered,
        sse::{EndpointMatch, EventVerdict, RewriteMode, Rewriter, SseError, SseEvent, spells_list},
    },
};

/// Why a body ends early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A future that is done when the sidecar stops.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer.
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its answer")]
pub enum ResponseBody {
    /// Given whole, with the room that it takes where it is of a size to speak of.
    Whole(Option<Bytes>, Option<HeldBytes>),
    /// Passed on as it comes. The permit is kept to the end: the call is under way until then.
    Stream {
        /// The server's body.
        inner: Incoming,
        /// Places among the calls under way.
        permit: Permit,
        /// Ends the stream: set for those that a client keeps open for as long as it lives.
        stop: Option<Stop>,
        /// Looks at what passes.
        declares: Option<DeclarationWatch>,
    },
    /// Events, some of which change.
    Events(Box<EventBody>),
}

/// A stream whose events are looked at.
pub struct EventBody {
    /// The server's body; nothing once it has ended.
    inner: Option<Incoming>,
    rewriter: Rewriter,
    filter: EventFilter,
    inject: Option<mpsc::Receiver<Bytes>>,
    budget: Budget,
    held: Option<HeldBytes>,
    /// Places among the calls under way.
    _permit: Permit,
    stop: Option<Stop>,
    /// The error with which the server's body broke off while pages were still being filled.
    broken: Option<BodyError>,
}

/// A piece of a body, and the room that it takes beyond that of any piece.
pub type BodyPiece = (Frame<Bytes>, Option<HeldBytes>);

/// The largest event for whose reading no room is taken: it is read and gone within a moment.
const SMALL: usize = 16 * 1024;

/// Decides on events.
pub struct EventFilter {
    /// The lists of the server.
    pub lists: Lists,
    /// The client's stream, where it can be of the HTTP+SSE transport.
    pub open: Option<OpenLegacyStream>,
    /// Which events are looked for.
    pub mode: RewriteMode,
    /// Tells the client of changes, if the stream is for that.
    pub notifier: Option<ListChangedNotifier>,
    /// Fills pages that come empty, where it is known what was asked for.
    pub filling: Option<PageFiller>,
}

impl EventFilter {
    fn event(&mut self, event: SseEvent<'_>, budget: &Budget) -> Result<EventVerdict, SseError> {
        let SseEvent { data, endpoint, .. } = event;
        if let Some(open) = &mut self.open {
            match endpoint {
                EndpointMatch::Yes => {
                    let named = std::str::from_utf8(data).map_err(|_| SseError::UnclearEndpoint)?;
                    let path = open.set_endpoint(named).ok_or(SseError::ForeignEndpoint)?;
                    return Ok(EventVerdict::Replace(path.into_bytes()));
                }
                EndpointMatch::Unclear => return Err(SseError::UnclearEndpoint),
                EndpointMatch::No => {}
            }
        }
        if self.filling.as_mut().is_some_and(|filling| filling.take_own_answer(data)) {
            return Ok(EventVerdict::Take);
        }
        self.lists.server_said(data);
        if let Some(notifier) = &mut self.notifier {
            notifier.server_said(data);
        }
        if !spells_list(data) {
            return Ok(EventVerdict::Pass);
        }
        // What is read is there up to three times at once.
        let _room = match data.len() {
            ..=SMALL => None,
            length => Some(budget.try_hold(length * 2).ok_or(SseError::NoRoom)?),
        };
        // A client that is less strict may read what this cannot.
        let read = self.lists.read(data, None).map_err(|_| SseError::Unreadable)?;
        if let Some(filling) = &mut self.filling {
            return Ok(filling.begin(event, read));
        }
        match read.filtered {
            Filtered::Edited(new) => Ok(EventVerdict::Replace(new)),
            Filtered::Same => Ok(EventVerdict::Pass),
        }
    }
}

impl ResponseBody {
    /// A body that is given whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()), None)
    }

    /// A body that is given whole, with the room that it takes until it is written.
    pub fn held(bytes: impl Into<Bytes>, held: HeldBytes) -> Self {
        Self::Whole(Some(bytes.into()), Some(held))
    }

    /// A stream whose events `filter` decides on.
    pub fn events(
        inner: Incoming,
        most: usize,
        filter: EventFilter,
        inject: Option<mpsc::Receiver<Bytes>>,
        budget: Budget,
        permit: Permit,
        stop: Option<Stop>,
    ) -> Self {
        let rewriter = Rewriter::new(most, filter.mode);
        Self::Events(Box::new(EventBody {
            inner: Some(inner),
            rewriter,
            filter,
            inject,
            budget,
            held: None,
            _permit: permit,
            stop,
            broken: None,
        }))
    }
}

impl EventBody {
    /// Accounts for what is held, and for what leaves where that is larger than a piece; a stream that finds no room ends.
    fn account(&mut self, leaves: usize) -> Result<Option<HeldBytes>, SseError> {
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

    fn is_filling(&self) -> bool {
        self.filter.filling.as_ref().is_some_and(|filling| !filling.is_done())
    }

    /// The next event that comes from elsewhere than the server's body, where it may be put in.
    fn filled(&mut self, context: &mut Context<'_>) -> Option<Result<BodyPiece, SseError>> {
        let filling = self.filter.filling.as_mut()?;
        filling.poll(context);
        // What was cut in two by the end of the body gets no end any more.
        if !self.rewriter.between_events() && self.inner.is_some() {
            return None;
        }
        let (event, held) = filling.event(context)?;
        if held.is_some() || event.len() <= SMALL {
            return Some(Ok((Frame::data(event), held)));
        }
        let held = self.budget.try_hold(event.len()).ok_or(SseError::NoRoom);
        Some(held.map(|held| (Frame::data(event), Some(held))))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<BodyPiece, BodyError>>> {
        loop {
            if self.rewriter.between_events()
                && let Some(Poll::Ready(Some(event))) = self.inject.as_mut().map(|inject| inject.poll_recv(context))
            {
                return Poll::Ready(Some(Ok((Frame::data(event), None))));
            }
            if let Some(event) = self.filled(context) {
                return Poll::Ready(Some(event.map_err(Into::into)));
            }
            let between = self.rewriter.between_events();
            if let Some(events) = self.filter.notifier.as_mut().and_then(|notifier| notifier.events(context, between)) {
                return Poll::Ready(Some(Ok((Frame::data(events), None))));
            }
            if stopped(&mut self.stop, context) && self.rewriter.between_events() {
                return Poll::Ready(None);
            }
            let Some(inner) = &mut self.inner else {
                if self.is_filling() {
                    return Poll::Pending;
                }
                return Poll::Ready(self.broken.take().map(Err));
            };
            let Self { filter, budget, rewriter, .. } = self;
            let out = match std::task::ready!(Pin::new(inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(open) = &mut filter.open {
                            open.read(&data);
                        }
                        rewriter.push(&data, &mut |event| filter.event(event, budget))
                    }
                    Err(frame) => return Poll::Ready(Some(Ok((frame, None)))),
                },
                Some(Err(error)) => {
                    self.inner = None;
                    self.broken = Some(error.into());
                    continue;
                }
                None => {
                    self.inner = None;
                    rewriter.finish(&mut |event| filter.event(event, budget))
                }
            };
            let out = out.and_then(|out| self.account(out.len()).map(|held| (out, held)));
            let (out, held) = out.inspect_err(|error| {
                tracing::warn!(server = %self.filter.lists.server(), %error, "stream ended");
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

impl ResponseBody {
    /// The next piece of the body.
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<BodyPiece, BodyError>>> {
        match self {
            Self::Whole(bytes, held) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                Poll::Ready(bytes.map(|bytes| Ok((Frame::data(bytes), held.take()))))
            }
            Self::Stream { inner, stop, declares, .. } => {
                if stopped(stop, context) {
                    return Poll::Ready(None);
                }
                let frame = std::task::ready!(Pin::new(inner).poll_frame(context));
                if let (Some(declares), Some(Ok(frame))) = (declares, &frame)
                    && let Some(data) = frame.data_ref()
                {
                    declares.push(data);
                }
                Poll::Ready(frame.map(|frame| frame.map(|frame| (frame, None)).map_err(Into::into)))
            }
            Self::Events(events) => events.poll(context),
        }
    }

    /// Returns true where nothing is left of the body.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { inner, .. } => inner.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    /// The body's length, as far as it is known.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { inner, .. } => inner.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
