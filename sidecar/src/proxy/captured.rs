//! Connections that the kernel redirected to the sidecar: read until it is clear where they lead, and taken there.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use toolweir_engine::egress::{EgressDecision, EgressEffect, EgressReason, reached};

use super::{
    captured_http::CapturedHttp,
    http_connection::{self, HEAD},
    peeked::PeekedConnection,
    state::Proxy,
};
use crate::{
    capture::{
        Capture,
        client_hello::ClientHello,
        connect::{connect, keep_alive, reset},
        first_bytes::{self, FirstBytes, LARGEST},
        judge::{Judgement, refused},
        metrics::{EgressLine, SERVER_NAME},
        names::{Host, read_authority},
        original_destination, splice,
        words::words,
    },
    in_force::InForce,
    record::Arrival,
};

/// A client that has sent nothing for so long may wait for its server to speak first.
const SILENCE: Duration = Duration::from_millis(200);
/// One that may not wait for that has this long to name where it leads.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel's buffers for a connection over HTTP, as for one to the sidecar's own URL.
const KERNEL: (usize, usize) = (16 * 1024, 64 * 1024);

/// Where a captured connection leads, as far as its client has said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionTarget {
    /// The host: the original address, or what the client asked for by CONNECT.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// True if the client asked for it by CONNECT.
    pub by_connect: bool,
}

impl From<SocketAddr> for ConnectionTarget {
    fn from(original: SocketAddr) -> Self {
        Self { host: Host::Address(reached(original.ip())), port: original.port(), by_connect: false }
    }
}

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
    proxy: Proxy,
    capture: Arc<Capture>,
    stream: TcpStream,
    early: BytesMut,
    to: ConnectionTarget,
    arrived: Arrival,
}

/// Takes a connection that the kernel redirected here to where it may go.
pub(super) async fn connection(stream: TcpStream, proxy: Proxy) {
    let Some(capture) = proxy.state.capture.clone() else { return };
    keep_alive(&stream);
    let (arrived, early) = (Arrival::now(), BytesMut::new());
    let Ok(original) = original_destination(&stream) else { return };
    let Some(original) = original else {
        proxy.record_egress(&refused(EgressReason::Direct), (&capture_port(&stream), "other"), false, arrived);
        return reset(stream);
    };
    let mut stopping = proxy.state.stopping.clone();
    let connection = Box::new(CapturedConnection { proxy, capture, stream, early, to: original.into(), arrived });
    let http = tokio::select! {
        http = connection.run() => http,
        // Requests are answered to their end; what only passes ends with the sidecar.
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => None,
    };
    if let Some(http) = http {
        Box::pin(http.http()).await;
    }
}

fn capture_port(stream: &TcpStream) -> String {
    stream.local_addr().map(|address| address.to_string()).unwrap_or_default()
}

