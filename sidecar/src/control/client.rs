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
use toolweir_crds::{
    stream::{Ack, Denials, KEEP_ALIVE_SECONDS, LONGEST_LINE, PATH},
    text::one_line,
};
use tower_service::Service;

use super::wire::{self, BadLine, LineSplitter, StreamLine};
use crate::net::{BoundedConnector, Resolver};

/// The time that connecting may take: name, TCP and TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// The time that the operator may take to let the sidecar in: it has the token reviewed, and may wait for word of the pod.
const HEAD: Duration = Duration::from_secs(15);
/// The time without a line after which the stream is given up.
pub const SILENCE: Duration = Duration::from_secs(3 * KEEP_ALIVE_SECONDS);
/// Pings on the connection, and how long their answer may take.
const PING: Duration = Duration::from_secs(10);
/// The most bytes on their way to the sidecar that it has not read.
const WINDOW: u32 = 64 * 1024;
/// Bytes of a line that has not ended buy a second each: a long line on a slow network is no silence, a drip is.
const LEAST_RATE: usize = 64 * 1024;
/// The longest Retry-After that is heeded.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The address of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorEndpoint {
    uri: Uri,
    name: Option<ServerName<'static>>,
}

/// A url that is none of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text is not a URL.
    #[error("is not a URL: {0}; write https://HOST[:PORT]")]
    NoUrl(String),
    /// The scheme is not https.
    #[error("is not an https URL; write https://HOST[:PORT]")]
    Scheme,
    /// The token and the policies would travel in the clear.
    #[error("plain http is allowed on loopback only: anybody on the network could change policies; write https://HOST[:PORT]")]
    Clear,
    /// The url names a path, a query or a user.
    #[error("has more than a scheme, a host and a port; write https://HOST[:PORT]")]
    More,
    /// No certificate can be for its host.
    #[error("`{0}` is not a name for which there can be a certificate")]
    Name(String),
}

impl FromStr for OperatorEndpoint {
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

impl OperatorEndpoint {
    /// The same place, whose certificate must be for another name than the host: where it is reached by an address.
    ///
    /// # Errors
    /// No certificate can be for that name.
    pub fn with_server_name(mut self, name: &str) -> Result<Self, EndpointError> {
        self.name = Some(ServerName::try_from(name.to_owned()).map_err(|_| EndpointError::Name(name.to_owned()))?);
        Ok(self)
    }

    /// Returns true if it is reached over TLS; else it is on loopback.
    pub fn is_secure(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    async fn dial(&self, tls: &ClientConfig) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, ConnectError> {
        // Made for one attempt, so that nothing of it stays in memory.
        let mut http = HttpConnector::new_with_resolver(Resolver::of_dns_alone(None));
        http.enforce_http(false);
        http.set_nodelay(true);
        let mut https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        if let Some(name) = &self.name {
            https = https.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
        }
        let mut connector = BoundedConnector { inner: https.enable_http2().wrap_connector(http), limit: CONNECT };
        connector.call(self.uri.clone()).await.map_err(|error| {
            let fault = if is_tls(&*error) { ConnectFault::Tls } else { ConnectFault::Unreachable };
            ConnectError::new(fault, with_sources(&*error))
        })
    }
}

/// Who or what is at fault when no stream opens: with `ok`, the closed set of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFault {
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
    /// The other side, which is no control plane.
    Protocol,
}

/// The ends of an attempt: the label `result`.
pub const RESULTS: [&str; 7] = ["ok", "unauthorized", "forbidden", "not_ready", "unreachable", "tls", "protocol"];

impl ConnectFault {
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

    /// Returns true if the next attempt may succeed though nobody changes anything.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Forbidden | Self::NotReady | Self::Unreachable)
    }
}

/// Why no stream opens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// The one at fault.
    pub fault: ConnectFault,
    /// The cause, in one line.
    pub message: String,
    /// The least time to wait, as the operator says.
    pub retry_after: Option<Duration>,
}

