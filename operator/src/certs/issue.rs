//! Makes authorities and serving certificates, and checks what was made or read.

use std::{sync::Arc, time::SystemTime};

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};

use super::plan::{Authority, Leaf, Span, State};

/// The subject of serving certificates. Nobody reads it: names are in the certificate's alternative names.
const LEAF_NAME: &str = "toolweir-operator";

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A key or a certificate could not be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The TLS library does not take it.
    #[error("the certificate that was made cannot be served: {0}")]
    Serve(#[from] rustls::Error),
    /// Whoever trusts the authorities would not accept it.
    #[error("the certificate that was made would not be accepted: {0}")]
    Verify(String),
}

/// The one cryptography provider of the operator.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The names under which the operator's service is reached. The first one is the one that clients of this project use.
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// What an authority's certificate says, apart from times. Also what a certificate that it signs says of its issuer.
fn authority_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("Toolweir operator CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// A new authority with a new key.
///
/// # Errors
/// It cannot be made.
pub fn authority(span: &Span) -> Result<Authority, IssueError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // Named after its key, so that no two authorities have the same subject: verifiers look for issuers by subject.
    let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
    let id = HEXLOWER.encode(digest.as_ref().get(..8).unwrap_or_default());
    let mut params = authority_params(&id);
    params.not_before = span.valid_from().into();
    params.not_after = span.expires.into();
    let certificate = params.self_signed(&key)?;
    Ok(Authority { id, span: *span, certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new serving certificate with a new key, signed by this authority. Neither is ever written down.
///
/// # Errors
/// It cannot be made.
pub fn leaf(signer: &Authority, times: &Leaf, names: &[String]) -> Result<CertifiedKey, IssueError> {
    let params = authority_params(&signer.id);
    let issuer = Issuer::from_params(&params, KeyPair::from_pem(&signer.key)?);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = subject(LEAF_NAME);
    params.not_before = times.valid_from.into();
    params.not_after = times.expires.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider())?)
}

/// Whether a client that trusts these authorities accepts this certificate now, under each name. The last gate before
/// it is served: what was edited by hand in the Secret may fit together and still be of no use.
///
/// # Errors
/// It does not.
pub fn verify(leaf: &CertifiedKey, state: &State, names: &[String], now: SystemTime) -> Result<(), IssueError> {
    let refused = |error: &dyn std::fmt::Display| IssueError::Verify(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in &state.authorities {
        roots.add(certificate(&authority.certificate).map_err(|error| refused(&error))?).map_err(|error| refused(&error))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = verifier.map_err(|error| refused(&error))?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    for name in names {
        let name = ServerName::try_from(name.as_str()).map_err(|error| refused(&error))?;
        let end = leaf.end_entity_cert()?;
        verifier.verify_server_cert(end, &[], &name, &[], UnixTime::since_unix_epoch(since)).map_err(|error| refused(&error))?;
    }
    Ok(())
}

/// The one certificate of a PEM text.
fn certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
    match (all.next(), all.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        (Some(Err(error)), _) => Err(format!("the certificate is no PEM: {error}")),
        (None, _) => Err("there is no certificate".to_owned()),
        (Some(Ok(_)), Some(_)) => Err("there is more than one certificate".to_owned()),
    }
}

/// Whether an authority that was read can be used: its certificate and its key can be read and belong together.
///
/// # Errors
/// Why it cannot.
pub fn check(authority: &Authority) -> Result<(), String> {
    let certificate = certificate(&authority.certificate)?;
    RootCertStore::empty().add(certificate.clone()).map_err(|error| format!("the certificate cannot be trusted: {error}"))?;
    let key = KeyPair::from_pem(&authority.key).map_err(|_| "the key cannot be read".to_owned())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(vec![certificate], key, &provider())
        .map_err(|error| format!("key and certificate do not fit: {error}"))?;
    Ok(())
}
