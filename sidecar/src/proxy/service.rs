//! The way of one request, from its head to the head of its answer.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{sync::watch, time::timeout};
use toolweir_engine::{Call, Denial, Permit, json::Raw};

use super::{
    Limits,
    body::{Answer, Filter, Stop, filter_list},
    budget::{Budget, Held, ReadError},
    challenge, cookies, cors,
    failure::{Failure, Fault},
    legacy::{Stream, Streams},
    oauth::{self, Described},
    reason::Reason,
    through::{ProxyError, UpstreamProxy},
    unread::Unread,
    upstream::Client,
    waiting::{Clients, Connection, Outgoing},
};
use crate::{
    governor::{self, Arrival, Decided, Governor, InForce, Outcome, Server},
    mcp::{
        answer,
        coding::is_coded,
        headers::{self, SESSION_ID},
        list::Filtered,
        method_label,
        request::{Message, Refusal, Request as McpRequest, parse},
        sse::{Watch, spells_tools},
    },
    under_way::Kept,
};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The bounds.
    pub limits: Limits,
    /// Room for bodies.
    pub budget: Budget,
    /// The open connections of clients.
    pub clients: Arc<Clients>,
    /// Open streams of the HTTP+SSE transport.
    pub streams: Streams,
    /// Names under which the sidecar may be reached besides local ones.
    pub allowed_hosts: Vec<String>,
    /// Where servers said that their authorization is described.
    pub described: Described,
    /// The proxy through which servers are reached, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// Turns true when the sidecar stops.
    pub stopping: watch::Receiver<bool>,
}

/// The proxy of one worker.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's connections to servers.
    pub client: Client,
}

/// Headers that end at each hop (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Why an answer cannot be read.
const COMPRESSED: &str = "it is compressed, though that was not asked for";

/// What a request is for.
enum Target<'a> {
    /// A server's endpoint.
    Server(&'a str),
    /// Where messages of an open HTTP+SSE stream go.
    Messages { server: &'a str, stream: &'a str },
    /// The description of a server's authorization.
    Authorization(&'a str),
}

fn target(path: &str) -> Option<Target<'_>> {
    if let Some(server) = path.strip_prefix(oauth::WELL_KNOWN).and_then(|rest| rest.strip_prefix('/')) {
        let server = server.strip_suffix('/').unwrap_or(server);
        return (!server.contains('/')).then_some(Target::Authorization(server));
    }
    let rest = path.strip_prefix('/')?;
    match rest.split_once('/') {
        None | Some((_, "")) => Some(Target::Server(rest.trim_end_matches('/'))).filter(|_| !rest.is_empty()),
        Some((server, rest)) => rest.strip_prefix("-/messages/").map(|stream| Target::Messages { server, stream }),
    }
}

/// What an answer is to, as far as that decides how it passes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// Any message.
    Message,
    /// A tools/list.
    List,
    /// A tools/list whose answer comes on an HTTP+SSE stream.
    PostedList,
    /// A GET: what a client keeps open for as long as it lives, on which anything can be replayed.
    Get,
    /// A subscriptions/listen, which a modern client keeps open for as long as it lives.
    Listen,
}

/// Where and how long a request was. Dropped, it is counted, so that none is missing when its client hangs up.
struct Way<'a> {
    governor: &'a Governor,
    in_force: Arc<InForce>,
    server: Option<Arc<Server>>,
    method: &'static str,
    arrived: Arrival,
    /// Time spent waiting for others: the client's body, the server's answer.
    waited: Duration,
    outcome: Outcome,
}

