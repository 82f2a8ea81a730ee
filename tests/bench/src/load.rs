//! The load generator: each connection sends a call, waits for its whole answer, checks it, and sends the next. It does
//! as little as can be done on sockets, since it shares the cores with what it measures.

use crate::process::Tree;
use anyhow::{Context, Result, bail, ensure};
use hyper::Uri;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use socket2::SockRef;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

const BODY_SIZE: usize = 1024;
/// The time that a run may take beyond its end: an answer that is later than this is lost.
const GRACE: Duration = Duration::from_secs(10);

/// An MCP endpoint, with the session that it gave, if it did.
#[derive(Clone)]
pub struct LoadTarget {
    address: SocketAddr,
    host: String,
    path: String,
    session: Option<String>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    segment: Option<u32>,
}

#[derive(Clone, Copy)]
pub enum LoadEnd {
    /// Measured from the first instant (before it: warm-up) to the second
    Time(Instant, Instant),
    Calls(u64),
}

/// State that the connections of one run share.
pub struct Run {
    pub endpoint: LoadTarget,
    pub connections: usize,
    /// The number of values that `arguments.account` goes through
    pub accounts: u64,
    pub until: LoadEnd,
    /// True if a denial by the rate limit is an answer; else it is an error
    pub denials: bool,
    /// Calls begun
    pub calls: AtomicU64,
}

/// The measurements; after the warm-up, if there was one.
#[derive(Default)]
pub struct LoadTally {
    /// Nanoseconds of every call that was let through
    pub latencies: Vec<u32>,
    pub denied: u64,
    /// The CPU time of the watched processes meanwhile
    pub cpu: Option<Duration>,
}

impl LoadTarget {
    /// Opens an MCP session at an `http://` URL, as a client would.
    pub async fn open(url: &str) -> Result<Self> {
        ensure!(url.starts_with("http://"), "{url}: not an http:// URL");
        Self::open_with(url, None).await
    }

    /// Opens an MCP session, with TLS if there is a connector. The host is looked up once.
    pub async fn open_with(url: &str, tls: Option<TlsConnector>) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url}: not a URL"))?;
        let authority = uri.authority().with_context(|| format!("{url}: no host"))?;
        let default = if tls.is_some() { 443 } else { 80 };
        let host = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(default));
        let address = lookup_host(&host).await.with_context(|| host.clone())?.next().context("no address")?;
        let tls = match tls {
            Some(connector) => Some((connector, ServerName::try_from(authority.host().to_owned())?)),
            None => None,
        };
        let mut endpoint = Self { address, host, path: uri.path().to_owned(), session: None, tls, segment: None };
        endpoint.initialize().await.with_context(|| format!("initialize at {url}"))?;
        Ok(endpoint)
    }

    async fn initialize(&mut self) -> Result<()> {
        let mut connection = LoadConnection::to(self).await?;
        let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}});
        let answer = connection.exchange(&self.post(initialize.to_string().as_bytes())).await?;
        ensure!(answer.status == 200, "HTTP {}: {}", answer.status, lossy(&answer.body));
        self.session = answer.session;
        let initialized = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let answer = connection.exchange(&self.post(initialized)).await?;
        ensure!(answer.status == 202, "notifications/initialized: HTTP {}", answer.status);
        Ok(())
    }

    /// Connections have TCP segments of at most so many bytes. Loopback has 64 KiB, more than a small send buffer, so that the kernel waits for
    /// delayed acknowledgements between the pieces of a long answer.
    pub fn with_segments(self, bytes: u32) -> Self {
        Self { segment: Some(bytes), ..self }
    }

    /// A whole POST of this body.
    pub fn post(&self, body: &[u8]) -> Vec<u8> {
        let Self { host, path, session, .. } = self;
        let session = session.as_ref().map(|session| format!("Mcp-Session-Id: {session}\r\n")).unwrap_or_default();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\n{session}\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }
}

