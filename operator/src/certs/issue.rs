//! Makes authorities and serving certificates, and checks what was made or read.

use std::{fmt, sync::Arc, time::SystemTime};

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};
use toolweir_store::tls::provider;

use super::plan::{Authority, AuthoritySet, AuthoritySpan, LeafTimes};

/// The subject of serving certificates. Nobody reads it: names are in the certificate's alternative names.
const LEAF_NAME: &str = "toolweir-operator";
/// The subject of certificates for a store.
const STORE_NAME: &str = "toolweir-store";

/// The errors of making a certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A key or a certificate could not be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The TLS library does not accept it.
    #[error("the certificate that was made cannot be served: {0}")]
    Serve(#[from] rustls::Error),
    /// A client that trusts the authorities would not accept it.
    #[error("the certificate that was made would not be accepted: {0}")]
    Verify(String),
}

/// Returns the names of a Service. The first one is the one that clients of this project use.
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// Returns the parameters of an authority's certificate without its times. They are also those of the issuer of a certificate.
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

/// Makes an authority with a new key.
///
/// # Errors
/// The certificate cannot be made.
pub fn authority(span: &AuthoritySpan) -> Result<Authority, IssueError> {
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

/// Makes a serving certificate with a new key, signed by this authority. Neither is ever written to disk.
///
/// # Errors
/// The certificate cannot be made.
pub fn leaf(signer: &Authority, times: &LeafTimes, names: &[String]) -> Result<CertifiedKey, IssueError> {
    let (certificate, key) = signed(signer, times, names, LEAF_NAME)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider())?)
}

/// A certificate of a store and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKeyPair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

// The key is never printed.
impl fmt::Debug for StoreKeyPair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StoreKeyPair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl StoreKeyPair {
    /// Makes a certificate with a new key, signed by this authority.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn new(signer: &Authority, times: &LeafTimes, names: &[String]) -> Result<Self, IssueError> {
        let (certificate, key) = signed(signer, times, names, STORE_NAME)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Returns whether a client that trusts these authorities accepts it then, under each name, and the key is that of the
    /// certificate.
    pub fn is_good(&self, state: &AuthoritySet, names: &[String], then: SystemTime) -> bool {
        let Ok(certificate) = certificate(&self.certificate) else { return false };
        let Ok(key) = PrivateKeyDer::from_pem_slice(self.key.as_bytes()) else { return false };
        // This compares the key with the certificate's, too.
        let Ok(pair) = CertifiedKey::from_der(vec![certificate], key, &provider()) else { return false };
        verify(&pair, state, names, then).is_ok()
    }
}

fn signed(
    signer: &Authority,
    times: &LeafTimes,
    names: &[String],
    subject_name: &str,
) -> Result<(rcgen::Certificate, KeyPair), IssueError> {
    let params = authority_params(&signer.id);
    let issuer = Issuer::from_params(&params, KeyPair::from_pem(&signer.key)?);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = subject(subject_name);
    params.not_before = times.valid_from.into();
    params.not_after = times.expires.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate, key))
}

/// Checks that a client that trusts these authorities accepts this certificate now, under each name. It is the last check before
/// the certificate is served: a Secret that was edited by hand may be consistent and still be of no use.
///
/// # Errors
/// The client would not accept it.
pub fn verify(leaf: &CertifiedKey, state: &AuthoritySet, names: &[String], now: SystemTime) -> Result<(), IssueError> {
    let refused = |error: &dyn fmt::Display| IssueError::Verify(error.to_string());
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

/// Returns the only certificate of a PEM text.
fn certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
    match (all.next(), all.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        (Some(Err(error)), _) => Err(format!("the certificate is not PEM: {error}")),
        (None, _) => Err("there is no certificate".to_owned()),
        (Some(Ok(_)), Some(_)) => Err("there is more than one certificate".to_owned()),
    }
}

