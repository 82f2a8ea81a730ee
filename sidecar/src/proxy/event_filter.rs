//! Decides on the events of an answer: lists, what a server asks for, and results that are larger than may pass.

use std::sync::Arc;

use bytes::Bytes;
use toolweir_engine::Denial;

use super::{
    budget::Budget,
    failure::RequestFailure,
    legacy::OpenLegacyStream,
    list_changes::{DeclarationWatch, ListChangedNotifier},
    pages::PageFiller,
    state::Proxy,
    stream_judge::{StreamJudge, StreamPlace},
};
use crate::{
    account::Account,
    lists::Lists,
    mcp::{
        answer,
        edits::Filtered,
        server_message::possible_answers,
        sse::{EndpointMatch, EventVerdict, KnownKeys, RewriteMode, SseError, SseEvent, known_keys},
    },
    outcome::Outcome,
    pending::{AnsweredRequest, PendingCall},
};

/// The largest event for whose reading no room is taken: it is read and gone within a moment.
pub const SMALL: usize = 16 * 1024;

/// Decides on events.
pub struct EventFilter {
    /// The lists of the server.
    pub lists: Lists,
    /// True where lists can come.
    pub reads_lists: bool,
    /// The client's stream, where it can be of the HTTP+SSE transport.
    pub open: Option<OpenLegacyStream>,
    /// Which events are looked for.
    pub mode: RewriteMode,
    /// The keys that do not pass unread.
    pub keys: KnownKeys,
    /// Tells the client of changes, if the stream is for that.
    pub notifier: Option<ListChangedNotifier>,
    /// Fills pages that come empty, where it is known what was asked for.
    pub filling: Option<PageFiller>,
    /// Judges what the server asks for.
    pub judge: StreamJudge,
    /// The operation that the stream answers.
    pub call: Option<Arc<PendingCall>>,
    /// What is written of it, where the end of the stream decides that.
    pub account: Option<Account>,
    /// Looks at what passes.
    pub declares: Option<DeclarationWatch>,
    /// The answer has been cut: nothing passes any more.
    pub is_over: bool,
}

impl EventFilter {
    /// Decides on an event.
    ///
    /// # Errors
    /// The stream cannot go on.
    pub fn event(&mut self, event: SseEvent<'_>, proxy: &Proxy) -> Result<EventVerdict, SseError> {
        if self.is_over {
            return Ok(EventVerdict::Take);
        }
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
        let answered = self.open.as_mut().and_then(|open| open.take_answered(data));
        let call = answered.as_ref().and_then(AnsweredRequest::call_shared).or_else(|| self.call.clone());
        if let Some(call) = &call
            && let Some(denial) = self.denied_result(call, data)
        {
            self.count(call, &denial);
            match answered {
                Some(answered) => answered.end(Outcome::ResultTooLarge),
                None => self.cut(),
            }
            return Ok(EventVerdict::Replace(answer::denial_of(call.answered().reply, &denial).into()));
        }
        let too_large =
            self.open.as_ref().and_then(OpenLegacyStream::smallest_result_limit).is_some_and(|most| data.len() as u64 > most);
        if too_large && possible_answers(data) > usize::from(answered.is_some()) {
            return Ok(self.foreign_answer(answered));
        }
        if let Some(answered) = answered {
            answered.end(Outcome::Ok);
        }
        self.judged(event, call.as_ref(), &proxy.state.budget)
    }

    /// The denial that takes the place of a result that is larger than may pass.
    fn denied_result(&mut self, call: &PendingCall, data: &[u8]) -> Option<Denial> {
        let denial = call.denies_result(data.len());
        if (denial.is_some() || self.account.is_some()) && possible_answers(data) > 0 {
            if denial.is_none() {
                self.account.take().into_iter().for_each(|account| account.finish(Outcome::Ok));
            }
            return denial;
        }
        None
    }

    /// What becomes of an answer that is larger than a result may be that is awaited, and is to another id too, which its client may take for
    /// that of a request all the same.
    fn foreign_answer(&self, answered: Option<AnsweredRequest>) -> EventVerdict {
        let server = self.lists.server();
        self.lists.governor().metrics.servers.count_refused_message(server);
        let Some(answered) = answered else { return EventVerdict::TakeData };
        let why = "its answer is larger than a result may be that is awaited, and answers something else".to_owned();
        let instead = answered.call().map(|call| RequestFailure::Invalid(server.to_owned(), why).answer(call.answered().reply));
        answered.end(Outcome::UpstreamInvalid);
        instead.map_or(EventVerdict::TakeData, |answer| EventVerdict::Replace(answer.into()))
    }

    /// Counts that a result is larger than may pass.
    fn count(&self, call: &PendingCall, denial: &Denial) {
        let governor = self.lists.governor();
        governor.count_denied_result(&governor.in_force(), self.lists.server(), call.answered().operation, denial);
    }

    /// Ends the answer.
    fn cut(&mut self) {
        self.account.take().into_iter().for_each(|account| account.finish(Outcome::ResultTooLarge));
        self.is_over = true;
    }

    /// Ends the answer within an event that is larger than may pass, and returns what takes its place. None where the stream answers more
    /// than one request.
    pub fn cut_within(&mut self, bytes: u64) -> Option<Bytes> {
        let call = self.call.clone()?;
        let called = call.answered();
        let denial = Denial::result_too_large(call.result_limit()?, called.operation, bytes, false);
        self.count(&call, &denial);
        self.cut();
        // Whatever has come of the event ends here.
        Some([b"\n\n", &*answer::event(&answer::denial_of(called.reply, &denial))].concat().into())
    }

    /// Decides on an event by what the server asks for in it, and by the lists in it.
    fn judged(
        &mut self,
        event: SseEvent<'_>,
        call: Option<&Arc<PendingCall>>,
        budget: &Budget,
    ) -> Result<EventVerdict, SseError> {
        let keys = known_keys(event.data);
        // What is read is there up to three times at once.
        let is_read = keys.any_of(KnownKeys::ASKS) || (self.reads_lists && keys.any_of(KnownKeys::LISTS));
        let _room = match event.data.len() {
            length @ SMALL.. if is_read => Some(budget.try_hold(length * 2).ok_or(SseError::NoRoom)?),
            _ => None,
        };
        let mut verdict = EventVerdict::Pass;
        if keys.any_of(KnownKeys::ASKS) {
            let (stream, endpoint) = self.open.as_ref().map_or((None, None), |open| (open.id(), open.endpoint()));
            verdict = self.judge.event(event, StreamPlace { stream, endpoint, call });
        }
        if !self.reads_lists || !keys.any_of(KnownKeys::LISTS) {
            return Ok(verdict);
        }
        match verdict {
            EventVerdict::Pass => self.list(event, event.data),
            EventVerdict::Replace(new) => Ok(match self.list(event, &new)? {
                EventVerdict::Pass => EventVerdict::Replace(new),
                other => other,
            }),
            taken => Ok(taken),
        }
    }

    /// Decides on an event with a list.
    fn list(&mut self, event: SseEvent<'_>, data: &[u8]) -> Result<EventVerdict, SseError> {
        // A client that is less strict may read what this cannot.
        let read = self.lists.read(data, None).map_err(|_| SseError::Unreadable)?;
        if let Some(filling) = &mut self.filling {
            return Ok(filling.begin(event, read));
        }
        Ok(match read.filtered {
            Filtered::Edited(new) => EventVerdict::Replace(new),
            Filtered::Same => EventVerdict::Pass,
        })
    }
}