/// Runs all connections to the end; any error of one ends all. `watched` is whose CPU time is measured.
pub async fn run(run: Arc<Run>, watched: Option<&Tree>) -> Result<LoadTally> {
    let mut connections = JoinSet::new();
    for _ in 0..run.connections {
        let run = run.clone();
        connections.spawn(async move { drive(&run).await });
    }
    let mut all = LoadTally::default();
    let work = async {
        if let (LoadEnd::Time(from, to), Some(tree)) = (run.until, watched) {
            tokio::time::sleep_until(from.into()).await;
            let before = tree.cpu()?;
            tokio::time::sleep_until(to.into()).await;
            all.cpu = Some(tree.cpu()?.saturating_sub(before));
        }
        while let Some(tally) = connections.join_next().await {
            let tally = tally??;
            all.latencies.extend(tally.latencies);
            all.denied += tally.denied;
        }
        anyhow::Ok(())
    };
    let end = match run.until {
        LoadEnd::Time(_, to) => to + GRACE,
        LoadEnd::Calls(calls) => Instant::now() + GRACE + Duration::from_millis(calls),
    };
    tokio::time::timeout_at(end.into(), work).await.context("no answer in time")??;
    Ok(all)
}

async fn drive(run: &Run) -> Result<LoadTally> {
    let mut connection = LoadConnection::to(&run.endpoint).await?;
    let mut call = LoadCall::new(&run.endpoint, "send_message")?;
    let mut expected = ExpectedAnswer::default();
    let mut tally = LoadTally::default();
    loop {
        let started = Instant::now();
        let number = run.calls.fetch_add(1, Ordering::Relaxed);
        match run.until {
            LoadEnd::Time(_, to) if started >= to => return Ok(tally),
            LoadEnd::Calls(calls) if number >= calls => return Ok(tally),
            _ => call.set(number, number % run.accounts),
        }
        let answer = connection.exchange(&call.bytes).await?;
        let ended = Instant::now();
        let outcome = expected.check(answer, call.id())?;
        let allowed = match &outcome {
            LoadOutcome::Allowed => true,
            LoadOutcome::Denied(reason) if reason == "rate_limit" => false,
            LoadOutcome::Denied(reason) => bail!("an error other than a denial by the rate limit: {reason}"),
        };
        ensure!(allowed || run.denials, "a call was denied");
        match run.until {
            LoadEnd::Time(from, to) if ended < from || ended > to => {}
            _ if allowed => tally.latencies.push(u32::try_from((ended - started).as_nanos()).unwrap_or(u32::MAX)),
            _ => tally.denied += 1,
        }
    }
}

/// A serialised tools/call of exactly `BODY_SIZE`, in which only digits change from call to call.
pub struct LoadCall {
    pub bytes: Vec<u8>,
    id: usize,
    account: usize,
}

const DIGITS: usize = 7;
const FIRST_ID: u64 = 1_000_000;

