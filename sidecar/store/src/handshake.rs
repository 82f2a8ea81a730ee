//! The first words with a server: TLS, and a PING that shows that Redis answers.

use std::{fmt, io, time::Duration};

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use toolweir_crds::text::one_line;

use crate::{
    config::Address,
    error::{LONGEST_QUOTE, StoreError, StoreFault, fault_of_code},
};

/// The longest first answer of a server, in bytes.
const LONGEST_GREETING: usize = 512;
/// Longer than anybody waits.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
pub(crate) const GIVE_PASSWORD: &str = "write it into the password file";
pub(crate) const WRITE_ADDRESS: &str = "write the address of a Redis or Valkey server";

/// A stream of bytes in both directions.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The end of a time, and how long it was.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    end: Instant,
    given: Duration,
}

impl Deadline {
    pub(crate) fn new(given: Duration) -> Self {
        Self { end: Instant::now() + given.min(LONGEST_WAIT), given }
    }

    /// One of so many equal parts of what is left.
    pub(crate) fn share(self, parts: usize) -> Self {
        let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
        if parts == 1 { self } else { Self::new(self.end.saturating_duration_since(Instant::now()) / parts) }
    }

    pub(crate) async fn wait<T>(self, future: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.end, future).await.ok()
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.given.as_millis())
    }
}

pub(crate) async fn tls_handshake(
    tls: &TlsConnector,
    at: &Address,
    stream: TcpStream,
    deadline: Deadline,
) -> Result<TlsStream<TcpStream>, StoreError> {
    let name = ServerName::try_from(at.host.clone()).map_err(|_| {
        StoreError::new(StoreFault::Tls, format!("no certificate can be for `{}`; write a name that DNS has", at.host))
    })?;
    match deadline.wait(tls.connect(name, stream)).await {
        Some(Ok(stream)) => Ok(stream),
        Some(Err(error)) => Err(tls_error(at, &error)),
        None => Err(StoreError::new(
            StoreFault::Timeout,
            format!(
                "{at} did not answer in TLS within {deadline}; if it speaks none, write redis in place of rediss in the store's url"
            ),
        )),
    }
}

fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Explains an error of the TLS handshake.
fn tls_error(at: &Address, error: &io::Error) -> StoreError {
    use rustls::Error;
    let text = match tls_cause(error) {
        Some(Error::InvalidMessage(_)) => {
            format!("{at} does not speak TLS; write redis in place of rediss in the store's url, or the server's tls-port")
        }
        Some(Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => format!(
                "the certificate of {at} is of an authority that is not trusted; give that authority's certificate as the store's CA"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the certificate of {at} is for other names than `{}`; write one of those, or have it made for this one",
                    at.host
                )
            }
            _ => format!("the certificate of {at} is not valid: {error}; have a new one made"),
        },
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure | AlertDescription::BadCertificate,
        )) => format!("{at} asks for a certificate of the client, and there is none; set tls-auth-clients no there"),
        Some(error) => format!("{at} and TLS: {error}; look into its log"),
        None => {
            format!("{at} ended the connection instead of TLS ({error}); if it speaks none, write redis in place of rediss")
        }
    };
    StoreError::new(StoreFault::Tls, text)
}

/// Sends PING and checks that Redis answers. Returns whether the server asks for a password.
pub(crate) async fn ping(stream: &mut dyn ByteStream, at: &Address, tls: bool, deadline: Deadline) -> Result<bool, StoreError> {
    let heard = deadline.wait(read_greeting(stream)).await;
    let way = if tls { "" } else { "; if it speaks TLS, write rediss in place of redis in the store's url" };
    let line = match heard {
        Some(Ok(line)) => line,
        Some(Err(error)) if tls && tls_cause(&error).is_some() => {
            return Err(tls_error(at, &error));
        }
        Some(Err(error)) => {
            return Err(StoreError::new(StoreFault::Lost, format!("{at} ended the connection without an answer ({error}){way}")));
        }
        None => {
            let text = format!("{at} takes the connection and says nothing within {deadline}; {WRITE_ADDRESS}{way}");
            return Err(StoreError::new(StoreFault::Timeout, text));
        }
    };
    if line.starts_with(b"+PONG") {
        return Ok(false);
    }
    if let Some(text) = line.strip_prefix(b"-") {
        let text = String::from_utf8_lossy(text);
        let (code, said) = (text.split_whitespace().next().unwrap_or_default(), one_line(text.trim(), LONGEST_QUOTE));
        return match (code, fault_of_code(code)) {
            ("NOAUTH", _) => Ok(true),
            // Perhaps another user may; it is seen with the first command.
            (_, StoreFault::NoPermission) => Ok(false),
            ("DENIED", fault) => Err(StoreError::new(
                fault,
                format!(
                    "{at} is in protected mode: it serves others than itself only with a password; set one there, and {GIVE_PASSWORD}"
                ),
            )),
            (_, fault @ StoreFault::Loading) => {
                Err(StoreError::new(fault, format!("{at} is not ready yet: {said}; wait, or look into its log")))
            }
            (_, fault @ StoreFault::NotMaster) => {
                Err(StoreError::new(fault, format!("{at} is a replica without its master: {said}; write the master's address")))
            }
            _ if said.contains("max number of clients") => {
                Err(StoreError::new(StoreFault::Refused, format!("{at} has too many clients: {said}; raise its maxclients")))
            }
            (_, fault) => Err(StoreError::new(fault, format!("{at} answers PING with: {said}; look into its log"))),
        };
    }
    if !tls && matches!(line.as_slice(), [0x15, 0x03, ..]) {
        let text = format!("{at} speaks TLS; write rediss in place of redis in the store's url");
        return Err(StoreError::new(StoreFault::Tls, text));
    }
    if line.is_empty() {
        let text = format!("{at} ended the connection without an answer{way}");
        return Err(StoreError::new(StoreFault::Lost, text));
    }
    let other = if line.starts_with(b"HTTP/") {
        " (it is HTTP)"
    } else if line.starts_with(b"SSH-") {
        " (it is SSH)"
    } else {
        ""
    };
    Err(StoreError::new(StoreFault::NotRedis, format!("{at} answers, but not in the Redis protocol{other}; {WRITE_ADDRESS}")))
}

/// Reads the first line of the answer to PING, or as much as shows that another protocol answers.
async fn read_greeting(stream: &mut dyn ByteStream) -> io::Result<Vec<u8>> {
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    stream.flush().await?;
    let mut line = Vec::with_capacity(LONGEST_GREETING);
    let mut part = [0; LONGEST_GREETING];
    while line.len() < LONGEST_GREETING {
        let read = match stream.read(&mut part).await {
            Ok(read) => read,
            // What came before tells more.
            Err(_) if !line.is_empty() => break,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(part.get(..read).unwrap_or_default());
        let plausible = matches!(line.first(), Some(b'+' | b'-'));
        // So much tells apart what is known to answer otherwise.
        if read == 0 || line.contains(&b'\n') || (!plausible && line.len() >= 5) {
            break;
        }
    }
    Ok(line)
}
