//! What a server asks of its client on one stream of events, judged as it comes.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::Uri;

use super::{budget::HeldBytes, failure::RequestFailure, server_answers::AnswerPath, state::Proxy};
use crate::{
    answer_rate::AnswerRate,
    mcp::{
        scan::ReplyTo,
        server_message::{ServerMessage, UnclearMessage, read},
        sse::{self, EventVerdict, SseEvent},
    },
    pending::PendingCall,
    server_judge::{ServerMessageSource, ServerMessageVerdict},
};

/// The most messages of one stream on which decisions are awaited at once.
const MOST_AWAITED: usize = 16;

/// The most messages in two pieces of a stream for which no other stream has to wait.
const MOST_AT_ONCE: usize = 4;

/// The bytes that are read at once of a stream on which the server asks for much, or half of them where it floods.
const PART: usize = 1024;

/// How long a stream is not read, between two pieces, on which the server floods: it goes on to ask for what it is denied. That costs a processor
/// little then, however fast it asks. After so many denials in a piece, it is not read for as many times longer.
const PAUSE: Duration = Duration::from_millis(1);
const DENIED_AT_ONCE: u32 = 4;

/// How long after the last denial too many a server counts as one that floods.
const FLOOD: Duration = Duration::from_millis(200);

/// What is waited for before more of a stream is read.
pub type OthersTurn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Judges what a server asks on one stream.
pub struct StreamJudge {
    proxy: Proxy,
    server: String,
    /// The session in the client's headers.
    session: String,
    path: Option<Arc<AnswerPath>>,
    awaited: Vec<AwaitedMessage>,
    ready: VecDeque<(Bytes, HeldBytes)>,
    /// The messages of the piece that is read that were judged, and those of the one before.
    judged: (usize, usize),
    /// How much more it may be denied before it floods.
    denials: AnswerRate,
    /// What it was denied in the piece that is read.
    denied: u32,
    floods_until: Option<Instant>,
    /// It was logged that a message was unclear.
    has_told: bool,
}

/// Where the messages of a stream belong now.
#[derive(Clone, Copy)]
pub struct StreamPlace<'a> {
    /// The id of an HTTP+SSE stream, in place of the session.
    pub stream: Option<&'a str>,
    /// The endpoint of that stream.
    pub endpoint: Option<&'a Uri>,
    /// The call that the message may be an answer to.
    pub call: Option<&'a Arc<PendingCall>>,
}

/// A message on which the decision is awaited.
struct AwaitedMessage {
    decision: Pin<Box<dyn Future<Output = Result<ServerMessageVerdict, UnclearMessage>> + Send>>,
    /// Its event.
    text: Bytes,
    endpoint: Option<Uri>,
    room: HeldBytes,
}

impl StreamJudge {
    /// A judge of a stream in this session. The answers to the server go by this path; without one it gets none.
    pub fn new(proxy: Proxy, server: &str, session: &str, path: Option<Arc<AnswerPath>>) -> Self {
        let (server, session) = (server.to_owned(), session.to_owned());
        Self {
            proxy,
            server,
            session,
            path,
            awaited: Vec::new(),
            ready: VecDeque::new(),
            judged: (0, 0),
            denials: AnswerRate::new(Instant::now()),
            denied: 0,
            floods_until: None,
            has_told: false,
        }
    }

    /// Takes note that another piece of the stream is read.
    pub fn begin_piece(&mut self) {
        (self.judged, self.denied) = ((0, self.judged.0), 0);
        self.floods_until = self.floods_until.filter(|until| Instant::now() < *until);
    }

    /// Returns true where the server has asked for much just now.
    fn is_busy(&self) -> bool {
        self.judged.0 + self.judged.1 > MOST_AT_ONCE
    }

    /// How many bytes of the stream are read at once now. Nothing where it may be any number.
    pub fn part(&self) -> Option<usize> {
        if self.floods_until.is_some() { Some(PART / 2) } else { self.is_busy().then_some(PART) }
    }

    /// What is waited for before more of the stream is read: others of this worker have their turn, those too whose sockets have become ready
    /// meanwhile.
    pub fn others_turn(&self) -> Option<OthersTurn> {
        if self.floods_until.is_some() {
            return Some(Box::pin(tokio::time::sleep(PAUSE * (self.denied / DENIED_AT_ONCE).max(1))));
        }
        // To wake the task is not enough: the runtime looks at its sockets only after many tasks.
        if self.is_busy() { Some(Box::pin(tokio::task::yield_now())) } else { None }
    }

    /// Decides on an event in whose data something is asked for.
    pub fn event(&mut self, event: SseEvent<'_>, place: StreamPlace<'_>) -> EventVerdict {
        self.judged.0 += 1;
        let session = place.stream.unwrap_or(&self.session);
        let call = place.call.map(|call| call.answered());
        let source = ServerMessageSource { server: &self.server, session, call };
        let governor = &self.proxy.state.governor;
        let messages = match read(event.data) {
            Ok(messages) => messages,
            Err(why) => return self.unclear(&why, place),
        };
        if governor.may_wait_for(&self.server, &messages) {
            return self.wait(event, &messages, place);
        }
        match governor.judge_messages(source, event.data, &messages).now_or_never() {
            Some(verdict) => self.settled(verdict, place.endpoint),
            // Other policies came into force in between.
            None => self.wait(event, &messages, place),
        }
    }