impl CapturedConnection {
    /// Takes the connection to where it may go. Returns one that speaks HTTP, whose requests have to be judged one by one.
    async fn run(mut self: Box<Self>) -> Option<Box<Self>> {
        let mut silence = SILENCE;
        loop {
            match self.begins(silence).await {
                Begun::Ended => break,
                Begun::Silent if silence == SILENCE => {
                    silence = PATIENCE;
                    if !self.server_speaks_first().await {
                        break;
                    }
                }
                Begun::Silent => {
                    self.refuse(&refused(EgressReason::Timeout), "other");
                    break;
                }
                Begun::Read(FirstBytes::Tls(hello)) => {
                    self.tls(&hello).await;
                    break;
                }
                Begun::Read(FirstBytes::Http) if !is_connect(&self.early) => return Some(self),
                Begun::Read(FirstBytes::Http) => {
                    if !self.tunnel().await {
                        break;
                    }
                    silence = SILENCE;
                }
                Begun::Read(FirstBytes::Malformed | FirstBytes::More) => {
                    self.refuse(&refused(EgressReason::Malformed), "other");
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
        let room = LARGEST.saturating_sub(self.early.len());
        self.stream.read_buf(&mut (&mut self.early).limit(room)).await
    }

    fn in_force(&self) -> Arc<InForce> {
        arc_swap::Guard::into_inner(self.proxy.state.governor.in_force())
    }

    fn destination(&self, host: &Host) -> String {
        format!("{host}:{}", self.to.port)
    }

    /// Records a denial, and ends the connection.
    fn refuse(self: Box<Self>, decision: &EgressDecision, protocol: &'static str) {
        let destination = self.destination(&self.to.host);
        self.proxy.record_egress(decision, (&destination, protocol), self.to.host.name().is_some(), self.arrived);
        reset(self.stream);
    }

    /// TLS leads to the name that its client asks for, and is not opened.
    async fn tls(self: Box<Self>, hello: &ClientHello) {
        let host = hello.server_name.clone().map_or_else(|| self.to.host.clone(), Host::Name);
        let in_force = self.in_force();
        let declared = self.capture.declared(&in_force);
        let reason = if hello.hides_name {
            EgressReason::HiddenName
        } else if self.to.by_connect && host != self.to.host {
            EgressReason::OtherName
        } else if !declared.at(&host, self.to.port, &self.capture.domains).is_empty() {
            EgressReason::ServerTls
        } else {
            let judgement = Box::pin(self.capture.judge(&in_force, &host, self.to.port)).await;
            return self.lead(&host, judgement, "tls").await;
        };
        let mut decision = refused(reason);
        if reason == EgressReason::ServerTls {
            decision.name = Some(SERVER_NAME.into());
        }
        self.lead(&host, Judgement::Refused(decision), "tls").await;
    }

    /// What is neither HTTP nor TLS names no host: its address has to be allowed.
    async fn other(self: Box<Self>) {
        let host = self.to.host.clone();
        let judgement = Box::pin(self.capture.judge(&self.in_force(), &host, self.to.port)).await;
        self.lead(&host, judgement, "other").await;
    }

    /// Connects and joins the two connections, if it may.
    async fn lead(self: Box<Self>, host: &Host, judgement: Judgement, protocol: &'static str) {
        let (destination, named) = (self.destination(host), host.name().is_some());
        match judgement {
            Judgement::Refused(decision) => {
                self.proxy.record_egress(&decision, (&destination, protocol), named, self.arrived);
                reset(self.stream);
            }
            Judgement::Open { addresses, decision } => {
                let Ok(server) = Box::pin(connect(&addresses, self.capture.connect)).await else {
                    let decision = EgressDecision { reason: EgressReason::Unreachable, ..decision };
                    self.proxy.record_egress(&decision, (&destination, protocol), named, self.arrived);
                    return reset(self.stream);
                };
                self.proxy.record_egress(&decision, (&destination, protocol), named, self.arrived);
                self.join(server).await;
            }
        }
    }

    async fn join(mut self: Box<Self>, server: TcpStream) {
        let open = self.proxy.state.governor.metrics.egress.begin();
        if let Err(error) = splice::join(&self.stream, server, std::mem::take(&mut self.early)).await {
            tracing::debug!(%error, "a connection that passed broke off");
        }
        drop(open);
    }

    /// Has the server speak, where the client waits for it and its address is allowed. Returns true where the client speaks first after
    /// all, or its address is not allowed, so that it has to name its host.
    async fn server_speaks_first(&mut self) -> bool {
        let (host, port) = (self.to.host.clone(), self.to.port);
        let Judgement::Open { addresses, decision } = self.capture.judge(&self.in_force(), &host, port).await else {
            return true;
        };
        let Ok(server) = Box::pin(connect(&addresses, self.capture.connect)).await else { return true };
        let spoken = async {
            tokio::select! {
                readable = server.readable() => readable.map(|()| true),
                readable = self.stream.readable() => readable.map(|()| false),
            }
        };
        match timeout(HEAD, spoken).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return true,
            _ => return false,
        }
        let destination = self.destination(&host);
        self.proxy.record_egress(&decision, (&destination, "other"), host.name().is_some(), self.arrived);
        let open = self.proxy.state.governor.metrics.egress.begin();
        if let Err(error) = splice::join(&self.stream, server, BytesMut::new()).await {
            tracing::debug!(%error, "a connection that passed broke off");
        }
        drop(open);
        false
    }

    /// Answers a CONNECT (RFC 9110, section 9.3.6), as if its client had connected to where it asks. Returns true where it goes on.
    async fn tunnel(&mut self) -> bool {
        let head = loop {
            let end = self.early.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                break self.early.split_to(end + 4);
            }
            if !matches!(timeout(HEAD, self.read()).await, Ok(Ok(1..))) {
                return false;
            }
        };
        // A tunnel in a tunnel leads through somebody else.
        let asked = if self.to.by_connect { None } else { connect_target(&head) };
        let Some((host, port)) = asked else {
            self.proxy.record_egress(
                &refused(EgressReason::Malformed),
                (&self.destination(&self.to.host), "http"),
                self.to.host.name().is_some(),
                self.arrived,
            );
            let _ = self.stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            return false;
        };
        self.to = ConnectionTarget { host, port, by_connect: true };
        self.stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok()
    }

    async fn http(self: Box<Self>) {
        let socket = socket2::SockRef::from(&self.stream);
        let _ = socket.set_send_buffer_size(KERNEL.0).and_then(|()| socket.set_recv_buffer_size(KERNEL.1));
        let http = Arc::new(CapturedHttp::new(self.to, self.capture));
        let (stream, proxy) = (PeekedConnection::new(self.early.freeze(), self.stream), self.proxy);
        let answer = proxy.clone();
        http_connection::serve(stream, proxy, move |connection, request| {
            answer.clone().serve_captured(Arc::clone(&http), connection, request)
        })
        .await;
    }
}

fn is_connect(early: &[u8]) -> bool {
    early.trim_ascii_start().get(..8).is_some_and(|method| method.eq_ignore_ascii_case(b"CONNECT "))
}

/// The host and port that the head of a CONNECT asks for.
fn connect_target(head: &[u8]) -> Option<(Host, u16)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let whole = request.parse(head).ok()?.is_complete();
    let (host, port) = read_authority(request.path.filter(|_| whole && request.method == Some("CONNECT"))?)?;
    Some((host, port?))
}

