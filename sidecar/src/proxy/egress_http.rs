//! Plain HTTP to other hosts than declared servers. Each request is judged: a connection that passed once may ask for another host,
//! or begin to speak MCP.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use toolweir_engine::{
    Permit,
    egress::{EgressDecision, EgressReason},
};

use super::{
    body::ResponseBody,
    clients::ClientConnection,
    forwarding::remove_hop_by_hop,
    outgoing::OutgoingBody,
    state::Proxy,
    upstream::{CONNECTION, STREAM},
};
use crate::{
    capture::{
        Capture,
        connect::connect,
        judge::{Judgement, refused},
        mcp_signs,
        metrics::OpenEgress,
        names::HostAndPort,
        passing::PassingSlot,
    },
    in_force::InForce,
    record::Arrival,
};

/// The time for the part of a body that is looked at to come.
const LOOK: Duration = Duration::from_secs(5);

/// Why a request is not passed on, and the address to which it would lead.
type EgressRefusal = (EgressDecision, Option<IpAddr>);

/// Passes on the requests of one captured connection that are for other hosts than declared servers'.
#[derive(Debug)]
pub struct HttpEgress {
    /// What captured connections are judged with.
    pub capture: Arc<Capture>,
    /// The connection that the last request left, for the next to the same host.
    opened: Mutex<Option<OpenedHttp>>,
}

impl HttpEgress {
    /// One that has passed nothing on yet.
    pub fn new(capture: Arc<Capture>) -> Self {
        Self { capture, opened: Mutex::default() }
    }

    fn take_opened(&self) -> Option<OpenedHttp> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep_opened(&self, opened: OpenedHttp) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }
}

/// A connection to another host, and what it was judged by.
#[derive(Debug)]
struct OpenedHttp {
    to: HostAndPort,
    judged_by: Weak<InForce>,
    decision: EgressDecision,
    sender: HttpSender,
}

#[derive(Debug)]
enum HttpSender {
    Http1(http1::SendRequest<LookedAt>),
    Http2(http2::SendRequest<LookedAt>),
}

impl HttpSender {
    /// `room` is kept for as long as the connection lives: answers still come on one of which no request is to be made any more.
    async fn new(stream: TcpStream, version: Version, room: (OpenEgress, PassingSlot)) -> Result<Self, hyper::Error> {
        let stream = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(STREAM)
                .initial_connection_window_size(CONNECTION)
                .max_send_buf_size(super::budget::PIECE)
                .max_header_list_size(16 * 1024);
            let (sender, connection) = builder.handshake(stream).await?;
            keep_until_end(connection, room);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::Builder::new().max_buf_size(super::budget::PIECE).handshake(stream).await?;
        keep_until_end(connection, room);
        Ok(Self::Http1(sender))
    }

    fn is_of(&self, version: Version) -> bool {
        match self {
            Self::Http1(sender) => version != Version::HTTP_2 && sender.is_ready(),
            Self::Http2(sender) => version == Version::HTTP_2 && sender.is_ready(),
        }
    }

    async fn send(&mut self, request: Request<LookedAt>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}

/// Has a connection do its work, and keeps its room for as long.
fn keep_until_end(connection: impl Future<Output: Send> + Send + 'static, room: (OpenEgress, PassingSlot)) {
    tokio::spawn(async move {
        let _ = connection.await;
        drop(room);
    });
}

/// A request's body of which the beginning was looked at.
#[derive(Debug)]
struct LookedAt {
    first: Option<Bytes>,
    rest: Incoming,
}

impl Body for LookedAt {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Pin::new(&mut self.rest).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

/// Reads the beginning of a body: the whole of one that is small.
async fn look_at(mut body: Incoming) -> Option<LookedAt> {
    let mut first = BytesMut::new();
    let until = Instant::now() + LOOK;
    while first.len() < mcp_signs::LOOKED_AT && !body.is_end_stream() {
        match timeout_at(until, body.frame()).await {
            // What comes slowly may never end.
            Err(_) | Ok(None) => break,
            Ok(Some(Err(_))) => return None,
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => first.extend_from_slice(&data),
                // Trailers end it.
                Err(_) => break,
            },
        }
    }
    Some(LookedAt { first: Some(first.freeze()).filter(|first| !first.is_empty()), rest: body })
}

impl Proxy {
    /// Passes a request on to another host, or refuses it.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub(super) async fn pass_elsewhere(
        &self,
        http: &HttpEgress,
        in_force: &Arc<InForce>,
        to: HostAndPort,
        connection: Arc<ClientConnection>,
        request: Request<Incoming>,
        arrived: Arrival,
    ) -> Result<Response<OutgoingBody>, Infallible> {
        let Some(slot) = self.state.clients.begin_request(&connection).await else {
            return Ok(self.refuse_captured(&(refused(EgressReason::Overloaded), None), &to, connection, ("http", arrived)));
        };
        match self.try_pass(http, in_force, &to, request, arrived).await {
            Ok(answer) => Ok(self.outgoing(answer, connection, Some(slot))),
            Err(refusal) => Ok(self.refuse_captured(&refusal, &to, connection, ("http", arrived))),
        }
    }

