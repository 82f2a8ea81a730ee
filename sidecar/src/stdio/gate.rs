//! Decides on the messages between one client and one server.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use toolweir_crds::OperationKind;
use toolweir_engine::{Call, Denial, Operation};

use crate::{
    account::Account,
    governor::{Decided, Governor, decision_without_id},
    in_force::InForce,
    lists::{ExpectedPages, LARGEST_REQUEST, ListRequest, ListRequests, PageSource},
    mcp::{
        answer,
        changes::Listeners,
        client_ask::ClientAsk,
        id::RequestId,
        list_kind::ListKind,
        method_label, own_list,
        request::{Message, Refusal, Request, parse},
        scan::{ReplyTo, Scan},
    },
    outcome::Outcome,
    own_lists::{OwnLists, SoughtTool},
    pending::{CancelTarget, PendingCall, PendingRequest, PendingRequests},
    proxy::failure::RequestFailure,
    record::{Arrival, Record},
};

/// Decides on the messages of one client and one server.
#[derive(Debug)]
pub struct Gate {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The server's name in the policy.
    pub server: String,
    /// The time for which the client may keep a list.
    pub list_ttl: Duration,
    /// Requests without an answer yet.
    pub under_way: PendingRequests,
    /// The lists that are asked for.
    pub lists: ToolListState,
}

/// The lists that are asked for between a client and a server.
#[derive(Debug, Default)]
pub struct ToolListState {
    /// Those that the client has asked for.
    pub(super) asked: ListRequests<()>,
    /// Those that the sidecar has asked for.
    pub(super) expected: ExpectedPages,
    /// Those that the sidecar asks for by itself.
    pub(super) own: OwnLists,
    /// The ways in which the client is told of changes.
    listeners: Mutex<Listeners>,
}

impl ToolListState {
    /// No lists yet. For those that the sidecar asks for by itself, a call waits so long.
    pub fn with_wait(wait: Duration) -> Self {
        Self { own: OwnLists::new(wait), ..Self::default() }
    }
}

/// The handling of a client's message.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessageAction {
    /// Pass it on to the server.
    Forward,
    /// Pass it on to the server; then this request is no longer under way.
    Cancel(CancelTarget),
    /// Give the client this answer.
    Answer(Bytes),
    /// Discard it.
    Drop,
    /// Ask a person for the call, and decide on it then ([`Gate::ask`]).
    Ask,
    /// Ask the server for its tools first ([`Gate::list_for_call`]), then decide on it ([`Gate::decide`]).
    List {
        /// The tool that it calls.
        tool: String,
    },
}

impl Gate {
    /// Decides on a message of the client that comes just now: a line without its end.
    pub fn from_client(&self, line: &[u8]) -> ClientMessageAction {
        self.decide(line, Arrival::now(), true)
    }

    /// Returns true where a message may wait until a list is there. An answer of the client may be what the server waits for.
    pub fn can_wait(line: &[u8]) -> bool {
        matches!(read(line), Ok(Message::Request(_)))
    }

    /// Lists the server's tools for a call of this tool, until `until` at the latest.
    pub async fn list_for_call(&self, call: &[u8], tool: &str, pages: &mut impl PageSource, until: Instant) {
        let sought = SoughtTool { server: &self.server, tool };
        self.lists.own.look(&self.governor, sought, |id| own_list::for_call(call, id), pages, until).await;
    }

    /// Decides on a message of the client that came then. `may_list` says whether a list may be asked for first.
    pub fn decide(&self, line: &[u8], arrived: Arrival, may_list: bool) -> ClientMessageAction {
        let in_force = self.governor.in_force();
        match read(line) {
            Err(refusal) => {
                self.count(&in_force, "_none", Outcome::Refused);
                tracing::info!(server = self.server, failure = refusal.in_general(), "request refused");
                ClientMessageAction::Answer(RequestFailure::from(refusal).answer(&Scan::of(line)))
            }
            Ok(Message::Answer { id }) => {
                if let Some(id) = id.and_then(RequestId::read) {
                    self.governor.server_requests.ended(&self.server, "", id);
                }
                let (action, outcome) = if self.closed(&in_force).is_some() {
                    (ClientMessageAction::Drop, Outcome::Dropped)
                } else {
                    (ClientMessageAction::Forward, Outcome::Ok)
                };
                self.count(&in_force, "_answer", outcome);
                action
            }
            Ok(Message::Request(request)) => match request.params.name.as_deref() {
                Some(tool) if may_list && self.needs_list(&in_force, &request, tool) => {
                    ClientMessageAction::List { tool: tool.to_owned() }
                }
                _ => self.request(&in_force, &request, line, arrived),
            },
        }
    }

