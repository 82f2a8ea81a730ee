//! The answer to a POST that is no stream of events: held until it was judged, and passed on as it came.
//!
//! Most are small and come in one piece, which is looked at and passes as it is. A large one is held as far as it has to be; its rest is
//! looked at as it passes.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, header, response::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use toolweir_engine::{Denial, Permit, ResultLimit};

use super::{
    answer_head::{outcome_of, without_body},
    body::ResponseBody,
    budget::HeldBytes,
    event_filter::SMALL,
    failure::RequestFailure,
    list_changes::DeclarationWatch,
    replies::message,
    request_guard::ServerGuard,
    response_kind::{AnswerContext, ResponseKind},
    rest_of_answer::{CutOff, RestOfAnswer},
    server_answers::AnswerPath,
    state::Proxy,
};
use crate::{
    mcp::{
        answer,
        ask_finder::AskFinder,
        headers::SESSION_ID,
        sse::{KeyFinder, KnownKeys, spells_ask},
    },
    outcome::Outcome,
    server_judge::{AnsweredCall, ServerMessageSource, ServerMessageVerdict},
};

/// The largest answer of a known length, in bytes, that is held to its end though nothing in its beginning says that it has to be. Of
/// others a piece is held: a client that does not read has no more of the sidecar's memory than that.
const HELD: usize = 64 * 1024;

/// What was read of an answer.
#[derive(Default)]
struct Begun {
    first: Bytes,
    /// All of it, once it has come in several pieces.
    all: BytesMut,
    held: Option<HeldBytes>,
    is_whole: bool,
    /// Looks for what says that it has to be held, and how far it has looked.
    keys: KeyFinder,
    looked: usize,
    spells_ask: bool,
}

impl Begun {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn bytes(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        self.all.extend_from_slice(&std::mem::take(&mut self.first));
        self.all.extend_from_slice(&piece);
    }

    /// Returns true where the server may ask for something in what has come. Each byte is looked at once.
    fn may_ask(&mut self) -> bool {
        let bytes = if self.all.is_empty() { &self.first[..] } else { &self.all[..] };
        let new = bytes.get(self.looked..).unwrap_or_default();
        self.spells_ask |= self.keys.feed(new).any_of(KnownKeys::ASKS);
        self.looked = bytes.len();
        self.spells_ask
    }

    fn into_piece(self) -> (Bytes, Option<HeldBytes>) {
        (if self.all.is_empty() { self.first } else { self.all.freeze() }, self.held)
    }
}

/// What the rest of an answer is held to of which this was read. Nothing where it may be anything.
fn rest_of_answer(
    begun: &Begun,
    limit: Option<&ResultLimit>,
    at: &ServerGuard<'_, '_>,
) -> Result<Option<Box<RestOfAnswer>>, RequestFailure> {
    let left = limit.map(|limit| limit.max.saturating_sub(begun.len() as u64));
    let asks = if at.asks_are_free() { None } else { Some(AskFinder::default()) };
    if left.is_none() && asks.is_none() {
        return Ok(None);
    }
    let mut rest = RestOfAnswer { server: at.server.name.clone(), asks, left };
    if rest.asks.as_mut().is_some_and(|asks| asks.push(begun.bytes())) {
        return Err(at.invalid(format!("{}; it has more than {} bytes", CutOff::Asks, begun.len())));
    }
    Ok(Some(Box::new(rest)))
}

/// An answer that is to be judged.
pub struct Unjudged {
    /// Its head.
    pub parts: Parts,
    /// Its body.
    pub body: Incoming,
    /// Places among the calls under way.
    pub permit: Permit,
}

/// What becomes of an answer that was read whole.
enum WholeVerdict {
    Pass,
    Replace(Vec<u8>),
    /// It does not pass, and this is why.
    Refuse(String),
}

impl Proxy {
    /// Judges an answer that is no stream of events, and passes it on.
    pub(super) async fn judged(
        &self,
        answer: Unjudged,
        asked: &HeaderMap,
        kind: &ResponseKind<'_>,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        let Unjudged { mut parts, mut body, permit } = answer;
        let outcome = outcome_of(parts.status);
        let context = if let ResponseKind::Answer(context) = kind { Some(*context) } else { None };
        let limit = context.and_then(|context| context.result_limit.as_deref());
        let length = body.size_hint().exact();
        if let Some((context, limit)) = context.zip(limit)
            && let Some(length) = length.filter(|length| *length > limit.max)
        {
            return Ok(self.too_large((context, limit), (length, true), asked, at));
        }
        let before = Instant::now();
        let begun = self.begin_answer(&mut body, limit).await;
        at.waited_since(before);
        let begun = begun.map_err(|()| RequestFailure::Upstream(at.server.name.clone()))?;
        let come = begun.len() as u64;
        if let Some((context, limit)) = context.zip(limit)
            && come > limit.max
        {
            return Ok(self.too_large((context, limit), (come, begun.is_whole), asked, at));
        }
        let mut rest = None;
        if !begun.is_whole {
            rest = rest_of_answer(&begun, limit, at)?;
        } else if memchr::memchr(0, begun.bytes()).is_some() && !at.asks_are_free() {
            return without_body(
                parts,
                "it has a NUL character, and some clients read such a text in another encoding".to_owned(),
                at,
            );
        } else if spells_ask(begun.bytes()) {
            // Boxed: it is rare, and an answer that needs it not is not made larger by it.
            match Box::pin(self.judge_whole(begun.bytes(), &parts, asked, context, at)).await {
                WholeVerdict::Pass => {}
                WholeVerdict::Replace(new) => {
                    parts.headers.remove(header::CONTENT_LENGTH);
                    return Ok((Response::from_parts(parts, ResponseBody::whole(new)), outcome));
                }
                WholeVerdict::Refuse(why) => return without_body(parts, why, at),
            }
        }
        let stop = kind.is_kept_open().then(|| self.stop());
        let session = parts.headers.get(SESSION_ID).filter(|_| *kind == ResponseKind::Initialize);
        let declares = session.map(|id| Box::new(DeclarationWatch::new(&self.state, &at.server.name, id.as_bytes())));
        let inner = (!begun.is_whole).then_some(body);
        let begun = Some(self.for_client(begun)).filter(|(bytes, _)| !bytes.is_empty());
        Ok((Response::from_parts(parts, ResponseBody::Stream { begun, inner, permit, stop, declares, rest }), outcome))
    }