impl LoadCall {
    pub fn new(endpoint: &LoadTarget, tool: &str) -> Result<Self> {
        let body = |padding: usize| {
            let text = "x".repeat(padding);
            let arguments = format!(r#"{{"account":"account-0000000","text":"{text}"}}"#);
            let params = format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#);
            format!(r#"{{"jsonrpc":"2.0","id":{FIRST_ID},"method":"tools/call","params":{params}}}"#)
        };
        let bytes = endpoint.post(body(BODY_SIZE - body(0).len()).as_bytes());
        let id = position(&bytes, br#""id":"#).context("no id")? + br#""id":"#.len();
        let account = position(&bytes, b"account-").context("no account")? + b"account-".len();
        Ok(Self { bytes, id, account })
    }

    pub fn set(&mut self, number: u64, account: u64) {
        write_digits(&mut self.bytes[self.id..][..DIGITS], FIRST_ID + number % (9 * FIRST_ID));
        write_digits(&mut self.bytes[self.account..][..DIGITS], account);
    }

    pub fn id(&self) -> &[u8] {
        &self.bytes[self.id..][..DIGITS]
    }
}

fn write_digits(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// The decision in a right answer.
#[derive(Debug, PartialEq)]
pub enum LoadOutcome {
    Allowed,
    /// For this reason
    Denied(String),
}

/// Checks answers. Reading each as JSON would cost more than the call, so one that was read and found good is kept: the
/// next must be the same bytes but for the id, or is read again.
#[derive(Default)]
pub struct ExpectedAnswer {
    body: Vec<u8>,
    id: usize,
}

impl ExpectedAnswer {
    /// A success or a denial; anything else is an error.
    pub fn check(&mut self, answer: LoadAnswer, id: &[u8]) -> Result<LoadOutcome> {
        ensure!(answer.status == 200, "HTTP {}: {}", answer.status, lossy(&answer.body));
        if !self.body.is_empty() {
            self.body[self.id..][..DIGITS].copy_from_slice(id);
            if self.body == answer.body {
                return Ok(LoadOutcome::Allowed);
            }
        }
        let outcome = read(&answer.body, id).with_context(|| format!("wrong answer: {}", lossy(&answer.body)))?;
        if outcome == LoadOutcome::Allowed
            && let Some(at) = position(&answer.body, id)
        {
            *self = Self { body: answer.body, id: at };
        }
        Ok(outcome)
    }
}

fn read(body: &[u8], id: &[u8]) -> Result<LoadOutcome> {
    let text = std::str::from_utf8(body)?;
    // A proxy may make one SSE event of a JSON answer.
    let message = if text.starts_with('{') {
        text
    } else {
        let mut data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.find(|data| !data.trim().is_empty()).context("neither JSON nor an SSE event")?
    };
    let message: Value = serde_json::from_str(message)?;
    ensure!(message["id"].to_string().as_bytes() == id, "the answer to another call than {}", lossy(id));
    let result = &message["result"];
    ensure!(result["content"].is_array(), "no tool result");
    if result["isError"] != true {
        return Ok(LoadOutcome::Allowed);
    }
    let reason = result["_meta"]["toolweir.dev/denial"]["reason"].as_str().context("an error other than a denial")?;
    Ok(LoadOutcome::Denied(reason.to_owned()))
}

/// What bytes are exchanged on.
trait LoadStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> LoadStream for S {}

pub struct LoadConnection {
    stream: Box<dyn LoadStream>,
    buffer: Vec<u8>,
    /// How its TLS began, if it has any
    pub handshake: Option<HandshakeKind>,
}

#[derive(Debug, PartialEq)]
pub struct LoadAnswer {
    status: u16,
    session: Option<String>,
    body: Vec<u8>,
}

impl LoadAnswer {
    /// The names in an answer to tools/list.
    pub fn tools(&self) -> Result<Vec<String>> {
        ensure!(self.status == 200, "HTTP {}: {}", self.status, lossy(&self.body));
        let answer: Value = serde_json::from_slice(&self.body).with_context(|| lossy(&self.body).into_owned())?;
        let tools = answer["result"]["tools"].as_array().context("no list of tools")?;
        Ok(tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect())
    }
}

impl LoadConnection {
    pub async fn to(endpoint: &LoadTarget) -> Result<Self> {
        let socket = if endpoint.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(bytes) = endpoint.segment {
            SockRef::from(&socket).set_tcp_mss(bytes)?;
        }
        let stream = socket.connect(endpoint.address).await.with_context(|| endpoint.host.clone())?;
        stream.set_nodelay(true)?;
        let buffer = Vec::with_capacity(16 * 1024);
        let Some((connector, name)) = &endpoint.tls else {
            return Ok(Self { stream: Box::new(stream), buffer, handshake: None });
        };
        let stream = connector.connect(name.clone(), stream).await.with_context(|| format!("TLS to {}", endpoint.host))?;
        let handshake = stream.get_ref().1.handshake_kind();
        Ok(Self { stream: Box::new(stream), buffer, handshake })
    }

    /// Closes the connection in order.
    pub async fn close(mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    pub async fn exchange(&mut self, request: &[u8]) -> Result<LoadAnswer> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        loop {
            let n = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(n > 0, "the connection was closed after {} bytes of an answer", self.buffer.len());
            if let Some(answer) = parse(&self.buffer)? {
                return Ok(answer);
            }
        }
    }
}

/// A whole HTTP/1.1 answer, or nothing yet.
fn parse(buffer: &[u8]) -> Result<Option<LoadAnswer>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_size) = head.parse(buffer)? else { return Ok(None) };
    let status = head.code.context("no status")?;
    let header = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let rest = &buffer[head_size..];
    let body = if let Some(length) = header("content-length") {
        let length: usize = length.parse()?;
        ensure!(rest.len() <= length, "more than the answer");
        (rest.len() == length).then(|| rest.to_vec())
    } else if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        unchunk(rest)?
    } else {
        // Without a length a body ends with the connection, and a kept-alive one does not end.
        ensure!(status == 204, "HTTP {status} without a length");
        Some(Vec::new())
    };
    Ok(body.map(|body| LoadAnswer { status, session: header("mcp-session-id").map(str::to_owned), body }))
}

fn unchunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) else {
            ensure!(rest.len() < 32, "no chunk size in {}", lossy(rest));
            return Ok(None);
        };
        let end = start + usize::try_from(size)?;
        if rest.len() < end + 2 {
            return Ok(None);
        }
        ensure!(rest[end..].starts_with(b"\r\n"), "a chunk without an end, or trailers");
        if size == 0 {
            ensure!(rest.len() == end + 2, "more than the answer");
            return Ok(Some(body));
        }
        body.extend_from_slice(&rest[start..end]);
        rest = &rest[end + 2..];
    }
}