    /// Returns true where the decision on a call needs a list.
    fn needs_list(&self, in_force: &InForce, request: &Request<'_>, tool: &str) -> bool {
        request.is_tool_call() && request.id.is_some() && SoughtTool { server: &self.server, tool }.is_needed(in_force)
    }

    /// Counts a message of the client.
    pub(super) fn count(&self, in_force: &InForce, method: &str, outcome: Outcome) {
        self.governor.count(in_force.server(&self.server).map(|server| &**server), method, outcome);
    }

    /// Refuses a line that is longer than a message of the client may be.
    pub fn refuse_too_long(&self, longest: usize, asked: &ReplyTo<'_>) -> ClientMessageAction {
        self.count(&self.governor.in_force(), "_none", Outcome::Refused);
        let failure = RequestFailure::from(Refusal::TooLarge(longest));
        tracing::info!(server = self.server, failure = failure.in_general(), "request refused");
        ClientMessageAction::Answer(failure.answer(asked))
    }

    /// Decides on a request or a notification of the client, and counts it, now or with its answer.
    fn request(&self, in_force: &InForce, request: &Request<'_>, line: &[u8], arrived: Arrival) -> ClientMessageAction {
        if request.method == "notifications/cancelled" {
            self.listeners().client_said(line);
        }
        let method = method_label(&request.method);
        let kept = match self.register(in_force, request) {
            Ok(kept) => kept,
            Err(refused) => return refused,
        };
        let (action, outcome) = match ClientAsk::of(request) {
            Ok(ClientAsk::Operation(operation)) => self.operation(in_force, (request, operation), kept, arrived),
            Ok(ask) => self.other_request(in_force, (request, &ask), line, kept, arrived),
            Err(refusal) => {
                let failure = RequestFailure::from(refusal);
                tracing::info!(server = self.server, method, failure = failure.in_general(), "request refused");
                (ClientMessageAction::Answer(failure.answer(&ReplyTo::from(request))), Some(failure.outcome()))
            }
        };
        if let Some(outcome) = outcome {
            self.count(in_force, method, outcome);
        }
        action
    }