    /// Reads an answer to its end, or as far as it is held: one with a bound on its result and no length as far as that goes.
    async fn begin_answer(&self, body: &mut Incoming, limit: Option<&ResultLimit>) -> Result<Begun, ()> {
        let largest = self.state.limits.body;
        let most = match (limit, body.size_hint().exact()) {
            (Some(limit), None) => usize::try_from(limit.max).unwrap_or(usize::MAX).min(largest),
            (_, Some(length)) if length <= HELD as u64 => HELD,
            _ => 0,
        };
        let mut begun = Begun::default();
        loop {
            if body.is_end_stream() {
                begun.is_whole = true;
                return Ok(begun);
            }
            if begun.len() > 0 {
                let is_held = begun.len() <= most || (begun.len() <= largest && begun.may_ask());
                if !is_held || !self.make_room(&mut begun) {
                    return Ok(begun);
                }
            }
            match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => begun.push(data),
                // Trailers.
                Some(Ok(Err(_))) => {}
                Some(Err(_)) => return Err(()),
                None => {
                    begun.is_whole = true;
                    return Ok(begun);
                }
            }
        }
    }

    /// Takes room for another piece, at once or not at all. The first is no more than any connection has room for.
    fn make_room(&self, begun: &mut Begun) -> bool {
        let needed = begun.len() + SMALL;
        if begun.held.as_ref().is_some_and(|held| held.bytes() >= needed) {
            return true;
        }
        let room = needed.max(2 * begun.all.len());
        drop(begun.held.take());
        begun.held = self.state.budget.try_hold(room);
        begun.held.is_some()
    }

    /// What was read of an answer, on its way to its client: it takes the room of answers from now on, if there is any.
    fn for_client(&self, begun: Begun) -> (Bytes, Option<HeldBytes>) {
        let (bytes, held) = begun.into_piece();
        let held = held.map(|mut held| {
            held.shrink(bytes.len());
            self.state.budget.try_hold_for_client(bytes.len()).unwrap_or(held)
        });
        (bytes, held)
    }

    /// The denial in place of a result that is larger than may pass.
    fn too_large(
        &self,
        (context, limit): (&AnswerContext<'_>, &ResultLimit),
        (bytes, is_whole): (u64, bool),
        asked: &HeaderMap,
        at: &ServerGuard<'_, '_>,
    ) -> (Response<ResponseBody>, Outcome) {
        let denial = Denial::result_too_large(limit, context.operation, bytes, is_whole);
        self.state.governor.count_denied_result(&at.request.in_force, &at.server.name, context.operation, &denial);
        (message(asked, answer::denial_of(&context.reply, &denial)), Outcome::ResultTooLarge)
    }

    /// Judges an answer in which something is asked for.
    async fn judge_whole(
        &self,
        bytes: &[u8],
        parts: &Parts,
        asked: &HeaderMap,
        context: Option<&AnswerContext<'_>>,
        at: &ServerGuard<'_, '_>,
    ) -> WholeVerdict {
        let opened = parts.headers.get(SESSION_ID);
        let session = asked.get(SESSION_ID).or(opened).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let call = context.map(|context| AnsweredCall { reply: &context.reply, operation: context.operation });
        let source = ServerMessageSource { server: &at.server.name, session, call };
        match self.state.governor.judge_message(source, bytes).await {
            Ok(ServerMessageVerdict::Pass) => WholeVerdict::Pass,
            Ok(ServerMessageVerdict::Replace(new)) => WholeVerdict::Replace(new),
            Ok(ServerMessageVerdict::Take(answers)) => {
                if !answers.is_empty() {
                    let path = AnswerPath::new(asked, opened, &at.server, &self.state.budget);
                    self.answer_server(&at.server.name, path.as_ref(), None, answers);
                }
                WholeVerdict::Refuse("it says something that no policy allows in place of an answer".to_owned())
            }
            Err(why) => {
                self.state.governor.metrics.servers.count_refused_message(&at.server.name);
                WholeVerdict::Refuse(format!("it {why}"))
            }
        }
    }

    /// Judges the answer to a request for a list, which was read whole. Gives what takes its place, if that is something else.
    pub(super) async fn judge_list(
        &self,
        bytes: &[u8],
        parts: &Parts,
        asked: &HeaderMap,
        at: &ServerGuard<'_, '_>,
    ) -> Result<Option<Bytes>, RequestFailure> {
        if !spells_ask(bytes) {
            return Ok(None);
        }
        match Box::pin(self.judge_whole(bytes, parts, asked, None, at)).await {
            WholeVerdict::Pass => Ok(None),
            WholeVerdict::Replace(new) => Ok(Some(new.into())),
            WholeVerdict::Refuse(why) => Err(at.invalid(why)),
        }
    }

    /// The path for answers to the server in the name of a client that sent these headers.
    pub(super) fn answer_path(&self, asked: &HeaderMap, parts: &Parts, at: &ServerGuard<'_, '_>) -> Option<Arc<AnswerPath>> {
        AnswerPath::new(asked, parts.headers.get(SESSION_ID), &at.server, &self.state.budget)
    }
}
