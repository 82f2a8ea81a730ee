//! A call of a tool, or another operation: decided on, sent if it is allowed, and recorded.

use bytes::Bytes;
use http::{Method, Response};
use hyper::body::Incoming;
use toolweir_crds::OperationKind;
use toolweir_engine::{Call, Operation, Permit};

use super::{
    answer_head::outcome_of,
    body::ResponseBody,
    budget::HeldBytes,
    cancel::CallName,
    failure::RequestFailure,
    post::{Requester, settle},
    replies::accepted,
    request_guard::{RequestGuard, ServerGuard},
    response_kind::{AnswerContext, ResponseKind},
    state::Proxy,
};
use crate::{
    account::Account,
    governor::{self, Decided},
    in_force::CredentialSlot,
    mcp::request::Request,
    outcome::Outcome,
    own_lists::SoughtTool,
    pending::PendingRequest,
    record::Record,
};

/// The outcome of a call whose answer would come on a stream, where the server did not accept it.
fn not_accepted(sent: &Result<Response<Incoming>, RequestFailure>) -> Option<Outcome> {
    match sent {
        Ok(response) if response.status().is_success() => None,
        Ok(response) => {
            Some(outcome_of(response.status())).filter(|outcome| *outcome != Outcome::Ok).or(Some(Outcome::UpstreamInvalid))
        }
        Err(failure) => Some(failure.outcome()),
    }
}

/// What a call has taken of which nothing was sent yet. Dropped, it gives that back.
struct Unsent(Option<Permit>);

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.give_back();
        }
    }
}

impl Proxy {
    /// The way of a message that asks for an operation.
    pub(super) async fn operation(
        &self,
        (message, operation): (&Request<'_>, Operation<'_>),
        name: &str,
        client: &Requester<'_>,
        pending: Option<PendingRequest<'_>>,
        body: (Bytes, HeldBytes),
        request: &mut RequestGuard<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        let governor = &self.state.governor;
        let session = client.session();
        let mut seen = request.in_force.seen_by(name, operation);
        let sought = SoughtTool { server: name, tool: operation.name };
        let is_tool = operation.kind == OperationKind::Tool;
        if is_tool && message.id.is_some() && seen.is_none() && sought.is_needed(&request.in_force) {
            // Boxed: it is rare, and a call that needs it not is not made larger by it.
            let listed = Box::pin(self.list_for_call(message, sought, (client, pending.as_ref()), &body.0, request));
            if listed.await {
                return Ok((accepted(), Outcome::Cancelled));
            }
            seen = request.in_force.seen_by(name, operation);
        }
        let call = Call { server: name, operation, arguments: message.params.arguments, session, seen: seen.as_deref() };
        if message.id.is_none() && operation.kind != OperationKind::Other {
            // A notification of a method that is none: a server may carry it out and nobody would know.
            let decision = governor::decision_without_id(&call);
            let (_, record) = governor.record(&request.in_force, &call, decision, request.arrived);
            record.finish(Outcome::Dropped);
            return Ok((accepted(), Outcome::Dropped));
        }
        let (decided, record) = match governor.decide_shared(&request.in_force, &call, request.arrived).await {
            Ok(decided) => decided,
            // Boxed as well: no other call is made larger by it.
            Err(asking) => {
                let asked = Box::pin(self.asked_call(message, &call, (client, pending.is_some()), body.0.len(), asking, request));
                let Some(decided) = asked.await else { return Ok((accepted(), Outcome::Cancelled)) };
                decided
            }
        };
        match decided {
            Decided::Denied(denial) => {
                record.finish(Outcome::Denied);
                client.deny(message, &denial)
            }
            Decided::Allowed(permit, limit) => match request.at_server() {
                Ok(mut at) => {
                    let context = AnswerContext::new(message, operation, limit);
                    let kind = ResponseKind::Answer(&context);
                    self.allowed_call(message, client, (permit, record), pending, body, (kind, &mut at)).await
                }
                Err(failure) => {
                    permit.give_back();
                    Err(failure)
                }
            },
        }
    }

    /// Sends a call that is allowed.
    async fn allowed_call(
        &self,
        message: &Request<'_>,
        client: &Requester<'_>,
        (mut permit, mut record): (Permit, Record),
        mut pending: Option<PendingRequest<'_>>,
        (bytes, held): (Bytes, HeldBytes),
        (kind, at): (ResponseKind<'_>, &mut ServerGuard<'_, '_>),
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        permit = self.wait_for_credential(permit, at).await;
        // What is written of a call whose answer comes on a stream waits for that.
        let record = match &mut pending {
            Some(pending) => {
                pending.hold_places(permit.split_places());
                pending.attach(Account::of_call(record), None);
                if let ResponseKind::Answer(context) = &kind {
                    pending.limit_result(Some(context.kept()));
                }
                pending.mark_sent();
                None
            }
            None => {
                self.make_cancellable(message, client, &at.server.name, &mut permit, &mut record);
                Some(record)
            }
        };
        let sent = match client.endpoint(at) {
            Ok(url) => self.send(&Method::POST, client.headers, url, bytes, at).await,
            Err(failure) => Err(failure),
        };
        drop(held);
        if let (Some(pending), Some(outcome)) = (&pending, not_accepted(&sent)) {
            pending.finish(outcome);
        }
        settle(pending, &sent);
        at.record = record;
        let passed = match sent {
            Ok(response) => self.pass(response, client.headers, at, permit, kind).await,
            Err(failure) => {
                if failure.nothing_sent() {
                    permit.give_back();
                }
                Err(failure)
            }
        };
        let Some(record) = at.record.take() else { return passed };
        let outcome =
            record.outcome_unless_cancelled(passed.as_ref().map_or_else(RequestFailure::outcome, |(_, outcome)| *outcome));
        record.finish(outcome);
        passed.map(|(response, _)| (response, outcome))
    }

    /// Waits where the server's credential has to be asked for first. A client that hangs up meanwhile gets back what it has taken:
    /// nothing was sent. Where none is to be had, sending says why.
    async fn wait_for_credential(&self, permit: Permit, at: &ServerGuard<'_, '_>) -> Permit {
        let credential = at.server.credential.as_ref().and_then(CredentialSlot::get);
        let Some(credential) = credential.filter(|credential| credential.current().is_none()) else { return permit };
        let mut unsent = Unsent(Some(permit));
        let _ = Box::pin(credential.wait()).await;
        unsent.0.take().unwrap_or_default()
    }

    /// Lets the client cancel a call that holds places.
    fn make_cancellable(
        &self,
        message: &Request<'_>,
        client: &Requester<'_>,
        server: &str,
        permit: &mut Permit,
        record: &mut Record,
    ) {
        let named = message.id.filter(|_| permit.holds_places());
        if let Some(name) = named.and_then(|id| CallName::of(server, client.headers, id)) {
            let (places, cancelled) = self.state.calls.add(name, permit.split_places());
            permit.join(places);
            record.cancelled_by(cancelled);
        }
    }
}
