//! Connections that the kernel redirected to the sidecar: read until it is clear where they lead, and taken there.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use toolweir_engine::egress::{EgressDecision, EgressEffect, EgressReason};

use super::{
    captured_http::CapturedHttp,
    http_connection::{self, HEAD, KERNEL},
    peeked::PeekedConnection,
    state::Proxy,
};
use crate::{
    audit::EgressLine,
    capture::{
        Capture,
        client_hello::ClientHello,
        connect::{connect, keep_alive, reset},
        connect_method::{connect_target, is_connect},
        first_bytes::{self, FirstBytes, LARGEST},
        judge::{Judgement, refused},
        metrics::SERVER_NAME,
        names::{Host, HostAndPort},
        original_destination,
        passing::PassingSlot,
        splice,
        target::ConnectionTarget,
    },
    in_force::InForce,
    interception::handshake::is_http2,
    record::Arrival,
};

/// A client that has sent nothing for so long may wait for its server to speak first.
const SILENCE: Duration = Duration::from_millis(200);
/// One that may not wait for that has this long to name where it leads.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes for which there is room whenever more is read: most messages that begin a connection, in one piece.
const PIECE: usize = 2 * 1024;

/// What was read of a connection.
enum Begun {
    /// Nothing came for a while.
    Silent,
    /// It has ended.
    Ended,
    /// The first bytes, which are clear.
    Read(FirstBytes),
}

/// A connection on its way.
struct CapturedConnection {
    proxy: Arc<Proxy>,
    capture: Arc<Capture>,
    stream: TcpStream,
    early: BytesMut,
    to: ConnectionTarget,
    /// What was decided while the client had said nothing.
    silent: Option<EgressDecision>,
    arrived: Arrival,
}

/// A connection whose requests have to be judged one by one.
enum HttpToServe {
    /// In clear text.
    Plain(Box<CapturedConnection>),
    /// In TLS that was opened.
    Opened(Box<OpenedConnection>),
}

/// A connection in TLS that was opened.
struct OpenedConnection {
    proxy: Arc<Proxy>,
    stream: TlsStream<PeekedConnection>,
    /// Its place among the connections over HTTP/2, if it is one.
    place: Option<OwnedSemaphorePermit>,
    http: Arc<CapturedHttp>,
}

/// Takes a connection that the kernel redirected here to where it may go.
pub(super) async fn connection(stream: TcpStream, proxy: Arc<Proxy>) {
    let Some(capture) = proxy.state.capture.clone() else { return };
    keep_alive(&stream);
    let (arrived, early) = (Arrival::now(), BytesMut::new());
    let Ok(original) = original_destination(&stream) else { return };
    let Some(original) = original else {
        if let Ok(here) = stream.local_addr() {
            let here = ConnectionTarget::from(here).at;
            proxy.record_egress(&refused(EgressReason::Direct), &here, None, ("other", arrived));
        }
        return reset(stream);
    };
    let mut stopping = proxy.state.stopping.clone();
    let connection = Box::new(CapturedConnection { proxy, capture, stream, early, to: original.into(), silent: None, arrived });
    let http = tokio::select! {
        http = connection.run() => http,
        // Requests are answered to their end; what only passes ends with the sidecar.
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => None,
    };
    match http {
        Some(HttpToServe::Plain(http)) => Box::pin(http.http()).await,
        Some(HttpToServe::Opened(opened)) => {
            let OpenedConnection { proxy, stream, place, http } = *opened;
            Box::pin(http_connection::serve_opened(stream, place, proxy, http)).await;
        }
        None => {}
    }
}

