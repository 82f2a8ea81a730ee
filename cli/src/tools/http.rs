//! HTTP to a server: what the SDK's transport for Streamable HTTP sends and receives. Redirects go nowhere else, headers are secrets, and
//! every list of tools is kept as it came.

use std::{collections::HashMap, fs, net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context, anyhow, bail};
use futures_util::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage},
    transport::streamable_http_client::{SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sse_stream::{Sse, SseStream};

use super::{
    fault::SourceFault,
    message::{self, ReadState},
    secrets::without_url_secrets,
};
use crate::table::shown;

/// What is accepted.
const ACCEPT: &str = "application/json, text/event-stream";
/// The header of a session.
const SESSION: &str = "mcp-session-id";
/// The most redirects that are followed.
const REDIRECTS: usize = 5;
/// The part of an error's body that is read, in bytes.
const ERROR_BODY: usize = 64 * 1024;
/// Headers that belong to the connection or the protocol.
const RESERVED: &[&str] =
    &["accept", "connection", "content-length", "content-type", "transfer-encoding", "upgrade", "te", "trailer"];

/// A connection to one server.
#[derive(Clone)]
pub struct McpHttp {
    client: Client,
    headers: HeaderMap,
    state: ReadState,
}

/// A stream of events.
pub type EventStream = BoxStream<'static, Result<Sse, SseError>>;

/// Parses the URL of a server.
///
/// # Errors
/// It is none, or holds a password.
pub fn parse_url(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).map_err(|error| anyhow!("{} is not a URL: {error}", shown(&without_url_secrets(text))))?;
    if !url.username().is_empty() || url.password().is_some() {
        bail!("the URL holds a user or password; give it with --header 'Authorization: Basic ...'");
    }
    Ok(url)
}

/// Parses headers such as `Name: value`. Errors never show a value.
///
/// # Errors
/// One is none, or belongs to the protocol.
pub fn parse_headers(texts: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (index, text) in texts.iter().enumerate() {
        let number = index + 1;
        let (name, value) =
            text.split_once(':').with_context(|| format!("--header number {number} has no colon; write 'Name: value'"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| anyhow!("--header number {number} has no name of a header before the colon; write 'Name: value'"))?;
        if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("mcp-") {
            bail!("--header {name} is written by the protocol; leave it out");
        }
        let mut value = HeaderValue::from_str(value.trim())
            .map_err(|_| anyhow!("the value of --header {name} has a character that headers cannot hold; write visible ASCII"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

impl McpHttp {
    /// Prepares a connection. Nothing is sent yet.
    ///
    /// # Errors
    /// The certificates of `ca` cannot be read.
    pub fn new(url: &Url, headers: HeaderMap, ca: Option<&Path>, state: &ReadState) -> anyhow::Result<Self> {
        let roots = if url.scheme() == "https" { roots(ca)? } else { rustls::RootCertStore::empty() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::custom(follow))
            .connect_timeout(state.limits.answer)
            .user_agent(concat!("toolweir/", env!("CARGO_PKG_VERSION")));
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        let client =
            builder.build().map_err(|error| anyhow!("cannot prepare a connection: {}", crate::cluster::chain(&error)))?;
        Ok(Self { client, headers, state: state.clone() })
    }

    /// What the reading shares.
    pub fn state(&self) -> &ReadState {
        &self.state
    }

    /// Begins a GET.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.client.get(url)
    }

    /// Begins a POST of a message.
    pub fn post(&self, url: impl reqwest::IntoUrl, message: &ClientJsonRpcMessage) -> RequestBuilder {
        self.client.post(url).json(message)
    }

    /// Sends a request with the headers of the command line.
    ///
    /// # Errors
    /// There is no response, or a redirect that is not followed.
    pub async fn send(&self, mut request: RequestBuilder) -> Result<Response, SourceFault> {
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request.send().await?;
        if response.status().is_redirection() {
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            let from = response.url();
            let Ok(url) = from.join(to) else { return Err(SourceFault::Redirect { to: to.to_owned(), same: false }) };
            let same = url.origin() == from.origin();
            return Err(SourceFault::Redirect { to: without_url_secrets(url.as_str()), same });
        }
        let encoding = response.headers().get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes).unwrap_or_default();
        if !matches!(encoding.trim_ascii(), b"" | b"identity") {
            return Err(SourceFault::Encoded(String::from_utf8_lossy(encoding).into_owned()));
        }
        Ok(response)
    }

    /// Reads a body within the bounds.
    async fn body(&self, response: Response, most: usize) -> Result<Vec<u8>, SourceFault> {
        let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            self.state.count(chunk.len())?;
            body.extend_from_slice(&chunk);
            if body.len() >= most {
                break;
            }
        }
        Ok(body)
    }

    /// Returns the events of a response, within the bounds.
    pub fn events(&self, response: Response) -> EventStream {
        let state = self.state.clone();
        let bounded = response.bytes_stream().map(move |chunk| {
            let chunk = chunk.map_err(SourceFault::from)?;
            state.count(chunk.len())?;
            Ok::<_, SourceFault>(chunk)
        });
        SseStream::from_bytes_stream(bounded).boxed()
    }

    /// Posts a message for the SDK.
    async fn exchange(
        &self,
        uri: &str,
        message: &ClientJsonRpcMessage,
        session: Option<&str>,
        extra: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, SourceFault> {
        let mut request = self.post(uri, message).header(header::ACCEPT, ACCEPT);
        for (name, value) in extra {
            request = request.header(name, value);
        }
        if let Some(session) = session {
            request = request.header(SESSION, session);
        }
        let response = self.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            let body = self.body(response, ERROR_BODY).await.unwrap_or_default();
            return refused(message, status, &body);
        }
        let JsonRpcMessage::Request(asked) = message else { return Ok(StreamableHttpPostResponse::Accepted) };
        let session = response.headers().get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let kind = content_type(&response);
        match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => {
                let body = self.body(response, usize::MAX).await?;
                Ok(StreamableHttpPostResponse::Json(message::read(&body)?, session))
            }
            "text/event-stream" => {
                let events = kept(self.events(response), asked.id.clone(), self.state.clone());
                Ok(StreamableHttpPostResponse::Sse(events, session))
            }
            _ if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) => Ok(StreamableHttpPostResponse::Accepted),
            _ => Err(SourceFault::ContentType(kind)),
        }
    }
}

