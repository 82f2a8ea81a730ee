//! Messages of clients, which come in a POST: read whole, parsed once, and sent or denied.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri, request::Parts};
use hyper::body::Incoming;
use tokio::time::timeout;
use toolweir_engine::{Denial, Operation, Permit, json::Raw};

use super::{
    body::ResponseBody,
    budget::{HeldBytes, NotRead, ReadError},
    cancel::CallName,
    failure::RequestFailure,
    legacy::LegacyStream,
    replies::{accepted, message},
    request_guard::{RequestGuard, ServerGuard},
    response_kind::{AnswerContext, ListContext, ResponseKind},
    state::Proxy,
    stream_lists::PostContext,
    unread::Unread,
};
use crate::{
    credentials::CredentialProblem,
    lists::ListRequest,
    mcp::{
        answer,
        client_ask::ClientAsk,
        headers::{self, SESSION_ID},
        id::RequestId,
        list_kind::ListKind,
        method_label,
        request::{Message, Refusal, Request, parse},
        scan::{ReplyTo, Scan},
    },
    outcome::Outcome,
    pending::PendingRequest,
};

/// The client that sent a message.
pub struct Requester<'a> {
    /// The headers of its POST.
    pub headers: &'a HeaderMap,
    /// The HTTP+SSE stream on which it waits for its answers, if it has one.
    pub legacy: Option<&'a LegacyStream>,
}

impl Requester<'_> {
    /// The client's session; in the HTTP+SSE transport that is a stream. Empty where there is none.
    pub fn session(&self) -> &str {
        let header = || self.headers.get(SESSION_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.legacy.map_or_else(header, |stream| &stream.id)
    }

    /// Answers a message that is denied.
    pub fn deny(&self, denied: &Request<'_>, denial: &Denial) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        if denied.id.is_none() {
            return Ok((accepted(), Outcome::Dropped));
        }
        let body = answer::denial(denied, denial);
        if let Some(stream) = self.legacy {
            // The answer goes where the client waits for it.
            stream.events.try_send(answer::event(&body)).map_err(|_| RequestFailure::Overloaded)?;
            return Ok((accepted(), Outcome::Denied));
        }
        Ok((message(self.headers, body), Outcome::Denied))
    }

    /// The URL to which a message of this client goes.
    pub fn endpoint(&self, at: &ServerGuard<'_, '_>) -> Result<Uri, RequestFailure> {
        match self.legacy {
            // The credential of one URL is not for an endpoint that the server of another named.
            Some(stream) if at.server.credential.is_some() && at.server.url.as_ref() != Some(&stream.url) => {
                let message = "the stream was opened at another URL than the policy's; open it anew";
                Err(RequestFailure::Credential(at.server.name.clone(), CredentialProblem::lasting(message)))
            }
            Some(stream) => Ok(stream.endpoint.clone()),
            None => at.url(),
        }
    }
}

/// Forgets a request whose answer would come on a stream, if the server has not taken it. Of a server's failure it is not
/// known, nor of a client that hung up.
pub fn settle(pending: Option<PendingRequest<'_>>, sent: &Result<Response<Incoming>, RequestFailure>) {
    let not_taken = match sent {
        Ok(response) => response.status().is_client_error(),
        Err(failure) => failure.not_taken(),
    };
    if not_taken {
        pending.into_iter().for_each(PendingRequest::not_taken);
    }
}

