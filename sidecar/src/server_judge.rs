//! Decides what of a server's messages reaches a client, whatever carries them.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::Bytes;
use smallvec::SmallVec;
use toolweir_crds::{OperationKind, RequestName};
use toolweir_engine::{Call, Decision, Denial, Operation, json::Raw};

use crate::{
    approvals::asking_call::{AskingCall, WaitEnd},
    governor::{Decided, Governor},
    in_force::InForce,
    mcp::{
        answer,
        edits::Filtered,
        id::RequestId,
        is_method,
        request::{Message, parse},
        scan::ReplyTo,
        server_message::{InputAsks, ServerAsk, ServerMessage, UnclearMessage, read},
        sse::spells_ask,
    },
    outcome::Outcome,
    record::Arrival,
};

/// Where a message of a server comes from, and what it may be an answer to.
#[derive(Clone, Copy, Debug)]
pub struct ServerMessageSource<'a> {
    /// The server's name.
    pub server: &'a str,
    /// The client's session; empty where there is none.
    pub session: &'a str,
    /// The call on whose own answer the message comes; none where that is not known.
    pub call: Option<AnsweredCall<'a>>,
}

/// A call that is being answered.
#[derive(Clone, Copy, Debug)]
pub struct AnsweredCall<'a> {
    /// How it is answered in the server's stead.
    pub reply: &'a ReplyTo<'a>,
    /// What it asks for.
    pub operation: Operation<'a>,
}

/// What becomes of a message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessageVerdict {
    /// It passes as it came.
    Pass,
    /// The client gets this in its place.
    Replace(Vec<u8>),
    /// The client does not get it. The server gets these answers, in the client's name.
    Take(SmallVec<[Bytes; 1]>),
}

/// What becomes of something that a server asks for.
enum AskVerdict {
    Free,
    Denied(Box<Denial>),
}

/// Returns what a server asks for, as policies see it; none for the base protocol.
fn operation<'a>(ask: &'a ServerAsk<'_>) -> Option<Operation<'a>> {
    let method = &*ask.method;
    match RequestName::ALL.into_iter().find(|name| name.method() == method) {
        Some(name) => Some(Operation::request(name)),
        None if method == "ping" => None,
        None => Some(Operation::other(method)),
    }
}

impl Governor {
    /// Returns true where deciding on messages of a server may have to wait, for counts that pods share or for a person.
    pub fn may_wait_for(&self, server: &str, messages: &[ServerMessage<'_>]) -> bool {
        let in_force = self.in_force();
        let waits = |ask: &ServerAsk<'_>| {
            let call = |operation| Call { server, operation, arguments: None, session: "", seen: None };
            operation(ask).is_some_and(|operation| in_force.engine.may_wait(&call(operation)))
        };
        messages.iter().any(|message| match message {
            ServerMessage::Plain => false,
            ServerMessage::Request { ask, .. } => waits(ask),
            ServerMessage::Notification { input, .. } | ServerMessage::Answer { input, .. } => input.asks().any(waits),
        })
    }

    /// Decides on a text of a server, and counts what it asks for.
    ///
    /// # Errors
    /// Clients could find different things in the text; it must not pass.
    pub async fn judge_message(
        self: &Arc<Self>,
        source: ServerMessageSource<'_>,
        text: &[u8],
    ) -> Result<ServerMessageVerdict, UnclearMessage> {
        if !spells_ask(text) {
            return Ok(ServerMessageVerdict::Pass);
        }
        Ok(self.judge_messages(source, text, &read(text)?).await)
    }

    /// Decides on the messages that were read of a text. It does not wait unless [`Governor::may_wait_for`] says so.
    pub async fn judge_messages(
        self: &Arc<Self>,
        source: ServerMessageSource<'_>,
        text: &[u8],
        messages: &[ServerMessage<'_>],
    ) -> ServerMessageVerdict {
        let in_force = arc_swap::Guard::into_inner(self.in_force());
        let judge = MessageJudge { governor: self, in_force, source };
        if let [one] = messages {
            return judge.message(one, text).await;
        }
        // A batch passes whole, or not at all.
        let (mut passes, mut answers) = (true, SmallVec::new());
        for one in messages {
            match judge.message(one, text).await {
                ServerMessageVerdict::Pass => {}
                ServerMessageVerdict::Replace(_) => passes = false,
                ServerMessageVerdict::Take(own) => {
                    passes = false;
                    answers.extend(own);
                }
            }
        }
        if passes { ServerMessageVerdict::Pass } else { ServerMessageVerdict::Take(answers) }
    }
}

/// Decides on the messages of one text.
struct MessageJudge<'a> {
    governor: &'a Arc<Governor>,
    in_force: Arc<InForce>,
    source: ServerMessageSource<'a>,
}