/// Returns the content type of a response.
pub fn content_type(response: &Response) -> String {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned()).unwrap_or_default()
}

/// Follows a redirect on the same origin, if the method and the body stay.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let kept = matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let same = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if kept && same && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the roots of the system, and those of a file.
fn roots(ca: Option<&Path>) -> anyhow::Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    // A system without any is told by the certificate that cannot be verified.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let Some(path) = ca else { return Ok(roots) };
    let name = shown(&path.display().to_string()).into_owned();
    let pem = fs::read(path)
        .map_err(|error| anyhow!("--ca {name} cannot be read: {error}; give the path of a file of certificates (PEM)"))?;
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| anyhow!("--ca {name} is not a file of certificates in PEM: {error}"))?;
        roots.add(certificate).map_err(|error| anyhow!("--ca {name} has a certificate that cannot be used: {error}"))?;
        found += 1;
    }
    if found == 0 {
        bail!("--ca {name} has no certificate; give a file with BEGIN CERTIFICATE lines");
    }
    Ok(roots)
}

/// Tells what a status other than success means for the SDK: a server of an earlier version refuses the question of the newest one, and an
/// error of JSON-RPC is an answer.
fn refused(message: &ClientJsonRpcMessage, status: StatusCode, body: &[u8]) -> Result<StreamableHttpPostResponse, SourceFault> {
    let text = String::from_utf8_lossy(body);
    let error = match serde_json::from_slice::<ServerJsonRpcMessage>(body) {
        Ok(JsonRpcMessage::Error(error)) => Some(error.error),
        _ => None,
    };
    let said = error.as_ref().map_or(&*text, |error| &*error.message);
    let fault = SourceFault::status(status.as_u16(), if said.contains('<') { "" } else { said });
    match message {
        JsonRpcMessage::Request(asked)
            if matches!(asked.request, ClientRequest::DiscoverRequest(_))
                && status.is_client_error()
                && !matches!(fault, SourceFault::Unauthorized(_)) =>
        {
            let error = error.unwrap_or_else(|| ErrorData::invalid_request(fault.to_string(), None));
            Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(asked.id.clone())), None))
        }
        JsonRpcMessage::Request(_) => Err(fault),
        // A notification is not waited for.
        _ if matches!(fault, SourceFault::Unauthorized(_)) => Err(fault),
        _ => Ok(StreamableHttpPostResponse::Accepted),
    }
}

/// Keeps lists of tools in events as they came. A fault ends the stream with an error as the answer, since the SDK would wait for another.
fn kept(events: EventStream, id: RequestId, state: ReadState) -> EventStream {
    let done = (events, id, state, false);
    let next = |(mut events, id, state, over): (EventStream, RequestId, ReadState, bool)| async move {
        if over {
            return None;
        }
        let fault = match events.next().await? {
            Ok(mut event) => match event.data.as_deref().filter(|data| !data.trim().is_empty()).map(checked).transpose() {
                Ok(data) => {
                    event.data = data;
                    return Some((Ok(event), (events, id, state, false)));
                }
                Err(fault) => fault,
            },
            Err(error) => stream_fault(error),
        };
        let fault = state.faults.note(fault);
        let answer = ServerJsonRpcMessage::error(ErrorData::internal_error(fault.to_string(), None), Some(id.clone()));
        let event = Sse::default().data(serde_json::to_string(&answer).unwrap_or_default());
        Some((Ok(event), (events, id, state, true)))
    };
    futures_util::stream::unfold(done, next).boxed()
}

fn checked(data: &str) -> Result<String, SourceFault> {
    message::read(data.as_bytes())?;
    message::hide_list(data.as_bytes())
}

/// Tells the fault of a stream of events.
pub fn stream_fault(error: SseError) -> SourceFault {
    match error {
        SseError::Body(error) => match error.downcast::<SourceFault>() {
            Ok(fault) => *fault,
            Err(other) => SourceFault::Broken(other.to_string()),
        },
        other => SourceFault::garbage(b"", &format!("a stream of events with {other}")),
    }
}

impl StreamableHttpClient for McpHttp {
    type Error = SourceFault;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<SourceFault>> {
        let answer = self.exchange(&uri, &message, session_id.as_deref(), custom_headers).await;
        answer.map_err(|fault| StreamableHttpError::Client(self.state.faults.note(fault)))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), StreamableHttpError<SourceFault>> {
        let mut request = self.client.delete(uri.as_ref()).header(SESSION, session_id.as_ref());
        for (name, value) in custom_headers {
            request = request.header(name, value);
        }
        // A server may keep its sessions.
        self.send(request).await.map(|_| ()).map_err(StreamableHttpError::Client)
    }

    /// There is nothing to wait for but answers, and these come on the response of their request.
    async fn get_stream(
        &self,
        _uri: Arc<str>,
        _session_id: Option<Arc<str>>,
        _last_event_id: Option<String>,
        _auth_header: Option<String>,
        _custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<EventStream, StreamableHttpError<SourceFault>> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}