    /// Keeps a request until its answer comes, which is known by its id alone.
    ///
    /// # Errors
    /// It is refused, and counted.
    pub(super) fn register(
        &self,
        in_force: &InForce,
        request: &Request<'_>,
    ) -> Result<Option<PendingRequest<'_>>, ClientMessageAction> {
        request.id.map(|id| self.under_way.register(id)).transpose().map_err(|why| {
            let (failure, method) = (RequestFailure::from(why), method_label(&request.method));
            self.count(in_force, method, failure.outcome());
            tracing::info!(server = self.server, method, failure = failure.in_general(), "request refused");
            ClientMessageAction::Answer(failure.answer(&ReplyTo::from(request)))
        })
    }

    /// Decides on a request that is no call. Returns what became of it as well, if that is known already.
    fn other_request(
        &self,
        in_force: &InForce,
        (request, ask): (&Request<'_>, &ClientAsk<'_>),
        line: &[u8],
        mut kept: Option<PendingRequest<'_>>,
        arrived: Arrival,
    ) -> (ClientMessageAction, Option<Outcome>) {
        let allowed = match self.closed(in_force) {
            None => self.governor.decide_references(in_force, (&self.server, ""), (ask, &request.method), arrived),
            Some(denial) => Err(denial),
        };
        match allowed {
            Ok(limit) => {
                self.keep_list_request(request, line);
                let outcome = match (&mut kept, ReplyTo::later(request)) {
                    (Some(kept), Some(asked)) => {
                        let server = in_force.server(&self.server);
                        kept.attach(Account::new(&self.governor, server, method_label(&request.method), None), Some(asked));
                        kept.limit_result(PendingCall::new(request, Operation::other(&request.method), limit));
                        kept.mark_sent();
                        None
                    }
                    _ => Some(Outcome::Ok),
                };
                let cancelled = request.cancels().and_then(|id| self.under_way.find(id));
                (cancelled.map_or(ClientMessageAction::Forward, ClientMessageAction::Cancel), outcome)
            }
            Err(denial) if request.id.is_some() => {
                (ClientMessageAction::Answer(answer::denial(request, &denial)), Some(Outcome::Denied))
            }
            Err(_) => (ClientMessageAction::Drop, Some(Outcome::Dropped)),
        }
    }

    /// Keeps a request for a list that is about to be sent.
    fn keep_list_request(&self, request: &Request<'_>, line: &[u8]) {
        let Some(id) = request.id else { return };
        drop(self.lists.asked.take(id));
        if ListKind::of_method(&request.method).is_some()
            && line.len() <= LARGEST_REQUEST
            && let Some(asked) = ListRequest::new(id, &Bytes::copy_from_slice(line))
        {
            self.lists.asked.keep(asked, ());
        }
    }

    /// Locks the ways in which the client is told of changes.
    pub(super) fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.lists.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The denial of everything, if there is one.
    fn closed(&self, in_force: &InForce) -> Option<Denial> {
        match in_force.server(&self.server) {
            None => Some(Denial::no_policy(&self.server, Operation::tool(""))),
            Some(_) => in_force.engine.closed(&self.server),
        }
    }

    /// Decides on an operation. Returns what became of it as well, if that is known already.
    fn operation(
        &self,
        in_force: &InForce,
        (request, operation): (&Request<'_>, Operation<'_>),
        kept: Option<PendingRequest<'_>>,
        arrived: Arrival,
    ) -> (ClientMessageAction, Option<Outcome>) {
        let seen = in_force.seen_by(&self.server, operation);
        let arguments = request.params.arguments;
        let call = Call { server: &self.server, operation, arguments, session: "", seen: seen.as_deref() };
        let Some((kept, asked)) = kept.zip(ReplyTo::later(request)) else {
            return self.notification(in_force, &call, arrived);
        };
        match self.governor.decide(in_force, &call, arrived) {
            Ok(decided) => self.decided_call(in_force, (request, operation), (kept, asked), decided),
            Err(_) => (ClientMessageAction::Ask, None),
        }
    }

    /// Decides on an operation without an id: on a notification that is not known, or a request that is none.
    fn notification(&self, in_force: &InForce, call: &Call<'_>, arrived: Arrival) -> (ClientMessageAction, Option<Outcome>) {
        let decision = match call.operation.kind {
            OperationKind::Other => in_force.engine.decide(call, self.governor.now()),
            _ => decision_without_id(call),
        };
        let (decided, record) = self.governor.record(in_force, call, decision, arrived);
        let (action, outcome) = match decided {
            Decided::Allowed(..) => (ClientMessageAction::Forward, Outcome::Ok),
            Decided::Denied(_) => (ClientMessageAction::Drop, Outcome::Dropped),
        };
        record.finish(outcome);
        (action, Some(outcome))
    }

    /// Does what was decided on a call. Returns what became of it as well, if that is known already.
    pub(super) fn decided_call(
        &self,
        in_force: &InForce,
        (request, operation): (&Request<'_>, Operation<'_>),
        (mut kept, asked): (PendingRequest<'_>, ReplyTo<'static>),
        decided: (Decided, Record),
    ) -> (ClientMessageAction, Option<Outcome>) {
        match decided {
            (Decided::Allowed(permit, limit), record) => {
                kept.hold_places(permit);
                kept.limit_result(PendingCall::new(request, operation, limit));
                let server = in_force.server(&self.server);
                kept.attach(Account::new(&self.governor, server, method_label(&request.method), Some(record)), Some(asked));
                kept.mark_sent();
                (ClientMessageAction::Forward, None)
            }
            (Decided::Denied(denial), record) => {
                record.finish(Outcome::Denied);
                (ClientMessageAction::Answer(answer::denial(request, &denial)), Some(Outcome::Denied))
            }
        }
    }

    /// Ends the requests under way, since the server has ended, and returns their answers.
    pub fn server_ended(&self) -> Vec<Bytes> {
        let unanswered = self.under_way.fail_all();
        let failure = RequestFailure::Ended(self.server.clone());
        if !unanswered.is_empty() {
            let (count, outcome) = (unanswered.len(), failure.outcome().as_str());
            tracing::warn!(server = self.server, requests = count, outcome, "the server ended before it answered");
        }
        unanswered.iter().map(|asked| failure.answer(asked)).collect()
    }
}

/// Reads a message of the client.
pub(super) fn read(line: &[u8]) -> Result<Message<'_>, Refusal> {
    // Python's servers end a line at CR too, so that what stands after one would be a message of its own there.
    if memchr::memchr(b'\r', line).is_some() {
        return Err(Refusal::CarriageReturn);
    }
    parse(line)
}