impl Proxy {
    /// Takes a POST for a server, on an HTTP+SSE stream if it is for one.
    pub(super) async fn post(
        &self,
        parts: &Parts,
        body: &mut Unread,
        name: &str,
        legacy: Option<LegacyStream>,
        request: &mut RequestGuard<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        headers::check_post(&parts.headers)?;
        let before = Instant::now();
        let read = timeout(self.state.limits.body_time, self.state.budget.read(&mut *body, self.state.limits.body)).await;
        request.waited_since(before);
        let (bytes, held): (Bytes, HeldBytes) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(NotRead { why: ReadError::Sender, .. })) | Err(_) => return Err(RequestFailure::Body),
            Ok(Err(NotRead { why, read })) => {
                let failure = match why {
                    ReadError::TooLarge => Refusal::TooLarge(self.state.limits.body).into(),
                    _ => RequestFailure::Overloaded,
                };
                let mut scan = Scan::default();
                for piece in read {
                    scan.push(&piece);
                }
                return Ok(self.reject(&failure, scan, parts, body, request).await);
            }
        };
        // A body that was held back is decided on by the policy of now.
        request.update_policies();
        request.find_server(name);
        let client = Requester { headers: &parts.headers, legacy: legacy.as_ref() };
        let parsed = match parse(&bytes) {
            Err(refusal) => return Ok(self.answer(&refusal.into(), &Scan::of(&bytes), parts, request)),
            Ok(Message::Answer { id }) => {
                self.end_server_request(name, &client, id);
                return self.answer_of_client(name, &client, bytes, held, request).await;
            }
            Ok(Message::Request(parsed)) => parsed,
        };
        if let Err(refusal) = headers::check_agreement(&parts.headers, &parsed) {
            return Ok(self.answer(&refusal.into(), &ReplyTo::from(&*parsed), parts, request));
        }
        request.method = method_label(&parsed.method);
        // On an HTTP+SSE stream an answer is known by its id alone.
        let pending = match client.legacy.zip(parsed.id).map(|(stream, id)| stream.pending.register(id)).transpose() {
            Ok(pending) => pending,
            Err(why) => return Ok(self.answer(&why.into(), &ReplyTo::from(&*parsed), parts, request)),
        };
        let answered = match ClientAsk::of(&parsed) {
            Ok(ClientAsk::Operation(operation)) => {
                self.operation((&parsed, operation), name, &client, pending, (bytes.clone(), held), request).await
            }
            Ok(ask) => self.other_message((&parsed, &ask), name, &client, pending, bytes.clone(), request).await,
            Err(refusal) => Err(refusal.into()),
        };
        answered.or_else(|failure| Ok(self.answer(&failure, &ReplyTo::from(&*parsed), parts, request)))
    }

    /// Frees the places of a request of the server that its client answers.
    fn end_server_request(&self, name: &str, client: &Requester<'_>, id: Option<Raw<'_>>) {
        if let Some(id) = id.and_then(RequestId::read) {
            self.state.governor.server_requests.ended(name, client.session(), id);
        }
    }

    /// The way of an answer to a request of the server.
    async fn answer_of_client(
        &self,
        name: &str,
        client: &Requester<'_>,
        bytes: Bytes,
        held: HeldBytes,
        request: &mut RequestGuard<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        headers::check_no_request(client.headers, "an answer")?;
        request.method = "_answer";
        if request.closed(name).is_some() {
            return Ok((accepted(), Outcome::Dropped));
        }
        let mut at = request.at_server()?;
        let url = client.endpoint(&at)?;
        let response = self.send(&Method::POST, client.headers, url, bytes, &mut at).await?;
        drop(held);
        self.pass(response, client.headers, &mut at, Permit::default(), ResponseKind::Message).await
    }

    /// The way of a message that asks for nothing that is decided on with its limits.
    async fn other_message(
        &self,
        (message, ask): (&Request<'_>, &ClientAsk<'_>),
        name: &str,
        client: &Requester<'_>,
        mut pending: Option<PendingRequest<'_>>,
        bytes: Bytes,
        request: &mut RequestGuard<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        let allowed = match request.closed(name) {
            None => {
                let at = (name, client.session());
                self.state.governor.decide_references(&request.in_force, at, (ask, &message.method), request.arrived)
            }
            Some(denial) => Err(denial),
        };
        let limit = match allowed {
            Ok(limit) => limit,
            Err(denial) => return client.deny(message, &denial),
        };
        let limited = limit.map(|limit| AnswerContext::new(message, Operation::other(&message.method), Some(limit)));
        let mut at = request.at_server()?;
        let url = client.endpoint(&at)?;
        let kind = match &*message.method {
            method if ListKind::of_method(method).is_some() => match client.legacy {
                None => ResponseKind::List(message.id.map(|id| ListContext { id, request: &bytes, url: &url })),
                Some(_) => ResponseKind::PostedList,
            },
            "subscriptions/listen" => ResponseKind::Listen,
            "initialize" if client.legacy.is_none() => ResponseKind::Initialize,
            _ => limited.as_ref().map_or(ResponseKind::Message, ResponseKind::Answer),
        };
        if let (Some(pending), ResponseKind::Answer(context)) = (&pending, &kind) {
            pending.limit_result(Some(context.kept()));
        }
        if let Some((stream, id)) = client.legacy.zip(message.id) {
            drop(stream.lists.asked.take(id));
            let asked = if kind == ResponseKind::PostedList { ListRequest::new(id, &bytes) } else { None };
            let posted = asked.is_some().then(|| PostContext::kept(client.headers, &url, &at.server, &self.state.budget));
            if let Some((asked, posted)) = asked.zip(posted.flatten()) {
                stream.lists.asked.keep(asked, posted);
            }
        }
        pending.iter_mut().for_each(PendingRequest::mark_sent);
        let cancelled = message.cancels().and_then(|id| self.find_cancelled(name, client, id));
        let sent = self.send(&Method::POST, client.headers, url.clone(), bytes.clone(), &mut at).await;
        settle(pending, &sent);
        if sent.as_ref().is_ok_and(|response| response.status().is_success())
            && let Some(cancelled) = cancelled
        {
            cancelled();
        }
        self.pass(sent?, client.headers, &mut at, Permit::default(), kind).await
    }

    /// Finds the one request that a client names to cancel it, and returns what frees its places. Its server is told first:
    /// whether that takes the notification, its answer says.
    fn find_cancelled<'a>(&'a self, server: &str, client: &Requester<'a>, id: Raw<'_>) -> Option<Box<dyn FnOnce() + Send + 'a>> {
        if let Some(stream) = client.legacy {
            let request = stream.pending.find(id)?;
            return Some(Box::new(move || stream.pending.cancel(request)));
        }
        let name = CallName::of(server, client.headers, id)?;
        let call = self.state.calls.find(&name)?;
        Some(Box::new(move || self.state.calls.cancel(&name, &call)))
    }
}