    /// What becomes of an event that is not clear. A client that waits for an answer is told.
    fn unclear(&mut self, why: &UnclearMessage, place: StreamPlace<'_>) -> EventVerdict {
        self.refuse(why);
        let Some(call) = place.call else { return EventVerdict::TakeData };
        let failure = RequestFailure::Invalid(self.server.clone(), format!("its answer {why}"));
        EventVerdict::Replace(failure.answer(call.answered().reply).into())
    }

    fn settled(&mut self, verdict: ServerMessageVerdict, endpoint: Option<&Uri>) -> EventVerdict {
        match verdict {
            ServerMessageVerdict::Pass => EventVerdict::Pass,
            ServerMessageVerdict::Replace(new) => EventVerdict::Replace(new),
            ServerMessageVerdict::Take(answers) => {
                self.count_denied(answers.len());
                self.proxy.answer_server(&self.server, self.path.as_ref(), endpoint, answers);
                EventVerdict::TakeData
            }
        }
    }

    /// Takes note that so many messages of one text do not pass.
    fn count_denied(&mut self, messages: usize) {
        let now = Instant::now();
        for _ in 0..messages.max(1) {
            self.denied += 1;
            if !self.denials.take(now) {
                self.floods_until = Some(now + FLOOD);
            }
        }
    }

    /// Takes note that a message does not pass since it is not clear.
    fn refuse(&mut self, why: &UnclearMessage) {
        self.count_denied(1);
        self.proxy.state.governor.metrics.servers.count_refused_message(&self.server);
        if !std::mem::replace(&mut self.has_told, true) {
            tracing::warn!(server = self.server, %why, "a message of the server does not pass; others of its stream are not logged");
        }
    }

    /// Has the decision awaited. The event comes later, between two others.
    fn wait(&mut self, event: SseEvent<'_>, messages: &[ServerMessage<'_>], place: StreamPlace<'_>) -> EventVerdict {
        let room = self.proxy.state.budget.try_hold(event.text.len() + event.data.len());
        let Some(room) = room.filter(|_| self.awaited.len() < MOST_AWAITED) else { return self.overloaded(messages, place) };
        let governor = Arc::clone(&self.proxy.state.governor);
        let (server, data, call) = (self.server.clone(), event.data.to_vec(), place.call.cloned());
        let session = place.stream.unwrap_or(&self.session).to_owned();
        let decision = Box::pin(async move {
            let call = call.as_ref().map(|call| call.answered());
            governor.judge_message(ServerMessageSource { server: &server, session: &session, call }, &data).await
        });
        let (text, endpoint) = (Bytes::copy_from_slice(event.text), place.endpoint.cloned());
        self.awaited.push(AwaitedMessage { decision, text, endpoint, room });
        EventVerdict::TakeData
    }

    /// Refuses what cannot be decided on now: the server is told so, and so is a client that waits for an answer.
    fn overloaded(&mut self, messages: &[ServerMessage<'_>], place: StreamPlace<'_>) -> EventVerdict {
        let (mut answers, mut instead) = (Vec::new(), None);
        let to = |id: &str| ReplyTo { id: Some(id.to_owned().into()), ..ReplyTo::default() };
        for message in messages {
            match message {
                ServerMessage::Request { id, .. } => answers.push(RequestFailure::Overloaded.answer(&to(id.as_str()))),
                ServerMessage::Answer { id, .. } => {
                    let own = id.map(|id| to(id.as_str())).unwrap_or_default();
                    let reply = place.call.map_or(&own, |call| call.answered().reply);
                    instead = Some(RequestFailure::Overloaded.answer(reply));
                }
                ServerMessage::Plain | ServerMessage::Notification { .. } => {}
            }
        }
        self.count_denied(answers.len());
        self.proxy.answer_server(&self.server, self.path.as_ref(), place.endpoint, answers);
        instead.filter(|_| messages.len() == 1).map_or(EventVerdict::TakeData, |answer| EventVerdict::Replace(answer.into()))
    }

    /// Goes on with the decisions that are awaited.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        let mut at = 0;
        while let Some(awaited) = self.awaited.get_mut(at) {
            let Poll::Ready(judged) = awaited.decision.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            let AwaitedMessage { text, endpoint, room, .. } = self.awaited.swap_remove(at);
            let verdict = match judged {
                Ok(verdict) => self.settled(verdict, endpoint.as_ref()),
                Err(why) => {
                    self.refuse(&why);
                    EventVerdict::TakeData
                }
            };
            // Its id has passed already.
            match verdict {
                EventVerdict::Pass => self.ready.push_back((sse::without_id(&text), room)),
                EventVerdict::Replace(new) => self.ready.push_back((sse::with_data(&text, &new, false), room)),
                EventVerdict::Take | EventVerdict::TakeData => {}
            }
        }
    }

    /// The next event for the client, to be put between two of its stream, and the room that it takes.
    pub fn ready(&mut self) -> Option<(Bytes, HeldBytes)> {
        self.ready.pop_front()
    }

    /// Returns true where nothing is to come.
    pub fn is_done(&self) -> bool {
        self.awaited.is_empty() && self.ready.is_empty()
    }
}
