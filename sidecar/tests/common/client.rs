//! Clients that send exactly what they are told: bytes over HTTP/1.1, and HTTP/2 with prior knowledge.

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::within;

/// The versions of HTTP that the proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    One,
    Two,
}

impl Http {
    pub const BOTH: [Self; 2] = [Self::One, Self::Two];
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// A header's value; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request, not sent yet.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask {
    fn new(method: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { method: method.to_owned(), path: "/bank".to_owned(), headers, body }
    }

    /// A POST of a message to the server `bank`, as a client of MCP sends it.
    pub fn post(body: impl Into<Vec<u8>>) -> Self {
        let headers = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
        Self::new("POST", &headers, body.into())
    }

    /// A GET of the server `bank`'s stream.
    pub fn get() -> Self {
        Self::new("GET", &[("accept", "text/event-stream")], Vec::new())
    }

    pub fn delete() -> Self {
        Self::new("DELETE", &[], Vec::new())
    }

    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub fn to(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Adds a header. `host` replaces the one that is sent else, and over HTTP/2 the authority.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// The same from somebody who is no client of MCP and goes by the HTTP status, such as curl.
    pub fn plain(self) -> Self {
        self.without("accept")
    }

    /// Returns true if its body gives a protocol version, as requests of the modern era do.
    pub fn is_modern(&self) -> bool {
        String::from_utf8_lossy(&self.body).contains("io.modelcontextprotocol/protocolVersion\":\"")
    }

    pub fn is_post(&self) -> bool {
        self.method == "POST"
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    /// The bytes over HTTP/1.1. Where it says that it is chunked, its body is chunked.
    pub fn bytes(&self, host: &str) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        let mut header = |name: &str, value: &str| bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        if !self.has("host") {
            header("host", host);
        }
        let chunked = self.has("transfer-encoding");
        if !self.has("content-length") && !chunked && (self.method == "POST" || !self.body.is_empty()) {
            header("content-length", &self.body.len().to_string());
        }
        for (name, value) in &self.headers {
            header(name, value);
        }
        bytes.extend_from_slice(b"\r\n");
        if chunked {
            for chunk in self.body.chunks(50_000) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    fn request(&self, host: &str) -> Request<Full<Bytes>> {
        let named = self.headers.iter().find(|(name, _)| name == "host").map_or(host, |(_, value)| value);
        let mut request = Request::new(Full::new(Bytes::from(self.body.clone())));
        *request.method_mut() = self.method.parse().unwrap();
        *request.uri_mut() = format!("http://{named}{}", self.path).parse().unwrap();
        for (name, value) in self.headers.iter().filter(|(name, _)| name != "host") {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request
    }

    /// Sends it on a connection of its own and reads the answer whole.
    pub async fn over(&self, http: Http, address: SocketAddr) -> Answer {
        match http {
            Http::One => {
                let mut wire = Wire::connect(address).await;
                wire.write(&self.bytes(&address.to_string())).await;
                let (status, headers) = wire.head().await;
                let body = if self.method == "HEAD" { Bytes::new() } else { wire.rest().await.unwrap() };
                Answer { status, headers, body }
            }
            Http::Two => Http2::connect(address).await.ask(self).await,
        }
    }
}

/// A connection over HTTP/2.
pub struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("the connection", TcpStream::connect(address)).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, address }
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn head(&mut self, ask: &Ask) -> Response<Incoming> {
        within("the head", self.sender.send_request(ask.request(&self.address.to_string()))).await.unwrap()
    }

    pub async fn ask(&mut self, ask: &Ask) -> Answer {
        let (parts, body) = self.head(ask).await.into_parts();
        let body = within("the body", body.collect()).await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

/// The way in which the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

/// A connection over HTTP/1.1.
pub struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    framing: Framing,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("the connection", TcpStream::connect(address)).await.unwrap();
        Self { stream, buffer: BytesMut::new(), framing: Framing::Length(0) }
    }

    /// Connects, sends a request and reads the head of its answer.
    pub async fn open(address: SocketAddr, ask: &Ask) -> (Self, u16, HeaderMap) {
        let mut wire = Self::connect(address).await;
        wire.write(&ask.bytes(&address.to_string())).await;
        let (status, headers) = wire.head().await;
        (wire, status, headers)
    }

    /// Writes bytes. Who was refused early may not want the rest.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = within("writing", self.stream.write_all(bytes)).await;
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        within("reading", self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|count| count > 0)
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                return String::from_utf8(line.to_vec()).unwrap();
            }
            assert!(self.more().await, "the connection ended inside a line: {:?}", self.buffer);
        }
    }

    /// Reads the head of an answer, and passes over those that only say that there will be one.
    pub async fn head(&mut self) -> (u16, HeaderMap) {
        let mut head = self.any_head().await;
        while head.0 < 200 {
            head = self.any_head().await;
        }
        head
    }

    async fn any_head(&mut self) -> (u16, HeaderMap) {
        let first = self.line().await;
        let status: u16 = first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{first}"));
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { break };
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        let length = headers.get("content-length").map(|value| value.to_str().unwrap().parse().unwrap());
        self.framing = match length {
            _ if status < 200 || status == 204 || status == 304 => Framing::Length(0),
            _ if headers.contains_key("transfer-encoding") => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        };
        (status, headers)
    }

    /// The next piece of the body; nothing at its end, and an error where it is broken off.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, &'static str> {
        match &mut self.framing {
            Framing::Chunked => {
                if self.buffer.is_empty() && !self.more().await {
                    return Err("broken off");
                }
                let size = usize::from_str_radix(self.line().await.trim(), 16).unwrap();
                while self.buffer.len() < size + 2 {
                    if !self.more().await {
                        return Err("broken off");
                    }
                }
                let piece = self.buffer.split_to(size).freeze();
                self.buffer.advance(2);
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
            Framing::Length(0) => Ok(None),
            Framing::Length(_) | Framing::Close => {
                if self.buffer.is_empty() && !self.more().await {
                    return if self.framing == Framing::Close { Ok(None) } else { Err("broken off") };
                }
                let Framing::Length(left) = &mut self.framing else { return Ok(Some(self.buffer.split().freeze())) };
                let piece = self.buffer.split_to(self.buffer.len().min(*left)).freeze();
                *left -= piece.len();
                Ok(Some(piece))
            }
        }
    }

    /// Reads pieces until what came ends with this.
    pub async fn text_up_to(&mut self, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let piece = self.piece().await.unwrap().unwrap_or_else(|| panic!("the body ended: {text}"));
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        text
    }

    /// Reads the rest of the body.
    pub async fn rest(&mut self) -> Result<Bytes, &'static str> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// Reads an answer whole.
    pub async fn answer(&mut self) -> Answer {
        let (status, headers) = self.head().await;
        let body = self.rest().await.unwrap();
        Answer { status, headers, body }
    }

    /// The status of the next answer, whose body is passed over; nothing when the connection is closed.
    pub async fn next_status(&mut self) -> Option<u16> {
        if self.buffer.is_empty() && !self.more().await {
            return None;
        }
        let (status, _) = self.head().await;
        let _ = self.rest().await;
        Some(status)
    }

    /// Waits until the other side has closed the connection, and gives what it sent until then.
    pub async fn closed(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.buffer.split()).into_owned()
    }
}
