//! TLS of the MCP server and of the load generator.

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A server of this name, with a certificate of its own that is written to `path`.
pub fn acceptor(name: String, path: &Path) -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed([name])?;
    std::fs::write(path, made.cert.pem()).with_context(|| path.display().to_string())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions()?;
    let config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A client that trusts the certificates in a file, and resumes sessions if `resumes`.
pub fn connector(trusted: &Path, resumes: bool) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(trusted).with_context(|| trusted.display().to_string())?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().with_context(|| trusted.display().to_string())?;
    roots.add_parsable_certificates(certificates);
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Ok(TlsConnector::from(Arc::new(config)))
}