impl Way<'_> {
    /// Logs a failure without the request's content.
    fn log(&self, failure: &Failure) -> Outcome {
        let server = self.server.as_ref().map_or("", |server| &server.name);
        let (method, outcome) = (self.method, failure.outcome());
        let (fault, retry, failure) = (failure.fault(), failure.retry(), failure.in_general());
        if fault == Fault::Client {
            tracing::info!(server, method, outcome = outcome.as_str(), failure, "request refused");
        } else {
            tracing::warn!(server, method, outcome = outcome.as_str(), ?fault, retry, failure, "request failed");
        }
        outcome
    }

    /// The answer to a message that its server does not answer.
    fn failed(&self, failure: &Failure, id: Option<Raw<'_>>) -> (Response<Answer>, Outcome) {
        (failed(failure, id.map(Raw::as_str)), self.log(failure))
    }

    /// The denial of everything on the server, if there is one.
    fn closed(&self, name: &str) -> Option<Denial> {
        match self.server {
            None => Some(Denial::no_policy(name, "")),
            Some(_) => self.in_force.engine.closed(name),
        }
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.governor.count(self.server.as_deref(), self.method, self.outcome);
        if let Some(server) = self.server.as_ref().filter(|_| self.outcome != Outcome::ClientGone) {
            server.overhead.observe(self.arrived.instant.elapsed().saturating_sub(self.waited).as_secs_f64());
        }
    }
}

impl Proxy {
    /// Answers a request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn serve(
        self,
        connection: Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Outgoing>, Infallible> {
        let under_way = self.shared.clients.begin(&connection).await;
        let in_force = arc_swap::Guard::into_inner(self.shared.governor.in_force());
        let mut way = Way {
            governor: &self.shared.governor,
            in_force,
            server: None,
            method: "_none",
            arrived: Arrival::now(),
            waited: Duration::ZERO,
            outcome: Outcome::ClientGone,
        };
        // Over HTTP/2, and where a client takes this for its proxy, the host is in the target (RFC 9113, section 8.3.1).
        if let Some(host) = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let head = request.method() == Method::HEAD;
        let page = self.page(request.headers());
        let request = Unread::of(request, &self.shared, &connection, under_way.is_some());
        let answer = match under_way {
            Some(_) => self.route(request, &mut way).await,
            None => Err(Failure::Overloaded),
        };
        let (mut response, outcome) = match answer {
            Ok(done) => done,
            Err(failure) => way.failed(&failure, None),
        };
        way.outcome = outcome;
        if let Some(origin) = page {
            cors::expose(response.headers_mut(), origin);
        }
        if head {
            *response.body_mut() = Answer::whole(Bytes::new());
        }
        let (clients, budget) = (Arc::clone(&self.shared.clients), self.shared.budget.clone());
        Ok(response.map(|answer| Outgoing::new(answer, connection, clients, budget, under_way)))
    }

    async fn route(&self, request: Request<Unread>, way: &mut Way<'_>) -> Result<(Response<Answer>, Outcome), Failure> {
        self.check_origin(request.headers())?;
        headers::check_connection(request.headers())?;
        headers::check(request.headers())?;
        if cors::is_preflight(&request) {
            way.method = "_preflight";
            return Ok((cors::preflight(request.headers(), Answer::whole(Bytes::new())), Outcome::Ok));
        }
        let uri = request.uri().clone();
        // A query could mean something to the server that no policy saw.
        if uri.query().is_some() {
            return Err(Failure::NotFound);
        }
        match target(uri.path()).ok_or(Failure::NotFound)? {
            Target::Authorization(name) => {
                way.server = Some(way.in_force.server(name).cloned().ok_or(Failure::UnknownServer)?);
                way.method = "_authorization";
                self.authorization(request, way).await
            }
            Target::Messages { server, stream } => {
                way.server = Some(way.in_force.server(server).cloned().ok_or(Failure::UnknownServer)?);
                if request.method() != Method::POST {
                    return Err(Failure::Method);
                }
                let stream = self.shared.streams.find(server, stream).ok_or(Failure::NotFound)?;
                self.post(request, server, Some(stream), way).await
            }
            Target::Server(name) => {
                way.server = way.in_force.server(name).cloned();
                match *request.method() {
                    Method::POST => self.post(request, name, None, way).await,
                    Method::GET | Method::DELETE => {
                        let server = way.server.clone().ok_or(Failure::UnknownServer)?;
                        let to = if request.method() == Method::GET { To::Get } else { To::Message };
                        way.method = if to == To::Get { "_get" } else { "_delete" };
                        headers::check_no_request(request.headers(), "no message")?;
                        if let Some(denial) = way.in_force.engine.closed(name) {
                            return Ok((text(StatusCode::FORBIDDEN, denial.message), Outcome::Denied));
                        }
                        let (parts, _) = request.into_parts();
                        let url = server.url.clone().ok_or_else(|| Failure::NoUrl(name.to_owned()))?;
                        let response = self.send(&parts.method, &parts.headers, url, Bytes::new(), &server, way).await?;
                        self.pass(response, &parts.headers, way, Permit::default(), to).await
                    }
                    _ => Err(Failure::Method),
                }
            }
        }
    }

