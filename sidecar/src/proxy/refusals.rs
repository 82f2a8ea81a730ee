//! Requests that fail are answered in the form that their clients hand on.

use std::time::Instant;

use http::{Method, Response, StatusCode, request::Parts};

use super::{
    body::ResponseBody,
    failure::RequestFailure,
    replies::{accepted, failed, message},
    request_guard::RequestGuard,
    route::{RouteTarget, check_origin, target},
    state::Proxy,
    unread::Unread,
};
use crate::{
    mcp::{
        answer, headers,
        scan::{ReplyTo, Scan},
    },
    outcome::Outcome,
};

impl Proxy {
    /// Answers a request that is not taken before its body was read to its end. The rest is scanned for the id.
    pub(super) async fn reject(
        &self,
        failure: &RequestFailure,
        mut scan: Scan,
        parts: &Parts,
        body: &mut Unread,
        request: &mut RequestGuard<'_>,
    ) -> (Response<ResponseBody>, Outcome) {
        // Only a client of MCP looks for the id; over HTTP+SSE it asks for nothing. One that waits for leave to send has sent
        // nothing.
        let posted = matches!(target(parts.uri.path()), Some(RouteTarget::Messages { .. }));
        let comes = parts.method == Method::POST
            && (posted || headers::asks_for_mcp(&parts.headers))
            && !headers::waits_for_leave(&parts.headers)
            && !matches!(failure, RequestFailure::Body);
        let before = Instant::now();
        let whole = comes && body.scan(&mut scan, self.state.limits.body, self.state.stopping.clone()).await;
        request.waited_since(before);
        self.answer(failure, &if whole { scan.finish() } else { ReplyTo::default() }, parts, request)
    }

    /// Answers a message that is not carried out, where its client waits for that.
    pub(super) fn answer(
        &self,
        failure: &RequestFailure,
        to: &ReplyTo<'_>,
        parts: &Parts,
        request: &RequestGuard<'_>,
    ) -> (Response<ResponseBody>, Outcome) {
        let outcome = request.log(failure);
        let mut status = failure.status();
        if let Some(RouteTarget::Messages { server, stream }) = target(parts.uri.path()) {
            // What a page of another origin sends is not answered in the stream of an agent, whatever else is wrong with it.
            let stream = self.state.streams.find(server, stream);
            let stream = stream.filter(|_| to.id.is_some() && check_origin(&parts.headers, &self.state.allowed_hosts).is_ok());
            if stream.is_some_and(|stream| stream.events.try_send(answer::event(&failure.answer(to))).is_ok()) {
                return (accepted(), outcome);
            }
        } else if headers::asks_for_mcp(&parts.headers) {
            // Who does not ask for MCP's types, such as curl, goes by the HTTP status.
            status = failure.status_of_answer(to);
        }
        if status != StatusCode::OK {
            // Behind an error of HTTP nobody looks for a tool result.
            let to = ReplyTo { takes_tool_result: false, ..to.clone() };
            return (failed(failure, status, failure.answer(&to)), outcome);
        }
        (message(&parts.headers, failure.answer(to)), outcome)
    }
}
