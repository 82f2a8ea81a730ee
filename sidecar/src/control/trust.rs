//! Whom to trust as the control plane: the authorities of a bundle and nobody else.

use std::{io, sync::Arc};

use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::net;

/// The largest bundle, in bytes.
pub const LARGEST: usize = 1024 * 1024;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The bundle is too large.
    #[error("has {0} bytes, more than the maximum of {LARGEST}")]
    TooLarge(usize),
    /// The bundle has no certificate that can be trusted.
    #[error("holds no valid PEM certificate")]
    NoCertificate,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] io::Error),
}

/// Authorities, and TLS that trusts them alone.
#[derive(Clone, Debug)]
pub struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    tls: Arc<ClientConfig>,
}

impl Trust {
    /// Trust in authorities; in nobody if there are none.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(authorities: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().cloned());
        let mut tls = net::tls_trusting(roots)?;
        // Every connection is verified anew, and none leaves anything in memory.
        tls.resumption = Resumption::disabled();
        Ok(Self { authorities, tls: Arc::new(tls) })
    }

    /// Trust in the authorities of a bundle in PEM. Certificates in it that are not valid are left out.
    ///
    /// # Errors
    /// None is valid.
    pub fn from_pem(bundle: &str) -> Result<Self, TrustError> {
        Self::new(authorities(bundle)?)
    }

    /// Returns true if nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    /// Returns true if these authorities are trusted, and no other.
    pub fn equals(&self, authorities: &[CertificateDer<'static>]) -> bool {
        self.authorities == authorities
    }

    /// Returns the TLS configuration of a connection.
    pub fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }
}

/// The valid certificates of a bundle in PEM, each once.
///
/// # Errors
/// None is valid.
pub fn authorities(bundle: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    if bundle.len() > LARGEST {
        return Err(TrustError::TooLarge(bundle.len()));
    }
    let mut found: Vec<CertificateDer<'static>> = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        match certificate.map_err(|error| error.to_string()).and_then(|der| {
            RootCertStore::empty().add(der.clone()).map_err(|error| error.to_string())?;
            Ok(der)
        }) {
            Ok(der) if found.contains(&der) => {}
            Ok(der) => found.push(der),
            Err(error) => tracing::warn!(error, "ignored an invalid certificate in the control plane's bundle"),
        }
    }
    if found.is_empty() { Err(TrustError::NoCertificate) } else { Ok(found) }
}
