//! Connections to servers through a proxy of the network (RFC 9110, sections 7.3 and 9.3.6): a tunnel for https, so that
//! TLS is with the server itself; for http the request is the proxy's to read.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use toolweir_crds::port_of;
use tower_service::Service;

/// The longest head of a proxy's answer, in bytes.
const HEAD: usize = 8 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy cannot be connected to.
    #[error("the proxy of --upstream-proxy cannot be reached")]
    Unreachable(#[source] BoxError),
    /// The proxy refuses with this status.
    #[error("the proxy of --upstream-proxy answers with status {0}{remedy}", remedy = remedy(*.0))]
    Refused(u16),
    /// The proxy hung up, or speaks something else than HTTP.
    #[error("the proxy of --upstream-proxy hung up or sent what is no HTTP answer")]
    NoAnswer,
}

fn remedy(status: u16) -> &'static str {
    match status {
        407 => "; write a user and a password in its URL",
        403 => "; it must allow CONNECT to this host and port",
        _ => "",
    }
}

/// A proxy, and what is reached without it. Its text has no password in it.
#[derive(Clone)]
pub struct UpstreamProxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
    except: Arc<[Except]>,
}

impl std::fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamProxy").field("uri", &self.uri).field("except", &self.except).finish_non_exhaustive()
    }
}

/// Hosts that are reached without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Except {
    Everything,
    /// A network by its address and the bits that count.
    Network(IpAddr, u8, Option<u16>),
    /// A name and all below it.
    Domain(String, Option<u16>),
}

impl FromStr for UpstreamProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text may hold a password: no error repeats it.
        let usage = || "write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT".to_owned();
        let uri: Uri = text.parse().map_err(|_| usage())?;
        if uri.scheme_str() == Some("https") {
            return Err("a proxy that is itself reached by TLS is not supported; write http://HOST:PORT".to_owned());
        }
        let authority = uri.authority().ok_or_else(usage)?;
        if uri.scheme_str() != Some("http")
            || authority.host().is_empty()
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
        {
            return Err(usage());
        }
        let authorization = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((user, _)) => {
                let plain = unescape(user).ok_or_else(usage)?;
                let plain = if plain.contains(&b':') { plain } else { [&plain, b":".as_slice()].concat() };
                let text = format!("Basic {}", data_encoding::BASE64.encode(&plain));
                let mut value = HeaderValue::from_str(&text).map_err(|_| usage())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let uri = format!("http://{host}/").parse().map_err(|_| usage())?;
        Ok(Self { uri, authorization, except: Arc::default() })
    }
}

impl UpstreamProxy {
    /// The same proxy, but not for these hosts: the form of `NO_PROXY`.
    #[must_use]
    pub fn except(mut self, hosts: &str) -> Self {
        let hosts = hosts.split([',', ' ', '\t', '\n']).filter(|host| !host.is_empty());
        self.except = hosts.map(Except::parse).collect();
        self
    }

    /// Returns true where a server is reached through the proxy. Loopback is another machine to the proxy, so never for that.
    pub fn is_for(&self, url: &Uri) -> bool {
        let Some(host) = url.host() else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let local = address.map_or(host == "localhost" || host.ends_with(".localhost"), |address| address.is_loopback());
        !local && !self.except.iter().any(|except| except.holds(&host, address, port_of(url)))
    }

    /// The header for a request that the proxy itself reads.
    pub fn authorization(&self, url: &Uri) -> Option<HeaderValue> {
        if url.scheme_str() == Some("http") && self.is_for(url) { self.authorization.clone() } else { None }
    }
}

impl Except {
    fn parse(text: &str) -> Self {
        if text == "*" {
            return Self::Everything;
        }
        let plain = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        if let Some((address, bits)) = text.split_once('/')
            && let (Some(address), Ok(bits)) = (plain(address), bits.parse())
        {
            return Self::Network(address, bits, None);
        }
        if let Some(address) = plain(text) {
            return Self::Network(address, u8::MAX, None);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, number)) if number.parse::<u16>().is_ok() => (host, number.parse().ok()),
            _ => (text, None),
        };
        if let Some(address) = plain(host) {
            return Self::Network(address, u8::MAX, port);
        }
        let host = host.trim_start_matches('*').trim_matches('.');
        Self::Domain(host.to_ascii_lowercase(), port)
    }

    fn holds(&self, host: &str, address: Option<IpAddr>, at: Option<u16>) -> bool {
        let here = |port: &Option<u16>| port.is_none() || *port == at;
        match self {
            Self::Everything => true,
            Self::Network(network, bits, port) => here(port) && address.is_some_and(|address| shares(address, *network, *bits)),
            Self::Domain(domain, port) => {
                let below = host.strip_suffix(domain.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'));
                !domain.is_empty() && address.is_none() && here(port) && below
            }
        }
    }
}

/// Returns true where two addresses have this many first bits in common.
fn shares(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differ = match (one.to_canonical(), other.to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u32::from(one) ^ u32::from(other)).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (u128::from(one) ^ u128::from(other)).leading_zeros(),
        _ => return false,
    };
    let width = if one.to_canonical().is_ipv4() { 32 } else { 128 };
    differ >= u32::from(bits).min(width)
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?].map(char::from).iter().collect::<String>();
            plain.push(u8::from_str_radix(&digits, 16).ok()?);
        } else {
            plain.push(byte);
        }
    }
    Some(plain)
}

