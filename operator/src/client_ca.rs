//! Authentication of API servers by certificate: the authorities that sign theirs, read again when their file changes, and the
//! names that they must have.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    client::verify_server_name,
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use toolweir_store::tls::provider;

/// The time between two reads of the file.
const LOOK: Duration = Duration::from_secs(10);

/// Verifies the certificates of API servers.
pub struct ClientCa {
    file: PathBuf,
    names: Vec<String>,
    read: Mutex<Vec<u8>>,
    verifier: ArcSwap<Verifier>,
}

type Verifier = Arc<dyn ClientCertVerifier>;

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").field("file", &self.file).field("names", &self.names).finish_non_exhaustive()
    }
}

/// The authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// The file cannot be read.
    #[error("webhooks.clientCaFile: {0} cannot be read: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// There is no authority in it.
    #[error("webhooks.clientCaFile: {0}: {1}; write the certificates, in PEM, of the authorities that sign those of API servers")]
    Content(PathBuf, String),
}

impl ClientCa {
    /// Creates a verifier of certificates that an authority of this file has signed. Where names are given, a certificate must
    /// have one of them, as its common name or as a DNS name.
    ///
    /// # Errors
    /// The file cannot be read, or holds no authority.
    pub fn new(file: &Path, names: Vec<String>) -> Result<Arc<Self>, ClientCaError> {
        let pem = read(file)?;
        let verifier = ArcSwap::from_pointee(verifier(file, &pem)?);
        Ok(Arc::new(Self { file: file.to_owned(), names, read: Mutex::new(pem), verifier }))
    }

    /// Reads the file, and uses its authorities from now on. Returns whether they changed.
    ///
    /// # Errors
    /// The file cannot be used. The authorities stay as they were.
    pub fn reload(&self) -> Result<bool, ClientCaError> {
        let pem = read(&self.file)?;
        let mut held = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == pem {
            return Ok(false);
        }
        self.verifier.store(Arc::new(verifier(&self.file, &pem)?));
        *held = pem;
        Ok(true)
    }

    /// Reads the file again and again, for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut logged = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            match self.reload() {
                Ok(false) => logged.clear(),
                Ok(true) => {
                    logged.clear();
                    tracing::info!(file = %self.file.display(), "the authorities of API servers were reloaded");
                }
                Err(error) => {
                    let error = error.to_string();
                    // Once for each fault.
                    if logged != error {
                        tracing::error!(error, "the authorities of API servers stay as they were");
                        logged = error;
                    }
                }
            }
        }
    }

    /// Returns whether a certificate has one of the names.
    fn is_named(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let common = common_name(certificate);
        let parsed = ParsedCertificate::try_from(certificate);
        self.names.iter().any(|name| {
            let as_dns = || {
                let name = ServerName::try_from(name.as_str()).ok()?;
                verify_server_name(parsed.as_ref().ok()?, &name).ok()
            };
            common.as_deref() == Some(name) || as_dns().is_some()
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ClientCaError> {
    std::fs::read(file).map_err(|error| ClientCaError::Read(file.to_owned(), error))
}

fn verifier(file: &Path, pem: &[u8]) -> Result<Verifier, ClientCaError> {
    let wrong = |why: String| ClientCaError::Content(file.to_owned(), why);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(format!("is not PEM: {error:?}")))?;
        roots.add(certificate).map_err(|error| wrong(format!("holds a certificate that cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.map_err(|error| wrong(error.to_string()))
}

/// Returns whether a handshake failed because the client showed no certificate, or none that is accepted.
pub fn is_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)))
}

/// The error of a certificate that is valid and has none of the names.
#[derive(Debug, thiserror::Error)]
#[error("the certificate has none of the names in webhooks.clientNames")]
struct OtherName;

impl ClientCertVerifier for ClientCa {
    /// Returns none: authorities may change between two handshakes, and clients that get no hint show the certificate that they
    /// have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.load().verify_client_cert(end_entity, intermediates, now)?;
        if self.is_named(end_entity) {
            return Ok(verified);
        }
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(OtherName)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.load().supported_verify_schemes()
    }
}

