//! Requests on captured connections: to declared servers, by the servers' own URLs, or elsewhere.

use std::{convert::Infallible, net::IpAddr, sync::Arc};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, uri::PathAndQuery};
use hyper::body::Incoming;
use toolweir_engine::egress::{EgressDecision, EgressReason};

use super::{clients::ClientConnection, egress_http::HttpEgress, outgoing::OutgoingBody, replies::text, state::Proxy};
use crate::{
    capture::{
        Capture,
        judge::refused,
        metrics::SERVER_NAME,
        names::{HostAndPort, read_authority},
        place::{RequestPlace, place},
        target::ConnectionTarget,
    },
    interception::metrics::OpenedTls,
    record::Arrival,
};

/// A captured connection that speaks HTTP.
#[derive(Debug)]
pub struct CapturedHttp {
    /// Where it leads.
    to: ConnectionTarget,
    /// The TLS that was opened, in which they come; its client asked for the host of `to`.
    opened: Option<OpenedTls>,
    /// Passes on what is for another host than a declared server's.
    egress: HttpEgress,
}

impl CapturedHttp {
    /// A connection on which nothing was asked yet.
    pub fn new(to: ConnectionTarget, capture: Arc<Capture>) -> Self {
        Self { to, opened: None, egress: HttpEgress::new(capture) }
    }

    /// The same for TLS that was opened, to a host and port.
    pub fn opened(at: HostAndPort, capture: Arc<Capture>, opened: OpenedTls) -> Self {
        Self { opened: Some(opened), ..Self::new(ConnectionTarget { at, by_connect: false }, capture) }
    }

    /// Returns whether they come in TLS that was opened.
    fn is_tls(&self) -> bool {
        self.opened.is_some()
    }

    /// The scheme of its URLs, with the port that they need not write (RFC 9110, section 4.2).
    fn scheme(&self) -> (&'static str, u16) {
        if self.is_tls() { ("https", 443) } else { ("http", 80) }
    }

    /// Finds the host that a request is for. A client that takes what it connects to for its proxy writes the whole URL, which holds
    /// then (RFC 9112, section 3.2.2); else `Host` must agree with where the connection leads.
    ///
    /// # Errors
    /// It is not clear, or another than that of the connection.
    pub fn host_of<B>(&self, request: &Request<B>) -> Result<HostAndPort, EgressReason> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (named, repeated) = (hosts.next(), hosts.next().is_some());
        let by_proxy = request.version() < Version::HTTP_2 && request.uri().scheme().is_some();
        let (scheme, usual_port) = self.scheme();
        let is_same = request.uri().scheme_str().is_none_or(|asked| asked.eq_ignore_ascii_case(scheme));
        if repeated || !is_same || request.method() == Method::CONNECT {
            return Err(EgressReason::Malformed);
        }
        let authority = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => named.map(HeaderValue::to_str).transpose().map_err(|_| EgressReason::Malformed)?,
        };
        let Some(authority) = authority else {
            return Ok(self.to.at.clone());
        };
        let (host, port) = read_authority(authority).ok_or(EgressReason::Malformed)?;
        let found = HostAndPort { host, port: port.unwrap_or(usual_port) };
        let is_named = self.to.by_connect || self.is_tls();
        let is_other = found.port != self.to.at.port
            // An address that is written leads there; a name is resolved anew, whatever address its client found.
            || (found.host.address().is_some() || is_named) && found.host != self.to.at.host;
        if is_other && (is_named || !by_proxy) { Err(EgressReason::OtherName) } else { Ok(found) }
    }
}

impl Proxy {
    /// Answers a request on a captured connection.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub(super) async fn serve_captured(
        self: Arc<Self>,
        http: Arc<CapturedHttp>,
        connection: Arc<ClientConnection>,
        request: Request<Incoming>,
    ) -> Result<Response<OutgoingBody>, Infallible> {
        let arrived = Arrival::now();
        let in_force = arc_swap::Guard::into_inner(self.state.governor.in_force());
        let to = match http.host_of(&request) {
            Ok(to) => to,
            Err(reason) => {
                let refusal = (refused(reason), None);
                return Ok(self.refuse_captured(&refusal, &http.to.at, connection, (http.scheme().0, arrived)));
            }
        };
        let capture = &http.egress.capture;
        let servers = capture.declared(&in_force).at(&to, &capture.domains);
        if let Some(opened) = &http.opened {
            opened.asked();
            // By other policies than those of now its TLS was opened. A new connection is decided by these.
            if let Err(reason) = capture.opened_name(&servers, &to) {
                let decision = EgressDecision { name: Some(SERVER_NAME.into()), ..refused(reason) };
                let version = request.version();
                let mut answer = self.refuse_captured(&(decision, None), &to, connection, (http.scheme().0, arrived));
                if version < Version::HTTP_2 {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                return Ok(answer);
            }
        }
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        match place(&servers, http.is_tls(), request.method(), &target) {
            RequestPlace::Server(target) => self.answer_request(connection, request, Some(&target)).await,
            RequestPlace::OtherPath => {
                let decision = EgressDecision { name: Some(SERVER_NAME.into()), ..refused(EgressReason::OtherPath) };
                Ok(self.refuse_captured(&(decision, None), &to, connection, (http.scheme().0, arrived)))
            }
            RequestPlace::Elsewhere => self.pass_elsewhere(&http.egress, &in_force, to, connection, request, arrived).await,
        }
    }

    /// Answers a request that is not taken in words, and records it: the decision, and the address to which it would lead.
    pub(super) fn refuse_captured(
        &self,
        (decision, address): &(EgressDecision, Option<IpAddr>),
        to: &HostAndPort,
        connection: Arc<ClientConnection>,
        how: (&str, Arrival),
    ) -> Response<OutgoingBody> {
        self.record_egress(decision, to, *address, how);
        let status = match decision.reason {
            EgressReason::Malformed => StatusCode::BAD_REQUEST,
            // RFC 9110, section 15.5.20.
            EgressReason::OtherName => StatusCode::MISDIRECTED_REQUEST,
            EgressReason::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            EgressReason::Unreachable | EgressReason::NotResolved => StatusCode::BAD_GATEWAY,
            _ => StatusCode::FORBIDDEN,
        };
        self.outgoing(text(status, format!("Toolweir: {}", to.message(decision, *address))), connection, None)
    }
}