/// A connector that goes through the proxy where there is one.
#[derive(Clone, Debug)]
pub struct Through<C> {
    pub(super) inner: C,
    pub(super) proxy: Option<UpstreamProxy>,
}

impl<C> Service<Uri> for Through<C>
where
    C: Service<Uri, Response = TokioIo<TcpStream>>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = UpstreamStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Some(proxy) = self.proxy.clone().filter(|proxy| proxy.is_for(&url)) else {
            let connecting = self.inner.call(url);
            return Box::pin(async move {
                let inner = connecting.await.map_err(Into::into)?;
                Ok(UpstreamStream { inner, proxied: false })
            });
        };
        let connecting = self.inner.call(proxy.uri.clone());
        Box::pin(async move {
            let inner = connecting.await.map_err(|error| ProxyError::Unreachable(error.into()))?;
            if url.scheme_str() != Some("https") {
                return Ok(UpstreamStream { inner, proxied: true });
            }
            let mut stream = inner.into_inner();
            tunnel(&mut stream, &url, proxy.authorization.as_ref()).await?;
            Ok(UpstreamStream { inner: TokioIo::new(stream), proxied: false })
        })
    }
}

/// Asks a proxy for a tunnel.
async fn tunnel(stream: &mut TcpStream, url: &Uri, authorization: Option<&HeaderValue>) -> Result<(), ProxyError> {
    let target = format!("{}:{}", url.host().unwrap_or_default(), port_of(url).unwrap_or(443));
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let lost = |error: io::Error| ProxyError::Unreachable(error.into());
    stream.write_all(&request).await.map_err(lost)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte: what follows the head is the server's.
        let byte = stream.read_u8().await.map_err(|_| ProxyError::NoAnswer)?;
        head.push(byte);
        if head.len() > HEAD {
            return Err(ProxyError::NoAnswer);
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(status) => Err(ProxyError::Refused(status)),
        None => Err(ProxyError::NoAnswer),
    }
}

/// A connection to a server, or to the proxy.
#[derive(Debug)]
pub struct UpstreamStream {
    inner: TokioIo<TcpStream>,
    /// True where the proxy reads the requests.
    proxied: bool,
}

impl Connection for UpstreamStream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.proxied)
    }
}

impl Read for UpstreamStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for UpstreamStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_the_proxy_are_those_of_no_proxy_and_loopback() {
        let is_for = |except: &str, url: &str| {
            let proxy: UpstreamProxy = "http://proxy:3128".parse().unwrap();
            proxy.except(except).is_for(&url.parse().unwrap())
        };
        for (except, url, through) in [
            ("", "https://tools.example/mcp", true),
            ("", "http://localhost:8000/mcp", false),
            ("", "http://127.1.2.3/mcp", false),
            ("", "http://[::1]:8000/mcp", false),
            ("*", "https://tools.example/mcp", false),
            ("example", "https://tools.example/mcp", false),
            (".EXAMPLE,x", "https://tools.example./mcp", false),
            ("*.example", "https://tools.example/mcp", false),
            ("ample", "https://tools.example/mcp", true),
            ("x, tools.example", "https://tools.example/mcp", false),
            ("tools.example:443", "https://tools.example/mcp", false),
            ("tools.example:80", "https://tools.example/mcp", true),
            ("10.0.0.0/8", "http://10.9.8.7/mcp", false),
            ("10.0.0.0/8", "http://11.9.8.7/mcp", true),
            ("10.9.8.7", "http://10.9.8.7/mcp", false),
            ("10.9.8.7:81", "http://10.9.8.7/mcp", true),
            ("2001:db8::/32", "http://[2001:db8::7]/mcp", false),
            ("[2001:db8::7]:80", "http://[2001:db8::7]/mcp", false),
            (",,.", "https://tools.example/mcp", true),
        ] {
            assert_eq!(is_for(except, url), through, "{except}: {url}");
        }
    }

    #[test]
    fn a_password_is_in_no_text() {
        let proxy: UpstreamProxy = "http://user:p%40ss@proxy:3128/".parse().unwrap();
        assert_eq!(proxy.uri, "http://proxy:3128/");
        let value = proxy.authorization(&"http://tools.example/".parse().unwrap()).unwrap();
        assert_eq!(value, "Basic dXNlcjpwQHNz");
        assert!(!format!("{proxy:?}").contains("dXNl") && !format!("{proxy:?}").contains("ss"), "{proxy:?}");
        assert_eq!(proxy.authorization(&"https://tools.example/".parse().unwrap()), None);
        for wrong in
            ["proxy:3128", "https://user:secret@proxy:3128", "socks5://secret", "http://proxy/secret", "http://a:secret%zz@p", ""]
        {
            let error = wrong.parse::<UpstreamProxy>().unwrap_err();
            assert!(error.contains("write http://HOST:PORT") && !error.contains("secret"), "{wrong}: {error}");
        }
    }
}