impl ConnectError {
    /// An error of one line.
    pub fn new(fault: ConnectFault, message: impl AsRef<str>) -> Self {
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
    /// A line is no message.
    #[error(transparent)]
    Protocol(#[from] BadLine),
}

/// The ends of a stream: the label `end`.
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
pub async fn connect(
    endpoint: &OperatorEndpoint,
    tls: &ClientConfig,
    token: &str,
) -> Result<(StreamSender, Messages), ConnectError> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| ConnectError::new(ConnectFault::Unauthorized, "the token has characters that no token has"))?;
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
    let late = |_| ConnectError::new(ConnectFault::Unreachable, "it did not answer in time");
    let (mut connection, driver) = handshake.map_err(late)?.map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "connection to the control plane");
        }
    });
    let (lines, body) = mpsc::channel(1);
    let mut request = Request::new(SentLines(body));
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
        lines: LineSplitter::new(LONGEST_LINE),
        piece: Bytes::new(),
        since: Instant::now(),
        _connection: connection,
    };
    Ok((StreamSender(lines), messages))
}

/// Reads an answer that opens no stream.
async fn refused(response: Response<Incoming>) -> ConnectError {
    let status = response.status();
    let fault = match status {
        StatusCode::UNAUTHORIZED => ConnectFault::Unauthorized,
        StatusCode::FORBIDDEN => ConnectFault::Forbidden,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => ConnectFault::NotReady,
        _ => ConnectFault::Protocol,
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
    ConnectError::new(if gone { ConnectFault::Unreachable } else { ConnectFault::Protocol }, with_sources(error))
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

/// Returns true if the certificate, or something else of TLS, is the cause.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    // An io::Error hides what it wraps from `source`.
    let inner = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| is_tls(inner))
    };
    sources(error).any(|source| source.is::<rustls::Error>() || inner(source))
}

/// The way up the stream: acknowledgements, and reports of denials.
#[derive(Debug)]
pub struct StreamSender(mpsc::Sender<Bytes>);

impl StreamSender {
    /// Sends an acknowledgement. Waits while the operator does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn send_ack(&self, ack: &Ack) -> Result<(), Lost> {
        self.0.send(wire::ack_line(ack)).await.map_err(|_| Lost::Broken("nobody takes acknowledgements".to_owned()))
    }

    /// Reports calls that were denied. Waits while the operator does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn send_denials(&self, denials: &Denials) -> Result<(), Lost> {
        self.send(denials, "nobody takes what was turned away").await
    }

    /// Reports the state of something. Waits while the operator does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn send_report(&self, report: &impl serde::Serialize) -> Result<(), Lost> {
        self.send(report, "nobody takes reports").await
    }

    async fn send(&self, report: &impl serde::Serialize, lost: &str) -> Result<(), Lost> {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        self.0.send(line.into()).await.map_err(|_| Lost::Broken(lost.to_owned()))
    }
}

/// Acknowledgements as the body of the request.
#[derive(Debug)]
struct SentLines(mpsc::Receiver<Bytes>);

impl Body for SentLines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// The way down the stream: the operator's lines.
#[derive(Debug)]
pub struct Messages {
    body: Incoming,
    lines: LineSplitter,
    piece: Bytes,
    /// When the last line ended.
    since: Instant,
    /// The connection ends with it.
    _connection: SendRequest<SentLines>,
}

impl Messages {
    /// Waits for the next line. A wait that is dropped loses nothing.
    ///
    /// # Errors
    /// The stream has ended, or nothing came for as long as `silence`.
    pub async fn next(&mut self, silence: Duration) -> Result<StreamLine, Lost> {
        loop {
            if let Some(line) = self.lines.take(&mut self.piece)? {
                self.since = Instant::now();
                return Ok(wire::read_line(&line)?);
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
            let endpoint: OperatorEndpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
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
            assert_eq!(text.parse::<OperatorEndpoint>(), Err(error), "{text}");
        }
        assert!(matches!("https://a b".parse::<OperatorEndpoint>(), Err(EndpointError::NoUrl(_))));
        assert!("https://10.0.0.1".parse::<OperatorEndpoint>().unwrap().with_server_name("").is_err());
    }

    #[test]
    fn the_label_has_every_fault_and_ok() {
        let mut faults: Vec<&str> = ConnectFault::ALL.iter().map(|fault| fault.as_str()).collect();
        faults.insert(0, "ok");
        assert_eq!(faults, RESULTS);
    }
}
