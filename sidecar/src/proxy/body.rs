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
    budget::HeldBytes,
    event_filter::{EventFilter, SMALL},
    list_changes::DeclarationWatch,
    rest_of_answer::RestOfAnswer,
    state::Proxy,
    stream_judge::OthersTurn,
};
use crate::{
    mcp::sse::{Rewriter, SseError, SseEvent},
    outcome::Outcome,
};

/// Why a body ends early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A future that is done when the sidecar stops.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The bytes of an event that are held, on a stream without lists, where nothing in them says that all of it has to be.
const HELD_EVENT: usize = 64 * 1024;
/// The body of an answer.
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its answer")]
pub enum ResponseBody {
    /// Given whole, with the room that it takes where it is of a size to speak of.
    Whole(Option<Bytes>, Option<HeldBytes>),
    /// Passed on as it comes. The permit is kept to the end: the call is under way until then.
    Stream {
        /// What was read of it, with the room that it takes where it is of a size to speak of.
        begun: Option<(Bytes, Option<HeldBytes>)>,
        /// The rest of the server's body; nothing where it was read whole.
        inner: Option<Incoming>,
        /// Places among the calls under way.
        permit: Permit,
        /// Ends the stream: set for those that a client keeps open for as long as it lives.
        stop: Option<Stop>,
        /// Looks at what passes.
        declares: Option<Box<DeclarationWatch>>,
        /// What the rest is held to.
        rest: Option<Box<RestOfAnswer>>,
    },
    /// Events, some of which change.
    Events(Box<EventBody>),
}

/// A stream whose events are looked at.
pub struct EventBody {
    /// The server's body; nothing once it has ended.
    inner: Option<Incoming>,
    /// The rest of a piece of it in which the server asks for much.
    unread: Bytes,
    /// After a piece in which the server has asked for much: done when others have had their turn.
    turn: Option<OthersTurn>,
    rewriter: Rewriter,
    filter: EventFilter,
    inject: Option<mpsc::Receiver<Bytes>>,
    proxy: Proxy,
    held: Option<HeldBytes>,
    /// Places among the calls under way.
    _permit: Permit,
    stop: Option<Stop>,
    /// The error with which the server's body broke off while pages were still being filled.
    broken: Option<BodyError>,
}

/// A piece of a body, and the room that it takes beyond that of any piece.
pub type BodyPiece = (Frame<Bytes>, Option<HeldBytes>);