    async fn try_pass(
        &self,
        http: &HttpEgress,
        in_force: &Arc<InForce>,
        to: &HostAndPort,
        request: Request<Incoming>,
        arrived: Arrival,
    ) -> Result<Response<ResponseBody>, EgressRefusal> {
        let (mut parts, body) = request.into_parts();
        let version = parts.version;
        let signs = mcp_signs::in_head(&parts.method, &parts.headers);
        let body = if !signs && mcp_signs::may_be_in_body(&parts.method, &parts.headers) {
            look_at(body).await.ok_or_else(|| (refused(EgressReason::Malformed), None))?
        } else {
            LookedAt { first: None, rest: body }
        };
        if signs || body.first.as_ref().is_some_and(|first| mcp_signs::in_body(first)) {
            return Err((refused(EgressReason::UndeclaredServer), None));
        }
        let kept = http.take_opened().filter(|kept| {
            kept.to == *to && kept.sender.is_of(version) && std::ptr::eq(kept.judged_by.as_ptr(), Arc::as_ptr(in_force))
        });
        let mut opened = match kept {
            Some(kept) => kept,
            None => self.open(http, in_force, to, version, arrived).await?,
        };
        let host = parts.headers.get(header::HOST).cloned();
        remove_hop_by_hop(&mut parts.headers);
        parts.headers.remove(header::EXPECT);
        if let Some(host) = host {
            // `Connection` may name it. The server has to read the host by which the request was judged.
            parts.headers.insert(header::HOST, host);
        }
        if let Some(authority) = parts.uri.authority() {
            if version == Version::HTTP_2 {
                parts.headers.remove(header::HOST);
            } else {
                // The whole URL was for a proxy; `Host` says the same to the server.
                let host = HeaderValue::from_str(authority.as_str()).map_err(|_| (refused(EgressReason::Malformed), None))?;
                parts.headers.insert(header::HOST, host);
                parts.uri = parts.uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
            }
        }
        let sent = timeout(self.state.limits.first_byte, opened.sender.send(Request::from_parts(parts, body))).await;
        let unreachable = || (EgressDecision { reason: EgressReason::Unreachable, ..opened.decision.clone() }, None);
        let response = sent.ok().and_then(Result::ok).ok_or_else(unreachable)?;
        http.keep_opened(opened);
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        let body = ResponseBody::stream(body, Permit::default(), None);
        Ok(Response::from_parts(parts, body))
    }

    /// Connects to another host, if it may.
    async fn open(
        &self,
        http: &HttpEgress,
        in_force: &Arc<InForce>,
        to: &HostAndPort,
        version: Version,
        arrived: Arrival,
    ) -> Result<OpenedHttp, EgressRefusal> {
        let (addresses, decision) = match http.capture.judge(in_force, to).await {
            Judgement::Open { addresses, decision } => (addresses, decision),
            Judgement::Refused { decision, address } => return Err((decision, address)),
        };
        let slot = http.capture.passing.take().ok_or_else(|| (refused(EgressReason::Overloaded), None))?;
        let unreachable = || (EgressDecision { reason: EgressReason::Unreachable, ..decision.clone() }, None);
        let stream = connect(&addresses, http.capture.connect).await.map_err(|_: io::Error| unreachable())?;
        slot.bound(&stream);
        let open = self.state.governor.metrics.egress.begin();
        let sender = HttpSender::new(stream, version, (open, slot)).await.map_err(|_| unreachable())?;
        self.record_egress(&decision, to, None, ("http", arrived));
        Ok(OpenedHttp { to: to.clone(), judged_by: Arc::downgrade(in_force), decision, sender })
    }
}
