//! Certificates that the sidecar shows, as a configuration of TLS.

use std::sync::Arc;

use rustls::{
    ClientConfig,
    client::Resumption,
    crypto::ring::sign::any_supported_type,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::CredentialProblem;

/// TLS that shows a certificate, both in PEM, and when the certificate expires, in seconds since 1970. `names` are the keys that hold
/// the two, for the words.
///
/// # Errors
/// One of the two is not PEM of its kind, or the key is not the certificate's.
pub fn showing(
    base: &ClientConfig,
    certificate: &[u8],
    private_key: &[u8],
    names: (&str, &str),
) -> Result<(Arc<ClientConfig>, Option<i64>), CredentialProblem> {
    let (certificate_name, key_name) = names;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| CredentialProblem::lasting(format!("the key {certificate_name} is not a certificate in PEM")))?;
    let Some(own) = chain.first() else {
        return Err(CredentialProblem::lasting(format!("the key {certificate_name} holds no certificate in PEM")));
    };
    let expires = not_after(own);
    // Errors of the parser are not repeated: they could hold a part of the key.
    let key = PrivateKeyDer::from_pem_slice(private_key)
        .map_err(|_| CredentialProblem::lasting(format!("the key {key_name} holds no private key in PEM that can be read")))?;
    let signer = any_supported_type(&key).map_err(|_| {
        CredentialProblem::lasting(format!(
            "the key {key_name} holds a private key of a kind that is not supported; use ECDSA P-256 or P-384, Ed25519 or RSA"
        ))
    })?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        // Where the signer does not say, the server finds out.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(CredentialProblem::lasting(format!(
                "the keys {certificate_name} and {key_name} do not belong together: the private key is another certificate's"
            )));
        }
        Err(_) => {
            return Err(CredentialProblem::lasting(format!("the key {certificate_name} is not a certificate that can be read")));
        }
    }
    let mut config = base.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    // A session that another certificate began is not gone on with.
    config.resumption = Resumption::default();
    Ok((Arc::new(config), expires))
}

/// When a certificate expires (RFC 5280, section 4.1.2.5), in seconds since 1970, if it can be read.
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    let mut certificate = Der(certificate).inside(SEQUENCE)?;
    let mut signed = certificate.inside(SEQUENCE)?;
    if signed.peek() == Some(VERSION) {
        signed.inside(VERSION)?;
    }
    // serialNumber, signature, issuer
    for _ in 0..3 {
        signed.any()?;
    }
    let mut validity = signed.inside(SEQUENCE)?;
    validity.any()?;
    let (tag, text) = validity.any()?;
    time(tag, std::str::from_utf8(text).ok()?)
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// DER that is read from the front.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value: its tag and its content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// The content of the next value, which has this tag.
    fn inside(&mut self, tag: u8) -> Option<Self> {
        self.any().filter(|(found, _)| *found == tag).map(|(_, content)| Self(content))
    }
}

/// A `UTCTime` or a `GeneralizedTime` as RFC 5280 allows them: in UTC, with seconds.
fn time(tag: u8, text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 in the Gregorian calendar; years begin in March, so that a leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn pair(year: i32) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["agent.test".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 2, 28);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), key)
    }

    fn base() -> ClientConfig {
        toolweir_store::tls::client_config(rustls::RootCertStore::empty()).unwrap()
    }

    #[test]
    fn a_certificate_says_when_it_expires() {
        for (year, seconds) in [(2030, 1_898_467_200), (2049, 2_498_083_200), (2050, 2_529_619_200), (2100, 4_107_456_000)] {
            assert_eq!(not_after(pair(year).0.der()), Some(seconds), "{year}");
        }
        let (certificate, _) = pair(2030);
        for end in 0..certificate.der().len() {
            not_after(certificate.der().get(..end).unwrap());
        }
        assert_eq!(time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(GENERALIZED_TIME, "20000229235959Z"), Some(951_868_799));
        for wrong in ["", "Z", "700101000000", "701301000000Z", "700100000000Z", "7001010000Z", "70010100000+Z"] {
            assert_eq!(time(UTC_TIME, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_private_key_of_another_certificate_is_found_before_it_is_shown() {
        let ((certificate, key), (_, other)) = (pair(2030), pair(2031));
        let pem = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", data_encoding::BASE64.encode(der))
        };
        let private = |key: &KeyPair| pem("PRIVATE KEY", &key.serialize_der());
        let (pem, key, other) = (pem("CERTIFICATE", certificate.der()), private(&key), private(&other));
        let show =
            |certificate: &str, key: &str| showing(&base(), certificate.as_bytes(), key.as_bytes(), ("tls.crt", "tls.key"));
        assert_eq!(show(&pem, &key).unwrap().1, Some(1_898_467_200));
        for (certificate, key, said) in [
            (&pem, &other, "do not belong together"),
            (&pem, &pem, "the key tls.key holds no private key"),
            (&key, &key, "the key tls.crt holds no certificate"),
            (&"text".to_owned(), &key, "the key tls.crt holds no certificate"),
            (&pem.replace("MII", "!!!"), &key, "the key tls.crt is not a certificate"),
        ] {
            let problem = show(certificate, key).unwrap_err();
            assert!(problem.message.contains(said), "{problem}");
        }
    }
}