impl CapturedConnection {
    /// Takes the connection to where it may go. Returns one that speaks HTTP, whose requests have to be judged one by one.
    async fn run(mut self: Box<Self>) -> Option<HttpToServe> {
        let mut silence = SILENCE;
        loop {
            match self.begins(silence).await {
                Begun::Ended => {
                    if let Some(decision) = self.silent.as_ref().filter(|decision| decision.effect.passes()) {
                        self.proxy.record_egress(decision, &self.to.at, None, ("other", self.arrived));
                    }
                    break;
                }
                Begun::Silent if silence == SILENCE && self.early.is_empty() => {
                    silence = PATIENCE;
                    if !self.server_speaks_first().await {
                        break;
                    }
                }
                Begun::Silent => {
                    // What is known of the address says more than that nothing came.
                    let known = self.silent.take().filter(|known| known.reason != EgressReason::None);
                    let decision = known.unwrap_or_else(|| refused(EgressReason::Timeout));
                    self.proxy.record_egress(&decision, &self.to.at, None, ("other", self.arrived));
                    reset(self.stream);
                    break;
                }
                Begun::Read(FirstBytes::Tls(hello)) => return self.tls(hello).await.map(HttpToServe::Opened),
                Begun::Read(FirstBytes::Http) if !is_connect(&self.early) => return Some(HttpToServe::Plain(self)),
                Begun::Read(FirstBytes::Http) => {
                    if !self.tunnel().await {
                        break;
                    }
                    silence = SILENCE;
                }
                Begun::Read(FirstBytes::Malformed | FirstBytes::More) => {
                    self.refuse(EgressReason::Malformed);
                    break;
                }
                Begun::Read(FirstBytes::Other) => {
                    self.other().await;
                    break;
                }
            }
        }
        None
    }

    /// Reads until the first bytes are clear.
    async fn begins(&mut self, silence: Duration) -> Begun {
        let begun = async {
            loop {
                match first_bytes::read(&self.early) {
                    FirstBytes::More => {}
                    clear => return Begun::Read(clear),
                }
                let patience = if self.early.is_empty() { silence } else { HEAD };
                match timeout(patience, self.read()).await {
                    Err(_) => return Begun::Silent,
                    Ok(Ok(0) | Err(_)) => return Begun::Ended,
                    Ok(Ok(_)) => {}
                }
            }
        };
        timeout(HEAD, begun).await.unwrap_or(Begun::Read(FirstBytes::Malformed))
    }

    /// Reads more, up to the most that is read before it is clear where the connection leads.
    async fn read(&mut self) -> io::Result<usize> {
        // One that says nothing needs no buffer yet.
        self.stream.readable().await?;
        self.early.reserve(PIECE);
        let room = LARGEST.saturating_sub(self.early.len());
        self.stream.read_buf(&mut (&mut self.early).limit(room)).await
    }

    fn in_force(&self) -> Arc<InForce> {
        arc_swap::Guard::into_inner(self.proxy.state.governor.in_force())
    }

    /// Records a denial, and ends the connection.
    fn refuse(self, reason: EgressReason) {
        self.proxy.record_egress(&refused(reason), &self.to.at, None, ("other", self.arrived));
        reset(self.stream);
    }

    /// TLS leads to the name that its client asks for. It is opened where policies have a declared server's intercepted, and passes as it
    /// is elsewhere.
    async fn tls(self: Box<Self>, hello: ClientHello) -> Option<Box<OpenedConnection>> {
        // An address is not to be a server name (RFC 6066, section 3). Where one is, it must be that of the connection.
        let host = hello.server_name.as_deref().map_or_else(|| Some(self.to.at.host.clone()), Host::read);
        let Some(host) = host else {
            self.refuse(EgressReason::Malformed);
            return None;
        };
        let at = HostAndPort { host, port: self.to.at.port };
        let in_force = self.in_force();
        let servers = self.capture.declared(&in_force).at(&at, &self.capture.domains);
        let is_other = (self.to.by_connect || at.host.address().is_some()) && at != self.to.at;
        let opened = self.capture.opened_name(&servers, &at);
        let judgement = if let (Ok(_), false) = (opened, is_other) {
            // A name that is hidden behind this one is none that the sidecar answers for: its client notices, and ends the handshake.
            return self.open(at, hello.offers_http2).await;
        } else if hello.hides_name {
            Judgement::refused(refused(EgressReason::HiddenName))
        } else if is_other {
            Judgement::refused(refused(EgressReason::OtherName))
        } else if let (Err(reason), false) = (opened, servers.is_empty()) {
            Judgement::refused(EgressDecision { name: Some(SERVER_NAME.into()), ..refused(reason) })
        } else {
            Box::pin(self.capture.judge(&in_force, &at)).await
        };
        self.lead(at, judgement, "tls").await;
        None
    }

