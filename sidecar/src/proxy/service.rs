//! The way of one request, from its head to the head of its answer.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use toolweir_engine::Permit;

use super::{
    body::ResponseBody,
    clients::{ClientConnection, RequestSlot},
    cors,
    failure::RequestFailure,
    outgoing::OutgoingBody,
    replies::text,
    request_guard::{RequestGuard, ServerGuard},
    response_kind::ResponseKind,
    route::{RouteTarget, accepted_origin, check_captured_origin, check_origin, target},
    state::Proxy,
    unread::Unread,
};
use crate::{
    capture::place::ServerTarget,
    mcp::{headers, scan::Scan},
    outcome::Outcome,
};

impl Proxy {
    /// Answers a request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn serve(
        self: Arc<Self>,
        connection: Arc<ClientConnection>,
        request: Request<Incoming>,
    ) -> Result<Response<OutgoingBody>, Infallible> {
        self.answer_request(connection, request, None).await
    }

    /// Answers a request to the sidecar's URL, or to a declared server by the server's own: `captured` says to which and what for.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub(super) async fn answer_request(
        self: Arc<Self>,
        connection: Arc<ClientConnection>,
        mut request: Request<Incoming>,
        captured: Option<&ServerTarget>,
    ) -> Result<Response<OutgoingBody>, Infallible> {
        let slot = self.state.clients.begin_request(&connection).await;
        let mut guard = RequestGuard::new(&self.state.governor);
        guard.captured = captured.is_some();
        // Over HTTP/2, and where a client takes this for its proxy, the host is in the target (RFC 9113, section 8.3.1).
        if let Some(host) = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let head = request.method() == Method::HEAD;
        let page = accepted_origin(request.headers(), &self.state.allowed_hosts);
        let (parts, mut body) = Unread::of(request, &self.state, &connection, slot.is_some()).into_parts();
        let answer = match slot {
            Some(_) => self.route(&parts, &mut body, captured, &mut guard).await,
            None => Err(RequestFailure::Overloaded),
        };
        let (mut response, outcome) = match answer {
            Ok(done) => done,
            Err(failure) => self.reject(&failure, Scan::default(), &parts, &mut body, &mut guard).await,
        };
        drop(body);
        guard.outcome = outcome;
        if let Some(origin) = page {
            cors::expose(response.headers_mut(), origin);
        }
        if head {
            *response.body_mut() = ResponseBody::whole(Bytes::new());
        }
        Ok(self.outgoing(response, connection, slot))
    }

    /// An answer on its way to the client of a connection, with its place among the requests under way if it has one.
    pub(super) fn outgoing(
        &self,
        answer: Response<ResponseBody>,
        connection: Arc<ClientConnection>,
        slot: Option<RequestSlot>,
    ) -> Response<OutgoingBody> {
        let (clients, budget) = (Arc::clone(&self.state.clients), self.state.budget.clone());
        answer.map(|answer| OutgoingBody::new(answer, connection, clients, budget, slot))
    }

    async fn route(
        &self,
        parts: &Parts,
        body: &mut Unread,
        captured: Option<&ServerTarget>,
        request: &mut RequestGuard<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        match captured {
            None => check_origin(&parts.headers, &self.state.allowed_hosts)?,
            Some(captured) => check_captured_origin(&parts.headers, captured.scheme())?,
        }
        headers::check_connection(&parts.headers)?;
        headers::check(&parts.headers)?;
        if cors::is_preflight(parts) {
            request.method = "_preflight";
            return Ok((cors::preflight(&parts.headers, ResponseBody::whole(Bytes::new())), Outcome::Ok));
        }
        let target = match captured {
            Some(captured) => RouteTarget::from(captured),
            // A query could mean something to the server that no policy saw.
            None if parts.uri.query().is_some() => return Err(RequestFailure::NotFound),
            None => target(parts.uri.path()).ok_or(RequestFailure::NotFound)?,
        };
        match target {
            RouteTarget::Description(name, url) => {
                request.find_server(name);
                self.description_of_server(parts, url, &mut request.at_server()?).await
            }
            RouteTarget::Authorization(name) => {
                request.find_server(name);
                let mut at = request.at_server()?;
                at.request.method = "_authorization";
                self.authorization(parts, &mut at).await
            }
            RouteTarget::Messages { server, stream } => {
                request.find_server(server);
                request.at_server()?;
                if parts.method != Method::POST {
                    return Err(RequestFailure::Method);
                }
                let stream = self.state.streams.find(server, stream).ok_or(RequestFailure::NotFound)?;
                self.post(parts, body, server, Some(stream), request).await
            }
            RouteTarget::Server(name) => {
                request.find_server(name);
                match parts.method {
                    Method::POST => self.post(parts, body, name, None, request).await,
                    Method::GET => self.get_or_delete(parts, ResponseKind::Get, "_get", request.at_server()?).await,
                    Method::DELETE => self.get_or_delete(parts, ResponseKind::Message, "_delete", request.at_server()?).await,
                    _ => Err(RequestFailure::Method),
                }
            }
        }
    }

    /// Sends a GET, which opens a stream, or a DELETE, which ends a session (MCP 2025-11-25, Transports).
    async fn get_or_delete(
        &self,
        parts: &Parts,
        kind: ResponseKind<'_>,
        label: &'static str,
        mut at: ServerGuard<'_, '_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        at.request.method = label;
        headers::check_no_request(&parts.headers, "no message")?;
        if let Some(denial) = at.request.in_force.engine.closed(&at.server.name) {
            return Ok((text(StatusCode::FORBIDDEN, denial.message), Outcome::Denied));
        }
        let url = at.url()?;
        let response = self.send(&parts.method, &parts.headers, url, Bytes::new(), &mut at).await?;
        if parts.method == Method::DELETE && response.status().is_success() {
            self.end_session(&parts.headers, &at.server.name);
        }
        self.pass(response, &parts.headers, &mut at, Permit::default(), kind).await
    }
}
