//! TLS as a client, and whom it trusts.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::CryptoProvider};
use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use tokio_rustls::TlsConnector;

use crate::error::{StoreError, StoreFault};

/// The reason why no trust is to be had of certificates in PEM.
#[derive(Debug, thiserror::Error)]
pub enum PemTrustError {
    /// The text is not PEM.
    #[error("is no valid PEM: {0}")]
    Pem(#[from] pem::Error),
    /// A certificate cannot be one of an authority.
    #[error("has a certificate that is not valid: {0}")]
    Certificate(#[from] rustls::Error),
    /// There is none.
    #[error("holds no certificate")]
    Empty,
}

/// Returns the certificates of the system's authorities; none where the system has none that can be read.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system_certificates());
    roots
}

/// Returns the same certificates, as they are.
pub fn system_certificates() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// Reads the certificates of a PEM text.
///
/// # Errors
/// The text holds none, or one that is not valid.
pub fn pem_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemTrustError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    let mut roots = RootCertStore::empty();
    for certificate in &found {
        roots.add(certificate.clone())?;
    }
    if found.is_empty() { Err(PemTrustError::Empty) } else { Ok(found) }
}

/// Adds the certificates of a PEM text to those that are trusted.
///
/// # Errors
/// The text holds none, or one that is not valid.
pub fn add_pem_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), PemTrustError> {
    for certificate in pem_certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(())
}

/// Returns the cryptography of TLS, as a client and as a server.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns a configuration of TLS that trusts these roots and nothing else.
///
/// # Errors
/// The crypto provider lacks a version of TLS: a defect of the build.
pub fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// TLS to the store, which trusts the system's authorities and those given in PEM.
pub(crate) fn tls_connector(ca: Option<&str>) -> Result<TlsConnector, StoreError> {
    let mut roots = system_roots();
    if let Some(pem) = ca {
        add_pem_roots(&mut roots, pem.as_bytes()).map_err(|error| {
            let text = format!("the store's authority (CA) {error}; write one or more certificates in PEM, or leave it out");
            StoreError::new(StoreFault::BadConfig, text)
        })?;
    }
    let mut config =
        client_config(roots).map_err(|error| StoreError::new(StoreFault::Tls, format!("TLS cannot be set up: {error}")))?;
    // Every connection is verified anew.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
