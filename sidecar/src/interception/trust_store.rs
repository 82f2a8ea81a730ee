//! The certificates that agents trust, in the two forms that their runtimes read: PEM, and Java's key store.

use std::io::Write;

use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;

/// The first bytes of a Java key store, and its version.
const JKS: [u8; 8] = [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2];
/// The tag of an entry with a certificate that is trusted.
const TRUSTED: [u8; 4] = [0, 0, 0, 2];
/// The password that everybody uses. It protects nothing: without it, Java does not look at the checksum.
const PASSWORD: &str = "changeit";
/// What goes into the checksum behind the password.
const SALT: &[u8] = b"Mighty Aphrodite";
/// The longest line of base 64 in PEM (RFC 7468, section 2).
const LINE: usize = 64;

/// Returns certificates in PEM, one after the other.
pub fn pem(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut text = Vec::new();
    for certificate in certificates {
        text.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
        for line in BASE64.encode(certificate).as_bytes().chunks(LINE) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text.extend_from_slice(b"-----END CERTIFICATE-----\n");
    }
    text
}

/// Returns certificates as a Java key store (JKS), which Java 8 and later reads without a password. Each has the name `root-N`.
pub fn jks(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut store = JKS.to_vec();
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let text = |store: &mut Vec<u8>, text: &str| {
        store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        store.extend_from_slice(text.as_bytes());
    };
    store.extend(length(certificates.len()));
    for (number, certificate) in certificates.iter().enumerate() {
        store.extend(TRUSTED);
        text(&mut store, &format!("root-{number}"));
        // The time at which it was added: the same each time, so that what is the same is written the same.
        store.extend(0_u64.to_be_bytes());
        text(&mut store, "X.509");
        store.extend(length(certificate.len()));
        store.extend_from_slice(certificate);
    }
    let mut checked: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    checked.extend_from_slice(SALT);
    // Writing to a vector does not fail.
    let _ = checked.write_all(&store);
    store.extend_from_slice(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &checked).as_ref());
    store
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn certificates_in_pem_are_read_back() {
        let certificates: Vec<CertificateDer<'static>> =
            (0..200_u8).map(|byte| vec![byte; usize::from(byte) + 1].into()).collect();
        let text = pem(&certificates);
        let read: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, certificates);
        assert!(text.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE));
        assert!(pem(&[]).is_empty());
    }

    #[test]
    fn a_key_store_is_as_keytool_writes_it() {
        // `keytool -importcert -storetype JKS -storepass changeit`, with the time of the entry set to 0.
        let store = jks(&[CertificateDer::from(vec![1, 2, 3])]);
        let head = b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\x06root-0\0\0\0\0\0\0\0\0\0\x05X.509\0\0\0\x03\x01\x02\x03";
        assert_eq!(store[..head.len()], head[..]);
        assert_eq!(store.len(), head.len() + 20);
    }
}
