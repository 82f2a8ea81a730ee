//! One policy stream: connects, yields what comes, and takes acknowledgements. It keeps nothing and enforces nothing.

use std::{
    error::Error,
    io,
    net::IpAddr,
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::HttpConnector,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use toolweir_crds::stream::{Ack, Denials, KEEP_ALIVE_SECONDS, LONGEST_LINE, PATH};
use tower_service::Service;

use super::wire::{self, BadLine, Line, Lines, one_line};
use crate::proxy::upstream::{Bounded, Resolver};

/// How long connecting may take: name, TCP and TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the operator may take to let the sidecar in: it has the token reviewed, and may wait for word of the pod.
const HEAD: Duration = Duration::from_secs(15);
/// How long to hear nothing before the stream is given up.
pub const SILENCE: Duration = Duration::from_secs(3 * KEEP_ALIVE_SECONDS);
/// Pings on the connection, and how long their answer may take.
const PING: Duration = Duration::from_secs(10);
/// What may be on its way to the sidecar before it is read, in bytes.
const WINDOW: u32 = 64 * 1024;
/// Bytes of a line that has not ended buy a second each: a long line on a slow network is no silence, a drip is.
const LEAST_RATE: usize = 64 * 1024;
/// The longest Retry-After that is heeded.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    name: Option<ServerName<'static>>,
}

/// What is wrong with the url of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no URL.
    #[error("is no URL: {0}; write https://HOST[:PORT]")]
    NoUrl(String),
    /// It is not https.
    #[error("is no https URL; write https://HOST[:PORT]")]
    Scheme,
    /// It would send the token and take policies in the clear.
    #[error("http is for tests on loopback alone: anybody on the way could change policies; write https://HOST[:PORT]")]
    Clear,
    /// It names a path, a query or a user.
    #[error("is more than a scheme, a host and a port; write https://HOST[:PORT]")]
    More,
    /// No certificate can be for its host.
    #[error("`{0}` is no name that a certificate can be for")]
    Name(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| EndpointError::NoUrl(error.to_string()))?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if uri.scheme() == Some(&Scheme::HTTP) {
            let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            if !loopback {
                return Err(EndpointError::Clear);
            }
        } else if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(EndpointError::Scheme);
        }
        let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if user || uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(EndpointError::More);
        }
        ServerName::try_from(host.as_str()).map_err(|_| EndpointError::Name(host.clone()))?;
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static(PATH));
        let uri = Uri::from_parts(parts).map_err(|error| EndpointError::NoUrl(error.to_string()))?;
        Ok(Self { uri, name: None })
    }
}

impl Endpoint {
    /// The same place, whose certificate must be for another name than the host: where it is reached by an address.
    ///
    /// # Errors
    /// No certificate can be for that name.
    pub fn named(mut self, name: &str) -> Result<Self, EndpointError> {
        self.name = Some(ServerName::try_from(name.to_owned()).map_err(|_| EndpointError::Name(name.to_owned()))?);
        Ok(self)
    }

    /// Whether it is reached over TLS; else it is on loopback.
    pub fn is_secure(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    async fn dial(&self, tls: &ClientConfig) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, ConnectError> {
        // Made for one attempt, so that nothing of it stays in memory.
        let mut http = HttpConnector::new_with_resolver(Resolver::of_dns_alone());
        http.enforce_http(false);
        http.set_nodelay(true);
        let mut https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        if let Some(name) = &self.name {
            https = https.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
        }
        let mut connector = Bounded { inner: https.enable_http2().wrap_connector(http), limit: CONNECT };
        connector.call(self.uri.clone()).await.map_err(|error| {
            let fault = if is_tls(&*error) { Fault::Tls } else { Fault::Unreachable };
            ConnectError::new(fault, with_sources(&*error))
        })
    }
}

/// Who or what is at fault when no stream opens: with `ok`, the closed set of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The token: there is none, it has expired, or it is for another audience.
    Unauthorized,
    /// The pod: the operator does not know it, or the token is bound to none.
    Forbidden,
    /// The operator: it has not seen the whole cluster yet.
    NotReady,
    /// The network, or nobody is there.
    Unreachable,
    /// The certificate, of an authority that is not trusted or for another name.
    Tls,
    /// What answers is no control plane.
    Protocol,
}

