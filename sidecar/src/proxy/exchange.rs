//! The exchange with a server: a request is sent, and the head of its answer awaited.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    failure::RequestFailure,
    forwarding::forwarded,
    reason::{ConnectReason, refuses_certificate},
    request_guard::ServerGuard,
    state::Proxy,
    through::ProxyError,
    upstream::UpstreamClient,
};
use crate::{in_force::ServerInForce, lists::Lists};

/// A request as it came from an agent, and where it goes.
pub struct AgentRequest<'a> {
    /// The HTTP method.
    pub method: &'a Method,
    /// The agent's headers.
    pub headers: &'a HeaderMap,
    /// Where it goes.
    pub url: Uri,
    /// The body.
    pub body: Bytes,
}

/// A request as it goes to a server.
pub struct Outgoing<'a> {
    /// The HTTP method.
    pub method: &'a Method,
    /// The headers.
    pub headers: HeaderMap,
    /// Where it goes.
    pub url: Uri,
    /// The body.
    pub body: Bytes,
}

impl Proxy {
    /// Sends a request to a server and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        method: &Method,
        headers: &HeaderMap,
        url: Uri,
        body: Bytes,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<Response<Incoming>, RequestFailure> {
        let (sent, waited) = self.exchange(method, headers, url, body, &at.server).await;
        at.request.waited_for(waited);
        sent
    }

    /// The same, and how long that took.
    pub(super) async fn exchange(
        &self,
        method: &Method,
        headers: &HeaderMap,
        url: Uri,
        body: Bytes,
        server: &ServerInForce,
    ) -> (Result<Response<Incoming>, RequestFailure>, Duration) {
        let Some(slot) = &server.credential else {
            let message = Outgoing { method, headers: forwarded(headers, &server.name), url, body };
            return self.exchange_once(message, server, &self.client).await;
        };
        // The credential is waited for too.
        let before = Instant::now();
        // Boxed: no connection to a server without one is made larger by it.
        let message = AgentRequest { method, headers, url, body };
        let sent = Box::pin(self.exchange_with_credential(slot, message, server)).await;
        (sent, before.elapsed())
    }

    /// Sends a request once, over connections of `client`. Returns how long that took, too.
    pub(super) async fn exchange_once(
        &self,
        message: Outgoing<'_>,
        server: &ServerInForce,
        client: &UpstreamClient,
    ) -> (Result<Response<Incoming>, RequestFailure>, Duration) {
        let by_proxy = self.state.upstream_proxy.as_ref().is_some_and(|proxy| proxy.is_for(&message.url));
        let mut request = Request::new(Full::new(message.body));
        *request.method_mut() = message.method.clone();
        *request.uri_mut() = message.url;
        *request.headers_mut() = message.headers;
        let before = Instant::now();
        let answer = timeout(self.state.limits.first_byte, client.send(request)).await;
        let waited = before.elapsed();
        server.upstream_duration.observe(waited.as_secs_f64());
        let sent = match answer {
            // To the client it would be a hop that it knows nothing of.
            Ok(Ok(response)) if by_proxy && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(RequestFailure::Proxy(server.name.clone(), ConnectReason::of(&ProxyError::Refused(407))))
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::debug!(server = server.name, %error, source = ?std::error::Error::source(&error), "upstream");
                let name = server.name.clone();
                Err(if client.shows_certificate() && refuses_certificate(&error) {
                    RequestFailure::CredentialRefused(name, "in the TLS handshake")
                } else if error.is_connect() {
                    RequestFailure::Connect(name, ConnectReason::of(&error))
                } else if client.shows_certificate() {
                    RequestFailure::UpstreamOfCertificate(name)
                } else {
                    RequestFailure::Upstream(name)
                })
            }
            Err(_) => Err(RequestFailure::Timeout(server.name.clone())),
        };
        (sent, waited)
    }

    /// The lists of a server.
    pub(super) fn lists(&self, server: &ServerInForce) -> Lists {
        Lists::of(&self.state.governor, &server.name, self.state.limits.list_ttl)
    }
}