    /// Answers a handshake in place of the declared server at a host.
    async fn open(self: Box<Self>, at: HostAndPort, offers_http2: bool) -> Option<Box<OpenedConnection>> {
        let Self { proxy, capture, stream, early, arrived, .. } = *self;
        bound_kernel(&stream);
        // Where no more connections over HTTP/2 may be, the client is offered HTTP/1.1.
        let place = if offers_http2 { proxy.state.clients.http2_place() } else { None };
        let stream = PeekedConnection::new(early.freeze(), stream);
        let name = at.host.name().unwrap_or_default();
        match Box::pin(capture.interception.accept(name, stream, place.is_some(), arrived.time)).await {
            Ok((stream, opened)) => {
                let place = place.filter(|_| is_http2(&stream));
                let http = Arc::new(CapturedHttp::opened(at, capture, opened));
                Some(Box::new(OpenedConnection { proxy, stream, place, http }))
            }
            Err(error) => {
                tracing::info!(destination = %at, %error, "TLS of an agent to a declared server was not opened");
                let decision = EgressDecision { name: Some(SERVER_NAME.into()), ..refused(EgressReason::TlsHandshake) };
                proxy.record_egress(&decision, &at, None, ("tls", arrived));
                None
            }
        }
    }

    /// What is neither HTTP nor TLS names no host: its address has to be allowed.
    async fn other(self: Box<Self>) {
        let at = self.to.at.clone();
        let judgement = Box::pin(self.capture.judge(&self.in_force(), &at)).await;
        self.lead(at, judgement, "other").await;
    }

    /// Connects and joins the two connections, if it may.
    async fn lead(mut self: Box<Self>, at: HostAndPort, judgement: Judgement, protocol: &'static str) {
        let (addresses, decision) = match judgement {
            Judgement::Open { addresses, decision } => (addresses, decision),
            Judgement::Refused { decision, address } => {
                self.proxy.record_egress(&decision, &at, address, (protocol, self.arrived));
                return reset(self.stream);
            }
        };
        let Some(slot) = self.capture.passing.take() else {
            self.proxy.record_egress(&refused(EgressReason::Overloaded), &at, None, (protocol, self.arrived));
            return reset(self.stream);
        };
        let connected = Box::pin(connect(&addresses, self.capture.connect)).await;
        let reason = if connected.is_ok() { decision.reason } else { EgressReason::Unreachable };
        self.proxy.record_egress(&EgressDecision { reason, ..decision }, &at, None, (protocol, self.arrived));
        match connected {
            Ok(server) => self.join(server, slot).await,
            Err(_) => reset(self.stream),
        }
    }

    async fn join(&mut self, server: TcpStream, slot: PassingSlot) {
        slot.bound(&self.stream);
        slot.bound(&server);
        let open = self.proxy.state.governor.metrics.egress.begin();
        if let Err(error) = splice::join(&self.stream, server, std::mem::take(&mut self.early)).await {
            tracing::debug!(%error, "a connection that passed broke off");
        }
        drop(open);
    }