/// How an attempt can end: the label `result`.
pub const RESULTS: [&str; 7] = ["ok", "unauthorized", "forbidden", "not_ready", "unreachable", "tls", "protocol"];

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 6] =
        [Self::Unauthorized, Self::Forbidden, Self::NotReady, Self::Unreachable, Self::Tls, Self::Protocol];

    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotReady => "not_ready",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
        }
    }

    /// Whether the next attempt may well succeed though nobody changes anything.
    pub fn passes(self) -> bool {
        matches!(self, Self::Forbidden | Self::NotReady | Self::Unreachable)
    }
}

/// Why no stream opens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// Whose fault it is.
    pub fault: Fault,
    /// What is wrong, in one line.
    pub message: String,
    /// How long to wait at least, as the operator says.
    pub retry_after: Option<Duration>,
}

impl ConnectError {
    /// An error of one line.
    pub fn new(fault: Fault, message: impl AsRef<str>) -> Self {
        Self { fault, message: one_line(message.as_ref(), 400), retry_after: None }
    }
}

/// Why a stream has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The operator ended it: it stops, the token has expired, or the pod is gone.
    #[error("the operator ended it")]
    Ended,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// What came is no message.
    #[error(transparent)]
    Protocol(#[from] BadLine),
}

/// How a stream can end: the label `end`.
pub const ENDS: [&str; 4] = ["ended", "broken", "silent", "protocol"];

impl Lost {
    /// As metrics name it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Broken(_) => "broken",
            Self::Silent(_) => "silent",
            Self::Protocol(_) => "protocol",
        }
    }
}

/// Opens a stream. `tls` is not used where the endpoint is on loopback without it.
///
/// # Errors
/// No stream opens.
pub async fn connect(endpoint: &Endpoint, tls: &ClientConfig, token: &str) -> Result<(Acks, Messages), ConnectError> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| ConnectError::new(Fault::Unauthorized, "the token has characters that no token has"))?;
    bearer.set_sensitive(true);
    let stream = endpoint.dial(tls).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(16 * 1024)
        .max_send_buf_size(WINDOW as usize);
    let handshake = timeout(CONNECT, builder.handshake(stream)).await;
    let late = |_| ConnectError::new(Fault::Unreachable, "it did not answer in time");
    let (mut connection, driver) = handshake.map_err(late)?.map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "connection to the control plane");
        }
    });
    let (lines, body) = mpsc::channel(1);
    let mut request = Request::new(Outgoing(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = endpoint.uri.clone();
    request.headers_mut().insert(AUTHORIZATION, bearer);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    let response = timeout(HEAD, connection.send_request(request)).await.map_err(late)?.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::OK {
        return Err(refused(response).await);
    }
    let messages = Messages {
        body: response.into_body(),
        lines: Lines::new(LONGEST_LINE),
        piece: Bytes::new(),
        since: Instant::now(),
        _connection: connection,
    };
    Ok((Acks(lines), messages))
}

/// What an answer that opens no stream says.
async fn refused(response: Response<Incoming>) -> ConnectError {
    let status = response.status();
    let fault = match status {
        StatusCode::UNAUTHORIZED => Fault::Unauthorized,
        StatusCode::FORBIDDEN => Fault::Forbidden,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Fault::NotReady,
        _ => Fault::Protocol,
    };
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY));
    // Words of the operator, for the log.
    let said = timeout(Duration::from_secs(1), Limited::new(response.into_body(), 1024).collect()).await;
    let said = said.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = format!("it answers {}: {}", status.as_u16(), String::from_utf8_lossy(&said).trim());
    ConnectError { retry_after, ..ConnectError::new(fault, message) }
}

/// An error of the connection before there is an answer.
fn failed(error: &hyper::Error) -> ConnectError {
    let io = sources(error).any(<dyn Error>::is::<io::Error>);
    let gone = io || error.is_closed() || error.is_canceled() || error.is_incomplete_message();
    ConnectError::new(if gone { Fault::Unreachable } else { Fault::Protocol }, with_sources(error))
}

fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for source in sources(error).map(ToString::to_string) {
        // Some repeat what they wrap.
        if !text.contains(&source) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&source);
        }
    }
    text
}

/// Whether the certificate, or something else of TLS, is the cause.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    // An io::Error hides what it wraps from `source`.
    let inner = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| is_tls(inner))
    };
    sources(error).any(|source| source.is::<rustls::Error>() || inner(source))
}

/// Where acknowledgements go.
#[derive(Debug)]
pub struct Acks(mpsc::Sender<Bytes>);

impl Acks {
    /// Sends one. Waits while the operator does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn send(&self, ack: &Ack) -> Result<(), Lost> {
        self.0.send(wire::line(ack)).await.map_err(|_| Lost::Broken("nobody takes acknowledgements".to_owned()))
    }

    /// Tells of calls that were turned away. Waits while the operator does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn tell(&self, denials: &Denials) -> Result<(), Lost> {
        let mut line = serde_json::to_vec(denials).unwrap_or_default();
        line.push(b'\n');
        self.0.send(line.into()).await.map_err(|_| Lost::Broken("nobody takes what was turned away".to_owned()))
    }
}

/// Acknowledgements as the body of the request.
#[derive(Debug)]
struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// What comes.
#[derive(Debug)]
pub struct Messages {
    body: Incoming,
    lines: Lines,
    piece: Bytes,
    /// When the last line ended.
    since: Instant,
    /// The connection ends with it.
    _connection: SendRequest<Outgoing>,
}

impl Messages {
    /// Waits for the next line. A wait that is dropped loses nothing.
    ///
    /// # Errors
    /// The stream has ended, or nothing came for as long as `silence`.
    pub async fn next(&mut self, silence: Duration) -> Result<Line, Lost> {
        loop {
            if let Some(line) = self.lines.take(&mut self.piece)? {
                self.since = Instant::now();
                return Ok(wire::read(&line)?);
            }
            let patience = silence + Duration::from_secs((self.lines.held() / LEAST_RATE) as u64);
            match timeout_at(self.since + patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(Lost::Broken(one_line(&with_sources(&error), 400))),
                Ok(None) => return Err(Lost::Ended),
                Err(_) => return Err(Lost::Silent(silence)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_or_on_loopback() {
        for (text, uri) in [
            (
                "https://toolweir-operator.toolweir-system.svc:8444",
                "https://toolweir-operator.toolweir-system.svc:8444/v1/policies",
            ),
            ("https://10.0.0.1:8444/", "https://10.0.0.1:8444/v1/policies"),
            ("https://[fd00::1]:8444", "https://[fd00::1]:8444/v1/policies"),
            ("http://127.0.0.1:8444", "http://127.0.0.1:8444/v1/policies"),
            ("http://[::1]:8444", "http://[::1]:8444/v1/policies"),
            ("http://localhost", "http://localhost/v1/policies"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(endpoint.uri, uri);
            assert_eq!(endpoint.is_secure(), text.starts_with("https"));
        }
        for (text, error) in [
            ("http://operator:8444", EndpointError::Clear),
            ("http://10.0.0.1", EndpointError::Clear),
            ("http://localhost.example", EndpointError::Clear),
            ("operator:8444", EndpointError::Scheme),
            ("/operator", EndpointError::Scheme),
            ("ftp://operator", EndpointError::Scheme),
            ("https://operator/v2", EndpointError::More),
            ("https://operator/?a=b", EndpointError::More),
            ("https://user@operator", EndpointError::More),
            ("https://a..b", EndpointError::Name("a..b".to_owned())),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
        assert!(matches!("https://a b".parse::<Endpoint>(), Err(EndpointError::NoUrl(_))));
        assert!("https://10.0.0.1".parse::<Endpoint>().unwrap().named("").is_err());
    }

    #[test]
    fn the_label_has_every_fault_and_ok() {
        let mut faults: Vec<&str> = Fault::ALL.iter().map(|fault| fault.as_str()).collect();
        faults.insert(0, "ok");
        assert_eq!(faults, RESULTS);
    }
}
