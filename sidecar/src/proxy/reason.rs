//! Reasons why a server could not be connected to, in words for whoever can change it. Nothing in them is secret: they name what the
//! policy and the server's certificate say to everybody.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError};

use super::through::ProxyError;
use crate::net::names::NameError;

/// The reason why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectReason {
    /// In words.
    pub why: String,
    /// True where the connection may come about in a moment, without anybody's help.
    pub passes: bool,
}

impl ConnectReason {
    /// A reason that passes by itself.
    fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: true }
    }

    /// A reason that stays until somebody changes something.
    fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: false }
    }

    /// The reason in an error of the connector.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut at = Some(error);
        let mut io = None;
        while let Some(error) = at {
            if let Some(error) = error.downcast_ref::<ProxyError>() {
                return match error {
                    ProxyError::Unreachable(error) => {
                        let Self { why, passes } = Self::of(&**error);
                        Self { why: format!("the proxy of --upstream-proxy cannot be reached: {why}"), passes }
                    }
                    ProxyError::Refused(status) if *status < 500 => Self::lasting(error.to_string()),
                    other => Self::passing(other.to_string()),
                };
            }
            if let Some(error) = error.downcast_ref::<NameError>() {
                return Self::passing(error.to_string());
            }
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return tls(error);
            }
            at = match error.downcast_ref::<io::Error>() {
                // Its source would be that of the error in it.
                Some(error) => {
                    // Others only wrap what is in them.
                    if error.kind() != io::ErrorKind::Other {
                        io.get_or_insert(error.kind());
                    }
                    error.get_ref().map(|inner| inner as &(dyn Error + 'static))
                }
                None => error.source(),
            };
        }
        match io {
            Some(io::ErrorKind::ConnectionRefused) => Self::passing("nobody listens at its address"),
            Some(io::ErrorKind::TimedOut) => Self::passing("nobody answers at its address in time"),
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                Self::passing("there is no way to its address")
            }
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                Self::passing("it hung up at once")
            }
            Some(kind) => Self::passing(kind.to_string()),
            None => Self::passing("the connection could not be set up"),
        }
    }
}

/// Alerts with which a server refuses the certificate that it was shown, or wants another.
const REFUSALS: [AlertDescription; 9] = [
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::CertificateRequired,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::DecryptError,
];

/// Returns true if a server refuses the certificate that it was shown, or wants another. With TLS 1.3 it says so after the handshake.
pub fn refuses_certificate(error: &(dyn Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref::<rustls::Error>() {
            return REFUSALS.contains(alert);
        }
        at = match error.downcast_ref::<io::Error>() {
            // Its source would be that of the error in it.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            // Over HTTP/2, the text of an error of TLS is all that is left of it.
            None if error.source().is_none() => {
                let text = error.to_string();
                return REFUSALS.iter().any(|alert| text.ends_with(&rustls::Error::AlertReceived(*alert).to_string()));
            }
            None => error.source(),
        };
    }
    false
}

fn tls(error: &rustls::Error) -> ConnectReason {
    match error {
        rustls::Error::InvalidCertificate(error) => ConnectReason::lasting(certificate(error)),
        rustls::Error::InvalidMessage(_) => {
            ConnectReason::lasting("it does not speak TLS at this port; if that is meant, write http:// in the policy's url")
        }
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
            ConnectReason::lasting("it speaks no version or cipher of TLS 1.2 or 1.3 that is safe")
        }
        rustls::Error::AlertReceived(alert) => ConnectReason::lasting(format!("it refused the TLS handshake ({alert:?})")),
        other => ConnectReason::lasting(format!("TLS failed: {other}")),
    }
}

/// A name of a certificate without what the TLS library writes around it: `DnsName("a.example")`, `IpAddress(192.0.2.1)`.
fn bare_name(shown: &str) -> &str {
    let inner = shown.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(shown, |inner| inner.trim_matches('"'))
}

fn certificate(error: &CertificateError) -> String {
    match error {
        // The latter is one of another authority that has the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no trusted authority signed its certificate; give the authority's certificate \
             with --upstream-ca, and have the server send those between"
                .to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                format!("its certificate names no host as subjectAltName; make one with subjectAltName {expected}")
            } else {
                let mut names = presented.iter().take(5).map(|name| bare_name(name).chars().take(100).collect::<String>());
                let first = names.next().unwrap_or_default();
                let names = names.fold(first, |names, name| format!("{names}, {name}"));
                format!("its certificate is for {names} and not for {expected}; write such a name in the policy's url")
            }
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it, or set the clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; set the clock".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers; make one with extendedKeyUsage serverAuth".to_owned()
        }
        CertificateError::Other(other) => match format!("{other:?}") {
            // Those of the verifier that have no name in the TLS library.
            text if text.contains("CaUsedAsEndEntity") => "its certificate is that of an authority, as `openssl req -x509` \
                 makes one, and no server's; sign one for the server with it, or make it with -addext \
                 basicConstraints=critical,CA:FALSE"
                .to_owned(),
            text if text.contains("EndEntityUsedAsCa") => {
                "its certificate is signed by one that is no authority's; sign it with one that has CA:TRUE".to_owned()
            }
            text if text.contains("UnsupportedCertVersion") => {
                "its certificate is of X.509 version 1; make one of version 3, with a subjectAltName".to_owned()
            }
            _ => format!("its certificate is not in order: {error}"),
        },
        other => format!("its certificate is not in order: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_in_whatever_it_is_wrapped() {
        let wrapped = io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        let reason = ConnectReason::of(&wrapped);
        assert!(!reason.passes && reason.why.contains("--upstream-ca"), "{reason:?}");
        let name = io::Error::other(NameError::Silence("tools.test".to_owned()));
        assert_eq!(ConnectReason::of(&name), ConnectReason::passing("no nameserver answers for the name tools.test"));
        assert_eq!(ConnectReason::of(&io::Error::from(io::ErrorKind::ConnectionRefused)).why, "nobody listens at its address");
        let proxy = ProxyError::Unreachable(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert_eq!(
            ConnectReason::of(&proxy).why,
            "the proxy of --upstream-proxy cannot be reached: nobody listens at its address"
        );
        assert!(!ConnectReason::of(&ProxyError::Refused(407)).passes);
    }
}