/// Reads a value of DER (X.690). Returns its tag, its content, and the bytes that follow.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (digits, after) = rest.split_at_checked(count)?;
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = after;
    }
    let (inner, after) = rest.split_at_checked(length)?;
    Some((tag, inner, after))
}

/// Returns the last common name of a certificate's subject (RFC 5280, 4.1.2.6): the most specific one.
fn common_name(certificate: &[u8]) -> Option<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    let (SEQUENCE, certificate, _) = der(certificate)? else { return None };
    let (SEQUENCE, mut fields, _) = der(certificate)? else { return None };
    // The version, which may be left out; then serial number, signature, issuer, validity.
    if let Some((0xa0, _, after)) = der(fields) {
        fields = after;
    }
    for _ in 0..4 {
        fields = der(fields)?.2;
    }
    let (SEQUENCE, mut subject, _) = der(fields)? else { return None };
    let mut found = None;
    while !subject.is_empty() {
        let (SET, mut attributes, after) = der(subject)? else { return None };
        subject = after;
        while !attributes.is_empty() {
            let (SEQUENCE, attribute, after) = der(attributes)? else { return None };
            attributes = after;
            let (0x06, kind, value) = der(attribute)? else { return None };
            // UTF8String, PrintableString, TeletexString and IA5String; others are not read, so that they match nothing.
            if let (true, (0x0c | 0x13 | 0x14 | 0x16, text, _)) = (kind == COMMON_NAME, der(value)?) {
                found = std::str::from_utf8(text).ok().map(ToOwned::to_owned);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    fn authority() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn signed(issuer: &Issuer<'static, KeyPair>, common: &str, dns: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(dns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "org");
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    fn file(name: &str, content: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("toolweir-client-ca-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        path
    }

    fn takes(ca: &ClientCa, certificate: &CertificateDer<'_>) -> bool {
        ca.verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn only_what_an_authority_signed_and_has_a_name_is_taken() {
        let ((pem, issuer), (_, stranger)) = (authority(), authority());
        let path = file("names", &pem);
        let any = ClientCa::new(&path, Vec::new()).unwrap();
        assert!(takes(&any, &signed(&issuer, "anybody", &[])));
        assert!(!takes(&any, &signed(&stranger, "anybody", &[])));
        let named = ClientCa::new(&path, vec!["kube-apiserver".to_owned(), "api.example".to_owned()]).unwrap();
        assert!(takes(&named, &signed(&issuer, "kube-apiserver", &[])));
        assert!(takes(&named, &signed(&issuer, "x", &["api.example"])));
        for (common, dns) in [("kubelet", &[][..]), ("kube-apiserver.", &[]), ("", &["other.example"]), ("api.example.org", &[])]
        {
            assert!(!takes(&named, &signed(&issuer, common, dns)), "{common} {dns:?}");
        }
        assert!(!takes(&named, &signed(&stranger, "kube-apiserver", &[])));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_new_file_is_gone_by_and_a_broken_one_is_not() {
        let ((first, old), (second, new)) = (authority(), authority());
        let path = file("reload", &first);
        let ca = ClientCa::new(&path, Vec::new()).unwrap();
        let (by_old, by_new) = (signed(&old, "a", &[]), signed(&new, "a", &[]));
        assert!(!ca.reload().unwrap());
        std::fs::write(&path, &second).unwrap();
        assert!(ca.reload().unwrap());
        assert_eq!((takes(&ca, &by_old), takes(&ca, &by_new)), (false, true));
        for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, broken).unwrap();
            let error = ca.reload().unwrap_err().to_string();
            assert!(error.contains("write the certificates, in PEM"), "{error}");
        }
        assert!(takes(&ca, &by_new));
        std::fs::remove_file(&path).unwrap();
        assert!(ca.reload().unwrap_err().to_string().contains("cannot be read"));
        assert!(ClientCa::new(&path, Vec::new()).is_err(), "fails closed at the start");
    }

    #[test]
    fn what_is_no_certificate_has_no_name() {
        let (_, issuer) = authority();
        let certificate = signed(&issuer, "kube-apiserver", &[]);
        assert_eq!(common_name(&certificate).as_deref(), Some("kube-apiserver"));
        for end in 0..certificate.len() {
            assert_eq!(common_name(&certificate[..end]), None);
        }
        assert_eq!(common_name(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