impl ResponseBody {
    /// A body that is given whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()), None)
    }

    /// A body that is given whole, with the room that it takes until it is written.
    pub fn held(bytes: impl Into<Bytes>, held: HeldBytes) -> Self {
        Self::Whole(Some(bytes.into()), Some(held))
    }

    /// A body that passes as it comes.
    pub fn stream(inner: Incoming, permit: Permit, stop: Option<Stop>) -> Self {
        Self::Stream { begun: None, inner: Some(inner), permit, stop, declares: None, rest: None }
    }

    /// A stream whose events `filter` decides on.
    pub fn events(
        inner: Incoming,
        filter: EventFilter,
        inject: Option<mpsc::Receiver<Bytes>>,
        proxy: Proxy,
        permit: Permit,
        stop: Option<Stop>,
    ) -> Self {
        let most_data = filter.call.as_ref().and_then(|call| call.result_limit()).map(|limit| limit.max);
        let rewriter = Rewriter::new(proxy.state.limits.body, filter.mode).looking_for(filter.keys);
        // Of a stream on which no list comes, a large result is not held.
        let is_plain = !filter.reads_lists
            && filter.account.is_none()
            && filter.call.as_ref().is_none_or(|call| call.result_limit().is_none());
        let rewriter = if is_plain { rewriter.holding(HELD_EVENT) } else { rewriter };
        let rewriter = rewriter.with_most_data(most_data);
        Self::Events(Box::new(EventBody {
            inner: Some(inner),
            unread: Bytes::new(),
            turn: None,
            rewriter,
            filter,
            inject,
            proxy,
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
            held = Some(self.proxy.state.budget.try_hold(bytes).ok_or(SseError::NoRoom)?);
        }
        let Some(mut held) = held else { return Ok(None) };
        held.shrink(bytes);
        let left = held.split(leaving);
        self.held = Some(held).filter(|held| held.bytes() > 0);
        Ok(left)
    }

    /// Returns true where events are to come from elsewhere than the server's body.
    fn is_awaiting(&self) -> bool {
        !self.filter.judge.is_done() || self.filter.filling.as_ref().is_some_and(|filling| !filling.is_done())
    }

    /// The next event that comes from elsewhere than the server's body, where it may be put in.
    fn filled(&mut self, context: &mut Context<'_>) -> Option<Result<BodyPiece, SseError>> {
        let EventFilter { filling, judge, .. } = &mut self.filter;
        judge.poll(context);
        if let Some(filling) = filling {
            filling.poll(context);
        }
        // What was cut in two by the end of the body gets no end any more.
        if !self.rewriter.between_events() && self.inner.is_some() {
            return None;
        }
        if let Some((event, held)) = judge.ready() {
            return Some(Ok((Frame::data(event), Some(held))));
        }
        let filling = filling.as_mut()?;
        let (event, held) = filling.event(context)?;
        if held.is_some() || event.len() <= SMALL {
            return Some(Ok((Frame::data(event), held)));
        }
        let held = self.proxy.state.budget.try_hold(event.len()).ok_or(SseError::NoRoom);
        Some(held.map(|held| (Frame::data(event), Some(held))))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<BodyPiece, BodyError>>> {
        loop {
            if self.filter.is_over {
                return Poll::Ready(None);
            }
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
            if let Some(turn) = &mut self.turn {
                std::task::ready!(turn.as_mut().poll(context));
                self.turn = None;
            }
            let piece = if self.unread.is_empty() {
                let Some(inner) = &mut self.inner else { return self.end() };
                match std::task::ready!(Pin::new(inner).poll_frame(context)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) if self.filter.judge.part().is_some_and(|part| piece.len() > part) => {
                            self.unread = piece;
                            continue;
                        }
                        Ok(piece) => Some(piece),
                        Err(frame) => return Poll::Ready(Some(Ok((frame, None)))),
                    },
                    Some(Err(error)) => {
                        self.inner = None;
                        self.broken = Some(error.into());
                        continue;
                    }
                    None => {
                        self.inner = None;
                        None
                    }
                }
            } else {
                let part = self.filter.judge.part().unwrap_or(usize::MAX);
                Some(self.unread.split_to(self.unread.len().min(part)))
            };
            let (out, held) = self.rewritten(piece.as_ref())?;
            self.turn = self.filter.judge.others_turn();
            if !out.is_empty() {
                return Poll::Ready(Some(Ok((Frame::data(out), held))));
            }
        }
    }

    /// The end of the server's body, once all that is to come from elsewhere has.
    fn end(&mut self) -> Poll<Option<Result<BodyPiece, BodyError>>> {
        if self.is_awaiting() {
            return Poll::Pending;
        }
        if self.broken.is_none() {
            self.filter.account.take().into_iter().for_each(|account| account.finish(Outcome::Ok));
        }
        Poll::Ready(self.broken.take().map(Err))
    }

    /// What leaves when this piece has come, or the end, and the room that it takes.
    fn rewritten(&mut self, piece: Option<&Bytes>) -> Result<(Bytes, Option<HeldBytes>), SseError> {
        let Self { filter, rewriter, proxy, .. } = self;
        filter.judge.begin_piece();
        if let Some(piece) = piece {
            if let Some(open) = &mut filter.open {
                open.read(piece);
                let most_data = open.smallest_result_limit();
                rewriter.set_most_data(most_data);
            }
            if let Some(declares) = &mut filter.declares {
                declares.push(piece);
            }
        }
        let mut decide = |event: SseEvent<'_>| filter.event(event, proxy);
        let out = match piece {
            Some(piece) => rewriter.push(piece, &mut decide),
            None => rewriter.finish(&mut decide),
        };
        let out = match out {
            Err(SseError::DataTooLarge(most)) => filter.cut_within(most).ok_or(SseError::DataTooLarge(most)),
            out => out,
        };
        if rewriter.held() == 0
            && let Some(open) = &mut filter.open
        {
            open.end_answered();
        }
        let out = out.and_then(|out| self.account(out.len()).map(|held| (out, held)));
        out.inspect_err(|error| tracing::warn!(server = %self.filter.lists.server(), %error, "stream ended"))
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
            Self::Stream { begun, inner, stop, declares, rest, .. } => {
                if let Some((bytes, held)) = begun.take() {
                    if let Some(declares) = declares {
                        declares.push(&bytes);
                    }
                    return Poll::Ready(Some(Ok((Frame::data(bytes), held))));
                }
                if stopped(stop, context) {
                    return Poll::Ready(None);
                }
                let Some(inner) = inner else { return Poll::Ready(None) };
                let frame = std::task::ready!(Pin::new(inner).poll_frame(context)).transpose()?;
                if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
                    if let Some(declares) = declares {
                        declares.push(data);
                    }
                    rest.as_mut().map_or(Ok(()), |rest| rest.take(data))?;
                }
                Poll::Ready(frame.map(|frame| Ok((frame, None))))
            }
            Self::Events(events) => events.poll(context),
        }
    }

    /// Returns true where nothing is left of the body.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { begun, inner, .. } => begun.is_none() && inner.as_ref().is_none_or(Incoming::is_end_stream),
            Self::Events(_) => false,
        }
    }

    /// The body's length, as far as it is known.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { begun: None, inner: Some(inner), .. } => inner.size_hint(),
            Self::Stream { begun, inner: None, .. } => {
                SizeHint::with_exact(begun.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64))
            }
            Self::Stream { begun: Some((bytes, _)), inner: Some(inner), .. } => {
                with_begun(bytes.len() as u64, &inner.size_hint())
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// The length of a body of which so many bytes were read and this is left.
fn with_begun(begun: u64, rest: &SizeHint) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(begun + rest.lower());
    if let Some(upper) = rest.upper() {
        hint.set_upper(begun + upper);
    }
    hint
}