    /// Has the server speak, where the client waits for it and its address is allowed. Returns true where the client speaks first after
    /// all, or its address is not allowed, so that it has to name its host.
    async fn server_speaks_first(&mut self) -> bool {
        let (addresses, decision) = match Box::pin(self.capture.judge(&self.in_force(), &self.to.at)).await {
            Judgement::Open { addresses, decision } => (addresses, decision),
            Judgement::Refused { decision, .. } => {
                self.silent = Some(decision);
                return true;
            }
        };
        let Some(slot) = self.capture.passing.take() else {
            self.silent = Some(refused(EgressReason::Overloaded));
            return true;
        };
        let Ok(server) = Box::pin(connect(&addresses, self.capture.connect)).await else {
            self.silent = Some(EgressDecision { reason: EgressReason::Unreachable, ..decision });
            return true;
        };
        self.silent = Some(decision.clone());
        let spoken = async {
            tokio::select! {
                readable = server.readable() => readable.map(|()| true),
                readable = self.stream.readable() => readable.map(|()| false),
            }
        };
        match timeout(HEAD, spoken).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return true,
            Ok(Err(_)) => return false,
            Err(_) => {
                self.proxy.record_egress(&refused(EgressReason::Timeout), &self.to.at, None, ("other", self.arrived));
                return false;
            }
        }
        self.proxy.record_egress(&decision, &self.to.at, None, ("other", self.arrived));
        self.join(server, slot).await;
        false
    }

    /// Answers a CONNECT (RFC 9110, section 9.3.6), as if its client had connected to where it asks. Returns true where it goes on.
    async fn tunnel(&mut self) -> bool {
        let head = async {
            loop {
                let end = self.early.windows(4).position(|window| window == b"\r\n\r\n");
                if let Some(end) = end {
                    break Some(self.early.split_to(end + 4));
                }
                if !matches!(self.read().await, Ok(1..)) {
                    break None;
                }
            }
        };
        let head = timeout(HEAD, head).await.ok().flatten();
        // A tunnel in a tunnel leads through somebody else.
        let asked = head.filter(|_| !self.to.by_connect).and_then(|head| connect_target(&head));
        let Some(at) = asked else {
            self.proxy.record_egress(&refused(EgressReason::Malformed), &self.to.at, None, ("http", self.arrived));
            let _ = self.stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            return false;
        };
        self.to = ConnectionTarget { at, by_connect: true };
        self.stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok()
    }

    async fn http(self: Box<Self>) {
        bound_kernel(&self.stream);
        let http = Arc::new(CapturedHttp::new(self.to, self.capture));
        let (stream, proxy) = (PeekedConnection::new(self.early.freeze(), self.stream), self.proxy);
        http_connection::serve(stream, proxy, Some(http)).await;
    }
}

/// Gives a connection the kernel's buffers that the listener of the sidecar's own URL has. What passes has others, so that those of the
/// capture port have none.
fn bound_kernel(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_send_buffer_size(KERNEL.0 as usize).and_then(|()| socket.set_recv_buffer_size(KERNEL.1 as usize));
}

impl Proxy {
    /// Counts a decision on a connection that leads to no declared server, logs a denial and writes its line of the audit log. `address`
    /// is where it would lead, where that is known besides `at`; `how` are its protocol and its arrival.
    pub(super) fn record_egress(
        &self,
        decision: &EgressDecision,
        at: &HostAndPort,
        address: Option<IpAddr>,
        how: (&str, Arrival),
    ) {
        let (governor, (protocol, arrived)) = (&self.state.governor, how);
        governor.metrics.egress.count(decision, at.host.name().is_some());
        let destination = at.to_string();
        let is_failure = matches!(decision.reason, EgressReason::Unreachable | EgressReason::NotResolved);
        let (effect, reason, policy) = (decision.effect.as_str(), decision.reason.as_str(), decision.policy.as_deref());
        if decision.effect == EgressEffect::Denied || is_failure {
            tracing::info!(destination, protocol, reason, policy, "connection {effect}: {}", at.message(decision, address));
        }
        governor.audit().write(&EgressLine {
            time: crate::audit::timestamp(arrived.time),
            destination: &destination,
            protocol,
            decision: effect,
            reason,
            policy,
        });
    }
}