fn position(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(1000)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_only_when_it_is_whole() {
        for whole in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nmcp-session-id: s\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nMcp-Session-Id: s\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ] {
            for cut in 0..whole.len() {
                assert_eq!(parse(&whole.as_bytes()[..cut]).unwrap(), None, "{cut}");
            }
            let answer = LoadAnswer { status: 200, session: Some("s".into()), body: b"hello".into() };
            assert_eq!(parse(whole.as_bytes()).unwrap(), Some(answer));
            assert!(parse(format!("{whole}x").as_bytes()).is_err());
        }
    }

    #[test]
    fn only_the_right_success_passes() {
        let mut expected = ExpectedAnswer::default();
        let mut check = |body: &str| {
            expected.check(LoadAnswer { status: 200, session: None, body: body.into() }, b"1000007").map_err(|e| e.to_string())
        };
        let good = r#"{"jsonrpc":"2.0","id":1000007,"result":{"content":[]}}"#;
        let denied =
            r#"{"id":1000007,"result":{"content":[],"isError":true,"_meta":{"toolweir.dev/denial":{"reason":"rate_limit"}}}}"#;
        assert_eq!(check(good), Ok(LoadOutcome::Allowed));
        assert_eq!(check(good), Ok(LoadOutcome::Allowed));
        assert_eq!(check(&format!("event: message\ndata: {good}\n\n")), Ok(LoadOutcome::Allowed));
        assert_eq!(check(denied), Ok(LoadOutcome::Denied("rate_limit".into())));
        assert!(check(&good.replace("1000007", "1000008")).is_err());
        assert!(check(&denied.replace("reason", "other")).is_err());
        assert!(check(r#"{"id":1000007,"error":{}}"#).is_err());
    }

    #[test]
    fn every_call_has_the_same_size() {
        let endpoint = LoadTarget {
            address: ([127, 0, 0, 1], 1).into(),
            host: "h:1".into(),
            path: "/mcp".into(),
            session: None,
            tls: None,
            segment: None,
        };
        let mut call = LoadCall::new(&endpoint, "send_message").unwrap();
        call.set(41, 999);
        let text = String::from_utf8(call.bytes.clone()).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.len(), BODY_SIZE);
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["id"], &body["params"]["arguments"]["account"]), (&json!(1_000_041), &json!("account-0000999")));
    }
}