    /// Refuses what a page of another origin sends (MCP 2025-11-25, Transports, "Security Warning"): browsers send
    /// `Origin`, and with a rebound name a `Host` that is not local.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Failure> {
        if headers.get_all(header::HOST).iter().nth(1).is_some() {
            return Err(Refusal::RepeatedHeader("Host").into());
        }
        let named = headers.get(header::HOST).and_then(|value| value.to_str().ok());
        // An address cannot be rebound, so any is accepted as the host.
        if !named.is_some_and(|authority| self.is_local(authority, |_| true)) {
            return Err(Failure::ForbiddenOrigin("Host"));
        }
        for origin in headers.get_all(header::ORIGIN) {
            let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
            // A page can be at an address too: only a local one, or that of the sidecar itself, is not foreign.
            if !authority
                .is_some_and(|authority| Some(authority) == named || self.is_local(authority, |address| address.is_loopback()))
            {
                return Err(Failure::ForbiddenOrigin("Origin"));
            }
        }
        Ok(())
    }

    /// The origin of the page that asks, if it is accepted.
    fn page(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let origin = origins.next()?;
        (origins.next().is_none() && self.check_origin(headers).is_ok()).then(|| origin.clone())
    }

    /// Whether an authority names this machine, by a name of it or by an address that `fits`.
    fn is_local(&self, authority: &str, fits: impl Fn(IpAddr) -> bool) -> bool {
        let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
        // What stands before an `@` is a name to some, and the host to others.
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(fits)
            || host.eq_ignore_ascii_case("localhost")
            || self.shared.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }

    async fn post(
        &self,
        request: Request<Unread>,
        name: &str,
        legacy: Option<Stream>,
        way: &mut Way<'_>,
    ) -> Result<(Response<Answer>, Outcome), Failure> {
        let (parts, body) = request.into_parts();
        headers::check_post(&parts.headers)?;
        let before = Instant::now();
        let read = timeout(self.shared.limits.body_time, self.shared.budget.read(body, self.shared.limits.body)).await;
        way.waited += before.elapsed();
        let (bytes, held): (Bytes, Held) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(ReadError::TooLarge)) => return Err(Refusal::TooLarge(self.shared.limits.body).into()),
            Ok(Err(ReadError::NoRoom)) => return Err(Failure::Overloaded),
            Ok(Err(ReadError::Sender)) | Err(_) => return Err(Failure::Body),
        };
        // A body that was held back is decided on by the policy of now.
        way.in_force = arc_swap::Guard::into_inner(self.shared.governor.in_force());
        way.server = way.in_force.server(name).cloned();
        let message = match parse(&bytes)? {
            Message::Answer => {
                headers::check_no_request(&parts.headers, "an answer")?;
                way.method = "_answer";
                None
            }
            Message::Request(request) => {
                headers::check_agreement(&parts.headers, &request)?;
                way.method = method_label(&request.method);
                Some(request)
            }
        };
        let client = Asker { headers: &parts.headers, legacy: legacy.as_ref() };
        let Some(message) = message else {
            if way.closed(name).is_some() {
                return Ok((accepted(), Outcome::Dropped));
            }
            let server = way.server.clone().ok_or(Failure::UnknownServer)?;
            let url = endpoint(&server, legacy.as_ref())?;
            let response = self.send(&Method::POST, &parts.headers, url, bytes.clone(), &server, way).await?;
            drop(held);
            return self.pass(response, &parts.headers, way, Permit::default(), To::Message).await;
        };
        // On an HTTP+SSE stream an answer is known by its id alone.
        let kept = match client.legacy.zip(message.id).map(|(stream, id)| stream.under_way.keep(id)).transpose() {
            Ok(kept) => kept,
            Err(why) => return Ok(client.refuse(&message, &why.into(), way)),
        };
        let answered = if message.is_tool_call() {
            self.tool_call(&message, name, &client, kept, bytes.clone(), held, way).await
        } else {
            self.other(&message, name, &client, kept, bytes.clone(), way).await
        };
        answered.or_else(|failure| Ok(way.failed(&failure, message.id)))
    }

    /// The way of a message that calls no tool.
    async fn other(
        &self,
        message: &McpRequest<'_>,
        name: &str,
        client: &Asker<'_>,
        mut kept: Option<Kept<'_>>,
        bytes: Bytes,
        way: &mut Way<'_>,
    ) -> Result<(Response<Answer>, Outcome), Failure> {
        if let Some(denial) = way.closed(name) {
            return client.deny(message, &denial);
        }
        let server = way.server.clone().ok_or(Failure::UnknownServer)?;
        let url = endpoint(&server, client.legacy)?;
        let to = match &*message.method {
            "tools/list" if client.legacy.is_none() => To::List,
            "tools/list" => To::PostedList,
            "subscriptions/listen" => To::Listen,
            _ => To::Message,
        };
        kept.iter_mut().for_each(Kept::sent);
        let sent = self.send(&Method::POST, client.headers, url, bytes, &server, way).await;
        settle(kept, &sent);
        self.pass(sent?, client.headers, way, Permit::default(), to).await
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of one call, each used once")]
    async fn tool_call(
        &self,
        message: &McpRequest<'_>,
        name: &str,
        client: &Asker<'_>,
        mut kept: Option<Kept<'_>>,
        bytes: Bytes,
        held: Held,
        way: &mut Way<'_>,
    ) -> Result<(Response<Answer>, Outcome), Failure> {
        let governor = &self.shared.governor;
        // In the HTTP+SSE transport a session is a stream.
        let header = || client.headers.get(SESSION_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let session = client.legacy.map_or_else(header, |stream| &stream.id);
        let call = Call {
            server: name,
            tool: message.params.name.as_deref().unwrap_or_default(),
            arguments: message.params.arguments,
            session,
        };
        if message.id.is_none() {
            // A notification of a method that is none: a server may carry it out and nobody would know.
            let decision = governor::dropped(&call);
            let (_, record) = governor.record(&way.in_force, &call, decision, way.arrived);
            record.finish(Outcome::Dropped);
            return Ok((accepted(), Outcome::Dropped));
        }
        let (decided, record) = governor.decide_shared(&way.in_force, &call, way.arrived).await;
        let (mut permit, server) = match (decided, way.server.clone()) {
            (Decided::Denied(denial), _) => {
                record.finish(Outcome::Denied);
                return client.deny(message, &denial);
            }
            (Decided::Allowed(permit), None) => {
                permit.give_back();
                return Err(Failure::UnknownServer);
            }
            (Decided::Allowed(permit), Some(server)) => (permit, server),
        };
        if let Some(kept) = &mut kept {
            kept.hold(permit.split_places());
            kept.sent();
        }
        let sent = match endpoint(&server, client.legacy) {
            Ok(url) => self.send(&Method::POST, client.headers, url, bytes, &server, way).await,
            Err(failure) => Err(failure),
        };
        drop(held);
        settle(kept, &sent);
        let response = match sent {
            Ok(response) => response,
            Err(failure) => {
                if failure.nothing_sent() {
                    permit.give_back();
                }
                record.finish(failure.outcome());
                return Err(failure);
            }
        };
        let outcome = outcome_of(response.status());
        let passed = self.pass(response, client.headers, way, permit, To::Message).await;
        record.finish(passed.as_ref().map_or_else(Failure::outcome, |_| outcome));
        passed
    }

    /// Sends a request to a server and waits for the head of the answer.
    async fn send(
        &self,
        method: &Method,
        headers: &HeaderMap,
        url: Uri,
        body: Bytes,
        server: &Server,
        way: &mut Way<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let by_proxy = self.shared.upstream_proxy.as_ref().is_some_and(|proxy| proxy.is_for(&url));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = url;
        *request.headers_mut() = forwarded(headers, &server.name);
        let before = Instant::now();
        let answer = timeout(self.shared.limits.first_byte, self.client.send(request)).await;
        let waited = before.elapsed();
        way.waited += waited;
        server.upstream_duration.observe(waited.as_secs_f64());
        match answer {
            // To the client it would be a hop that it knows nothing of.
            Ok(Ok(response)) if by_proxy && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(Failure::Proxy(server.name.clone(), Reason::of(&ProxyError::Refused(407))))
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::debug!(server = server.name, %error, source = ?std::error::Error::source(&error), "upstream");
                let name = server.name.clone();
                Err(if error.is_connect() { Failure::Connect(name, Reason::of(&error)) } else { Failure::Upstream(name) })
            }
            Err(_) => Err(Failure::Timeout(server.name.clone())),
        }
    }

    /// Passes an answer on: streamed, unless it has to be read or changed.
    async fn pass(
        &self,
        response: Response<Incoming>,
        asked: &HeaderMap,
        way: &mut Way<'_>,
        permit: Permit,
        to: To,
    ) -> Result<(Response<Answer>, Outcome), Failure> {
        let server = way.server.clone().ok_or(Failure::UnknownServer)?;
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        let status = parts.status;
        if status.is_informational() {
            return Err(Failure::Invalid(
                server.name.clone(),
                format!("its status is {}, which ends no request", status.as_u16()),
            ));
        }
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            // Followed by the client it would lead past the sidecar.
            let place = parts.headers.get(header::LOCATION).and_then(|place| place.to_str().ok()).unwrap_or("nowhere");
            let place: String = place.chars().take(200).collect();
            return Err(Failure::Invalid(server.name.clone(), format!("it redirects to {place}; write that URL in the policy")));
        }
        self.localize(&mut parts.headers, asked, &server);
        let outcome = outcome_of(status);
        let (get, list, events) = (to == To::Get, matches!(to, To::List | To::PostedList), is_events(&parts.headers));
        // Some clients take what a GET gives for events, whatever it says that it is.
        let watch = match (get, list, events) {
            (true, _, true) | (_, true, true) => Some(Watch::All),
            (true, _, false) => Some(Watch::Foreign),
            _ => None,
        };
        if list || get {
            let unreadable = if is_coded(&parts.headers) { Some(COMPRESSED) } else { unclear_type(&parts.headers) };
            if let Some(why) = unreadable {
                if status.is_success() {
                    return Err(Failure::Invalid(server.name.clone(), why.to_owned()));
                }
                // What an error says in its head is for the client all the same.
                tracing::warn!(server = server.name, status = status.as_u16(), why, "the body of an error was left out");
                for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE] {
                    parts.headers.remove(name);
                }
                return Ok((Response::from_parts(parts, Answer::whole(Bytes::new())), outcome));
            }
        }
        if let Some(watch) = watch {
            let url = server.url.clone().ok_or_else(|| Failure::NoUrl(server.name.clone()))?;
            let (open, inject) = if get { Some(self.shared.streams.open(&server.name, &url)).unzip() } else { (None, None) };
            let filter = Filter {
                governor: Arc::clone(&self.shared.governor),
                server: server.name.clone(),
                hidden: self.shared.governor.metrics.tools_hidden.with_label_values(&[server.name.as_str()]),
                open,
                watch,
            };
            if watch != Watch::Foreign {
                parts.headers.remove(header::CONTENT_LENGTH);
            }
            let stop = (get || to == To::Listen).then(|| self.stop());
            let answer = Answer::events(body, self.shared.limits.body, filter, inject, self.shared.budget.clone(), permit, stop);
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        if list {
            // On an HTTP+SSE stream the list comes there; what answers the POST is any word.
            let any = !status.is_success() || to == To::PostedList;
            let answer = self.list(body, &content_type(&parts.headers), any, way).await?;
            parts.headers.remove(header::CONTENT_LENGTH);
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        let stop = (get || to == To::Listen).then(|| self.stop());
        Ok((Response::from_parts(parts, Answer::Stream { inner: body, permit, stop }), outcome))
    }

    /// Reads a tools/list answer and shows of it what may be called. With `any` it may be something else: an error passes
    /// whatever it is, unless some client could find a list in it.
    async fn list(&self, body: Incoming, kind: &str, any: bool, way: &mut Way<'_>) -> Result<Answer, Failure> {
        let server = way.server.clone().ok_or(Failure::UnknownServer)?;
        let invalid = |why: String| Failure::Invalid(server.name.clone(), why);
        let before = Instant::now();
        let read = timeout(self.shared.limits.first_byte, self.shared.budget.read(body, self.shared.limits.body)).await;
        way.waited += before.elapsed();
        let (bytes, held) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(ReadError::TooLarge)) => {
                return Err(invalid(format!("the list of tools is larger than {} bytes", self.shared.limits.body)));
            }
            Ok(Err(ReadError::NoRoom)) => return Err(Failure::Overloaded),
            Ok(Err(ReadError::Sender)) => return Err(Failure::Upstream(server.name.clone())),
            Err(_) => return Err(Failure::Timeout(server.name.clone())),
        };
        if bytes.is_empty() {
            return Ok(Answer::whole(bytes));
        }
        let json = kind.eq_ignore_ascii_case("application/json");
        if !json && !any {
            return Err(invalid("the list of tools is neither JSON nor an event stream".to_owned()));
        }
        // For what stays of it.
        let Ok(room) = self.shared.budget.hold(bytes.len()).await else { return Err(Failure::Overloaded) };
        let governor = &self.shared.governor;
        let hidden = governor.metrics.tools_hidden.with_label_values(&[server.name.as_str()]);
        match filter_list(governor, &server.name, &hidden, &bytes) {
            Ok(Filtered::Same) => Ok(Answer::held(bytes, held)),
            Ok(Filtered::Edited(edited)) => Ok(Answer::held(edited, room)),
            Err(_) if any && !spells_tools(&bytes) && is_text(&bytes) => Ok(Answer::held(bytes, held)),
            Err(error) => Err(invalid(format!("the list of tools {error}"))),
        }
    }

    async fn authorization(&self, request: Request<Unread>, way: &mut Way<'_>) -> Result<(Response<Answer>, Outcome), Failure> {
        if request.method() != Method::GET {
            return Err(Failure::Method);
        }
        let server = way.server.clone().ok_or(Failure::UnknownServer)?;
        let url = server.url.clone().ok_or_else(|| Failure::NoUrl(server.name.clone()))?;
        let asked = request.headers();
        let (mut refused, mut unreadable) = (None, None);
        for place in self.shared.described.places(&server.name, &url) {
            let response = self.send(&Method::GET, asked, place, Bytes::new(), &server, way).await?;
            if response.status() != StatusCode::OK {
                let says_more = |before: &Response<Incoming>| before.status() != StatusCode::NOT_FOUND;
                refused = Some(refused.filter(says_more).unwrap_or(response));
                continue;
            }
            match self.description(response, asked, &server, way).await? {
                Ok(described) => return Ok((described, Outcome::Ok)),
                Err(why) => unreadable = Some(why),
            }
        }
        match (unreadable, refused) {
            (None, Some(response)) => self.pass(response, asked, way, Permit::default(), To::Message).await,
            (why, _) => Err(Failure::Invalid(server.name.clone(), why.unwrap_or("it has no description").to_owned())),
        }
    }

    /// A description of a server's authorization with the sidecar's URL; else why it is none.
    async fn description(
        &self,
        response: Response<Incoming>,
        asked: &HeaderMap,
        server: &Server,
        way: &mut Way<'_>,
    ) -> Result<Result<Response<Answer>, &'static str>, Failure> {
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        self.localize(&mut parts.headers, asked, server);
        if is_coded(&parts.headers) {
            return Ok(Err(COMPRESSED));
        }
        let before = Instant::now();
        let most = self.shared.limits.body.min(oauth::LARGEST);
        let read = timeout(self.shared.limits.first_byte, self.shared.budget.read(body, most)).await;
        way.waited += before.elapsed();
        let (bytes, held) = read.ok().and_then(Result::ok).ok_or_else(|| Failure::Upstream(server.name.clone()))?;
        let local = format!("{}/{}", origin(asked), server.name);
        let Some(edited) = oauth::rewrite_resource(&bytes, &local) else {
            return Ok(Err("the description of its authorization is no JSON object with one `resource`"));
        };
        parts.headers.remove(header::CONTENT_LENGTH);
        Ok(Ok(Response::from_parts(parts, Answer::held(edited, held))))
    }

    /// Makes what names the server in the head of an answer name the sidecar.
    fn localize(&self, headers: &mut HeaderMap, asked: &HeaderMap, server: &Server) {
        let Some(url) = &server.url else { return };
        if headers.contains_key(header::SET_COOKIE) {
            let set: Vec<_> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
            headers.remove(header::SET_COOKIE);
            for value in set.iter().filter_map(|value| cookies::to_client(value.as_bytes(), &server.name, url)) {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(header::SET_COOKIE, value);
                }
            }
        }
        if headers.contains_key(header::WWW_AUTHENTICATE) {
            let local = format!("{}{}/{}", origin(asked), oauth::WELL_KNOWN, server.name);
            let set: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect();
            headers.remove(header::WWW_AUTHENTICATE);
            let mut first = None;
            for old in set {
                let new = challenge::rewrite(old.as_bytes(), url, &local);
                if new.cut {
                    tracing::warn!(server = server.name, "a part of WWW-Authenticate cannot be read and was left out");
                }
                let value = new.value.map_or(Ok(old), |new| HeaderValue::from_bytes(&new));
                if let Ok(value) = value {
                    headers.append(header::WWW_AUTHENTICATE, value);
                }
                first = first.or(new.named);
            }
            if let Some(path) = first {
                self.shared.described.learn(&server.name, url, path);
            }
        }
    }

    fn stop(&self) -> Stop {
        let mut stopping = self.shared.stopping.clone();
        Box::pin(async move {
            // An error says that nobody can stop it any more: then it goes on.
            if stopping.wait_for(|stopping| *stopping).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// What is known of the client of a message.
struct Asker<'a> {
    headers: &'a HeaderMap,
    legacy: Option<&'a Stream>,
}

impl Asker<'_> {
    /// Answers a message that is denied.
    fn deny(&self, message: &McpRequest<'_>, denial: &Denial) -> Result<(Response<Answer>, Outcome), Failure> {
        if message.id.is_none() {
            return Ok((accepted(), Outcome::Dropped));
        }
        let body = answer::denial(message, denial);
        if let Some(stream) = self.legacy {
            // The answer goes where the client waits for it.
            stream.events.try_send(answer::event(&body)).map_err(|_| Failure::Overloaded)?;
            return Ok((accepted(), Outcome::Denied));
        }
        let response = if headers::takes_events_alone(self.headers) {
            with(StatusCode::OK, EVENTS, answer::event(&body))
        } else {
            with(StatusCode::OK, JSON, body)
        };
        Ok((response, Outcome::Denied))
    }

    /// Answers a request of an HTTP+SSE stream that is not taken, where the client waits for its answer.
    fn refuse(&self, message: &McpRequest<'_>, failure: &Failure, way: &Way<'_>) -> (Response<Answer>, Outcome) {
        let (response, outcome) = way.failed(failure, message.id);
        let error = answer::error(message.id.map(Raw::as_str), failure.code(), &failure.to_string());
        match self.legacy.map(|stream| stream.events.try_send(answer::event(&error))) {
            Some(Ok(())) => (accepted(), outcome),
            _ => (response, outcome),
        }
    }
}

/// Forgets a request whose answer would come on a stream, if the server has not taken it. Of a server's failure it is not
/// known, nor of a client that hung up.
fn settle(kept: Option<Kept<'_>>, sent: &Result<Response<Incoming>, Failure>) {
    let not_taken = match sent {
        Ok(response) => response.status().is_client_error(),
        Err(failure) => failure.nothing_sent(),
    };
    if not_taken {
        kept.into_iter().for_each(Kept::not_taken);
    }
}

fn endpoint(server: &Server, legacy: Option<&Stream>) -> Result<Uri, Failure> {
    match legacy {
        Some(stream) => Ok(stream.endpoint.clone()),
        None => server.url.clone().ok_or_else(|| Failure::NoUrl(server.name.clone())),
    }
}

fn outcome_of(status: StatusCode) -> Outcome {
    if status.is_server_error() {
        Outcome::UpstreamError
    } else if status.is_client_error() {
        Outcome::UpstreamRejected
    } else {
        Outcome::Ok
    }
}

/// The headers that a server gets: without those of this hop, those that name the sidecar, and the wish for compressed
/// answers, which could not be read.
fn forwarded(headers: &HeaderMap, server: &str) -> HeaderMap {
    let mut forwarded = headers.clone();
    remove_hop_by_hop(&mut forwarded);
    for name in [header::HOST, header::CONTENT_LENGTH, header::ACCEPT_ENCODING, header::ORIGIN, header::EXPECT] {
        forwarded.remove(name);
    }
    if headers.contains_key(header::COOKIE) {
        let values = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
        forwarded.remove(header::COOKIE);
        if let Some(own) = cookies::to_server(values, server).and_then(|own| HeaderValue::from_bytes(&own).ok()) {
            forwarded.insert(header::COOKIE, own);
        }
    }
    forwarded
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Whether some client takes an answer for an event stream: one that looks for the type anywhere in what the answer says.
fn is_events(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let names = |value: &HeaderValue| value.as_bytes().windows(KIND.len()).any(|part| part.eq_ignore_ascii_case(KIND));
    headers.get_all(header::CONTENT_TYPE).iter().any(names)
}

/// Why clients may read a body in another way than as UTF-8 of the one type that its head names; nothing where all read the
/// same.
fn unclear_type(headers: &HeaderMap) -> Option<&'static str> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return Some("its Content-Type stands twice");
    }
    let mut parts = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let kind = parts.next().unwrap_or_default();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(byte);
    if !kind.iter().all(token) || (is_events(headers) && !kind.eq_ignore_ascii_case(b"text/event-stream")) {
        return Some("its Content-Type names more than one type");
    }
    let other_charset = |part: &[u8]| {
        let (name, charset) = part.split_at(part.iter().position(|byte| *byte == b'=').unwrap_or(part.len()));
        let charset = charset.strip_prefix(b"=").unwrap_or_default().trim_ascii();
        let charset = charset.strip_prefix(b"\"").and_then(|quoted| quoted.strip_suffix(b"\"")).unwrap_or(charset);
        let plain = name.trim_ascii().eq_ignore_ascii_case(b"charset")
            && (charset.eq_ignore_ascii_case(b"utf-8") || charset.eq_ignore_ascii_case(b"utf8"));
        part.to_ascii_lowercase().windows(7).any(|word| word == b"charset") && !plain
    };
    parts.any(other_charset).then_some("its Content-Type names another charset than UTF-8")
}

/// Whether bytes are text to all: UTF-8 without a NUL, which a text of two bytes for each character has.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && memchr::memchr(0, bytes).is_none()
}

/// The origin by which a client reached the sidecar.
fn origin(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1:15001");
    format!("http://{host}")
}

fn with(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, message: String) -> Response<Answer> {
    with(status, HeaderValue::from_static("text/plain; charset=utf-8"), message.into())
}

fn accepted() -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::new()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// The answer for a failure: a JSON-RPC error, with the id where it is known.
fn failed(failure: &Failure, id: Option<&str>) -> Response<Answer> {
    let mut response = with(failure.status(), JSON, answer::error(id, failure.code(), &failure.to_string()));
    if matches!(failure, Failure::Method) {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    }
    if failure.retry() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