impl Proxy {
    /// Counts a decision on a connection that leads to no declared server, and writes its line of the audit log. `to` are the
    /// destination and the protocol.
    pub(super) fn record_egress(&self, decision: &EgressDecision, to: (&str, &str), named: bool, arrived: Arrival) {
        let governor = &self.state.governor;
        governor.metrics.egress.count(decision, named);
        let (destination, protocol) = to;
        let (effect, reason, policy) = (decision.effect.as_str(), decision.reason.as_str(), decision.policy.as_deref());
        if decision.effect == EgressEffect::Denied {
            tracing::info!(destination, protocol, reason, policy, "{}", words(decision, destination));
        }
        governor.audit().write(&EgressLine {
            time: crate::audit::timestamp(arrived.time),
            destination,
            protocol,
            decision: effect,
            reason,
            policy,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_asks_for_a_host_and_a_port() {
        let target = |line: &str| connect_target(format!("{line}\r\nHost: other\r\n\r\n").as_bytes());
        assert_eq!(target("CONNECT MCP.example.com:443 HTTP/1.1"), Some((Host::Name("mcp.example.com".to_owned()), 443)));
        assert_eq!(target("CONNECT [::ffff:192.0.2.1]:80 HTTP/1.1"), Some((Host::read("192.0.2.1").unwrap(), 80)));
        for line in
            ["CONNECT a HTTP/1.1", "CONNECT http://a:80/ HTTP/1.1", "CONNECT a@b:443 HTTP/1.1", "connect a:1 HTTP/1.1", "CONNECT"]
        {
            assert_eq!(target(line), None, "{line}");
        }
        assert!(is_connect(b"\r\nconnect a:1 HTTP/1.1"));
        assert!(!is_connect(b"CONNECTED / HTTP/1.1"));
    }
}