/// Checks that an authority that was read can be used: its certificate and its key can be read and belong together.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certs::plan::{self, CertificateLifetimes};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn some_authority() -> Authority {
        authority(&AuthoritySpan { made: at(0), signs_from: at(0), expires: at(3600) }).unwrap()
    }

    fn state(authorities: &[&Authority]) -> AuthoritySet {
        AuthoritySet { authorities: authorities.iter().map(|authority| (*authority).clone()).collect() }
    }

    fn some_leaf(signer: &Authority, made: u64) -> CertifiedKey {
        let lifetimes = CertificateLifetimes::new(Duration::from_secs(3600), Duration::from_secs(600)).unwrap();
        leaf(signer, &plan::leaf(&signer.span, at(made), &lifetimes), &names("toolweir-operator", "toolweir-system")).unwrap()
    }

    fn refused(leaf: &CertifiedKey, state: &AuthoritySet, name: &str, now: SystemTime) -> String {
        verify(leaf, state, &[name.to_owned()], now).unwrap_err().to_string()
    }

    #[test]
    fn a_certificate_is_accepted_under_its_names_by_who_trusts_its_authority() {
        let (signer, other) = (some_authority(), some_authority());
        assert_ne!(signer.id, other.id);
        let shown = some_leaf(&signer, 0);
        let all = names("toolweir-operator", "toolweir-system");
        assert_eq!(all[0], "toolweir-operator.toolweir-system.svc");
        verify(&shown, &state(&[&signer]), &all, at(1)).unwrap();
        verify(&shown, &state(&[&other, &signer]), &all, at(1)).unwrap();
        // By clocks that are behind, too: both are backdated.
        verify(&shown, &state(&[&signer]), &all, at(0) - Duration::from_secs(299)).unwrap();

        let name = all[0].as_str();
        assert!(refused(&shown, &state(&[&other]), name, at(1)).contains("UnknownIssuer"));
        assert!(refused(&shown, &AuthoritySet::default(), name, at(1)).contains("would not be accepted"));
        assert!(refused(&shown, &state(&[&signer]), "kubernetes.default.svc", at(1)).contains("not valid for name"));
        assert!(refused(&shown, &state(&[&signer]), name, at(601)).contains("expired"));
        assert!(refused(&shown, &state(&[&signer]), name, at(0) - Duration::from_secs(301)).contains("not valid yet"));
    }

    #[test]
    fn an_authority_signs_no_other_authority_and_a_certificate_signs_nothing() {
        let signer = some_authority();
        let certificate = CertificateDer::from_pem_slice(signer.certificate.as_bytes()).unwrap();
        // Basic constraints `CA:TRUE, pathlen:0`, and of the leaf `CA:FALSE` (X.690, DER), which is the default and left out.
        let constrained = [0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x00];
        assert!(certificate.windows(constrained.len()).any(|window| window == constrained));
        let shown = some_leaf(&signer, 0);
        let mut as_root = signer.clone();
        as_root.certificate = pem_of(&shown.cert[0]);
        assert!(
            refused(&some_leaf(&signer, 1), &state(&[&as_root]), "toolweir-operator", at(2)).contains("would not be accepted")
        );
    }

    fn pem_of(certificate: &[u8]) -> String {
        let body = data_encoding::BASE64.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn key_and_certificate_of_an_authority_must_be_readable_and_fit() {
        let (one, other) = (some_authority(), some_authority());
        assert_eq!(check(&one), Ok(()));
        let changed = |certificate: &str, key: &str| {
            check(&Authority { certificate: certificate.to_owned(), key: key.to_owned(), ..one.clone() }).unwrap_err()
        };
        assert!(changed(&one.certificate, &other.key).starts_with("key and certificate do not fit: "));
        assert_eq!(changed(&one.certificate, "-----BEGIN PRIVATE KEY-----"), "the key cannot be read");
        assert_eq!(changed(&one.certificate, ""), "the key cannot be read");
        assert_eq!(changed("", &one.key), "there is no certificate");
        assert_eq!(changed("hello", &one.key), "there is no certificate");
        assert_eq!(changed(&format!("{}{}", one.certificate, other.certificate), &one.key), "there is more than one certificate");
        assert!(changed(&one.key, &one.key).starts_with("there is no certificate"));
        assert!(changed(&pem_of(b"no DER"), &one.key).starts_with("the certificate cannot be trusted: "));
        let cut = one.certificate.replace("-----END", "----END");
        assert!(changed(&cut, &one.key).starts_with("the certificate is not PEM: "), "{}", changed(&cut, &one.key));
    }
}
