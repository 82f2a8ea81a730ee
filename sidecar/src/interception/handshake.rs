//! The sidecar as the server of an agent's TLS: one certificate for each name, and how a handshake ended.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    AlertDescription, ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use toolweir_store::tls::provider;

use super::authority::HostCertificate;
use crate::capture::client_hello::HTTP_2;

/// The time that a client has for its handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// HTTP/1.1 in a handshake (RFC 7301, section 6).
const HTTP_1: &[u8] = b"http/1.1";

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client ended it: it does not trust the certificate, most likely.
    #[error("the client ended the TLS handshake: {0:?}")]
    Refused(AlertDescription),
    /// The client did not go on.
    #[error("the client did not finish the TLS handshake within {} s", HANDSHAKE.as_secs())]
    Timeout,
    /// It hung up, or sent what is no handshake.
    #[error("the TLS handshake failed: {0}")]
    Failed(io::Error),
}

impl HandshakeError {
    /// The label `result`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Timeout => "timeout",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => Self::Refused(*alert),
            _ => Self::Failed(error),
        }
    }
}

/// The certificates of hosts that were asked for.
#[derive(Debug, Default)]
pub(super) struct HostCertificates(Mutex<HashMap<String, HostCertificate>>);

impl HostCertificates {
    /// Calls `with` with the certificate of a name, if there is one.
    pub fn get<T>(&self, name: &str, with: impl FnOnce(&HostCertificate) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(with)
    }

    /// Keeps the certificate of a name. The names are those that the authority covers, so that there are not many.
    pub fn keep(&self, name: &str, certificate: HostCertificate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), certificate);
    }
}

impl ResolvesServerCert for HostCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get(&hello.server_name()?.to_ascii_lowercase(), |certificate| Arc::clone(&certificate.key))
    }
}

/// TLS as a server, with HTTP/2 and without.
pub(super) struct TlsServer {
    with_http2: TlsAcceptor,
    without: TlsAcceptor,
}

impl TlsServer {
    /// A server that shows these certificates.
    ///
    /// # Errors
    /// The crypto provider lacks something: a defect of the build.
    pub fn new(certificates: Arc<HostCertificates>) -> Result<Self, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
        // Sessions are resumed by tickets, which cost no memory here. A ticket holds for its server name alone.
        config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols = vec![HTTP_1.to_vec()];
        let without = TlsAcceptor::from(Arc::new(config.clone()));
        config.alpn_protocols.insert(0, HTTP_2.to_vec());
        Ok(Self { with_http2: TlsAcceptor::from(Arc::new(config)), without })
    }

    /// Takes part in a handshake.
    ///
    /// # Errors
    /// It came to nothing.
    pub async fn accept<S>(&self, stream: S, http2: bool) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = if http2 { &self.with_http2 } else { &self.without };
        Ok(timeout(HANDSHAKE, acceptor.accept(stream)).await.map_err(|_| HandshakeError::Timeout)??)
    }
}

/// Returns whether the handshake agreed on HTTP/2.
pub fn is_http2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}