impl MessageJudge<'_> {
    async fn message(&self, message: &ServerMessage<'_>, text: &[u8]) -> ServerMessageVerdict {
        match message {
            ServerMessage::Plain => ServerMessageVerdict::Pass,
            ServerMessage::Request { id, ask } => self.request(*id, ask).await,
            // Some clients may do what a request asks for that has no id.
            ServerMessage::Notification { method, uri, input } => {
                let ask = ServerAsk { method: method.clone(), params: None };
                let is_request = !method.starts_with("notifications/");
                if is_request && !matches!(self.ask(&ask, None).await, AskVerdict::Free) {
                    return ServerMessageVerdict::Take(SmallVec::new());
                }
                if !is_request && !self.may_tell(method, uri.as_deref()) {
                    return ServerMessageVerdict::Take(SmallVec::new());
                }
                if method == "notifications/cancelled" {
                    self.cancelled(text);
                }
                self.input(input, text, |_| None).await
            }
            ServerMessage::Answer { id, task, input } => {
                self.learn_task(task.as_deref());
                self.input(input, text, |denial| {
                    let unknown = ReplyTo { id: id.map(|id| Cow::Borrowed(id.as_str())), ..ReplyTo::default() };
                    let reply = self.source.call.map_or(&unknown, |call| call.reply);
                    Some(answer::denial_of(reply, denial).to_vec())
                })
                .await
            }
        }
    }

    async fn request(&self, id: Raw<'_>, ask: &ServerAsk<'_>) -> ServerMessageVerdict {
        match self.ask(ask, Some(id)).await {
            AskVerdict::Free => ServerMessageVerdict::Pass,
            AskVerdict::Denied(denial) => ServerMessageVerdict::Take([answer::refusal_of_client(id, &denial)].into()),
        }
    }

    /// Decides on what an answer or a notification asks for. `denied` gives what takes its place where nothing is left.
    async fn input(
        &self,
        input: &InputAsks<'_>,
        text: &[u8],
        denied: impl FnOnce(&Denial) -> Option<Vec<u8>>,
    ) -> ServerMessageVerdict {
        let (mut stays, mut first): (Vec<bool>, Option<Box<Denial>>) = (Vec::new(), None);
        for ask in input.asks() {
            let verdict = self.ask(ask, None).await;
            stays.push(matches!(verdict, AskVerdict::Free));
            if let AskVerdict::Denied(denial) = verdict {
                first.get_or_insert(denial);
            }
        }
        let Some(denial) = first else { return ServerMessageVerdict::Pass };
        if stays.contains(&true) {
            return match input.without(text, &stays) {
                Filtered::Edited(edited) => ServerMessageVerdict::Replace(edited),
                Filtered::Same => ServerMessageVerdict::Pass,
            };
        }
        denied(&denial).map_or(ServerMessageVerdict::Take(SmallVec::new()), ServerMessageVerdict::Replace)
    }

    /// Decides on one thing that is asked for. A request of this id holds its places until it is answered.
    async fn ask(&self, ask: &ServerAsk<'_>, id: Option<Raw<'_>>) -> AskVerdict {
        let ServerMessageSource { server, session, .. } = self.source;
        let Some(operation) = operation(ask) else { return AskVerdict::Free };
        let (arrived, call) = (Arrival::now(), Call { server, operation, arguments: ask.params, session, seen: None });
        if operation.method.starts_with("tasks/") && self.may_have_tasks() {
            self.governor.record(&self.in_force, &call, Decision::allowed_freely(), arrived).1.finish(Outcome::Ok);
            return AskVerdict::Free;
        }
        let (decided, record) = match self.governor.decide_shared(&self.in_force, &call, arrived).await {
            Ok(decided) => decided,
            Err(asking) => {
                // It does not wait for the person: the server may ask again.
                let asked = AskingCall::new(self.governor, Arc::clone(&self.in_force), &call, asking, arrived);
                let settled = asked.settle(|| None, std::future::pending::<WaitEnd>()).await;
                (settled.decided, settled.record)
            }
        };
        match decided {
            Decided::Allowed(permit, _) => {
                record.finish(Outcome::Ok);
                if let Some(id) = id.and_then(RequestId::read) {
                    self.governor.server_requests.keep(server, session, id, permit, Instant::now());
                }
                AskVerdict::Free
            }
            Decided::Denied(denial) => {
                if self.governor.denied_lines.is_written(server, arrived.instant) {
                    record.finish(Outcome::Denied);
                } else {
                    record.forget();
                }
                AskVerdict::Denied(denial)
            }
        }
    }

    /// Returns true where a client may have made tasks for the server: for its sampling or elicitation.
    fn may_have_tasks(&self) -> bool {
        [RequestName::Sampling, RequestName::Elicitation]
            .into_iter()
            .any(|name| self.in_force.engine.may_use(self.source.server, Operation::request(name), None))
    }

    /// Returns true where a client may be told this: of a resource that it may read, and by a method that MCP has, or that policies let by.
    fn may_tell(&self, method: &str, uri: Option<&str>) -> bool {
        let server = self.source.server;
        let operation = match uri {
            Some(uri) if method == "notifications/resources/updated" => Operation::resource(uri).by(method),
            _ if is_method(method) => return true,
            _ => Operation::other(method),
        };
        let call = Call { server, operation, arguments: None, session: self.source.session, seen: None };
        let decision = self.in_force.engine.decide_use(&call);
        if decision.denial().is_none() && operation.kind == OperationKind::Resource {
            return true;
        }
        let (decided, record) = self.governor.record(&self.in_force, &call, decision, Arrival::now());
        let is_allowed = matches!(decided, Decided::Allowed(..));
        record.finish(if is_allowed { Outcome::Ok } else { Outcome::Dropped });
        is_allowed
    }

    /// Frees the places of a request that its server cancels.
    fn cancelled(&self, text: &[u8]) {
        let ServerMessageSource { server, session, .. } = self.source;
        if let Ok(Message::Request(request)) = parse(text)
            && let Some(id) = request.cancels().and_then(RequestId::read)
        {
            self.governor.server_requests.ended(server, session, id);
        }
    }

    /// Remembers the task that a call of a tool has made.
    fn learn_task(&self, task: Option<&str>) {
        let Some((task, call)) = task.zip(self.source.call) else { return };
        if call.operation.kind == OperationKind::Tool {
            self.governor.tasks.learn(self.source.server, task, call.operation.name);
        }
    }
}
