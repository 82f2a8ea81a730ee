//! The certificate authority of one pod: what agents trust so that the sidecar can open their TLS to declared servers, and to nothing
//! else.
//!
//! A root whose key is gone at once signs one intermediate, and that is constrained to the hosts that the pod's policies declare (RFC
//! 5280, section 4.2.1.10): Java does not hold a root to its constraints, an intermediate it does. Constraints that permit names alone
//! leave certificates for addresses valid, so addresses are excluded; and a name that is permitted permits those below it, so these are
//! excluded too.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
    pem::{self, PemObject},
};
use serde::{Deserialize, Serialize};
use toolweir_store::tls::provider;

/// How long an authority lives: longer than its pod.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long a certificate of a host lives.
const LEAF_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// How far back a certificate's life begins, for clocks that differ.
const SLACK: Duration = Duration::from_secs(60 * 60);
/// The most bytes of names of one intermediate. Java takes no more than 32 KiB of certificates in a handshake.
const LARGEST_NAMES: usize = 16 * 1024;
/// The longest common name or organization (RFC 5280, appendix A.1, `ub-common-name`).
const LONGEST_SUBJECT: usize = 64;

/// Why an authority, or a certificate of it, is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key or a certificate could not be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The TLS library does not accept it.
    #[error("a certificate that was made cannot be used: {0}")]
    Use(#[from] rustls::Error),
    /// The constraints of the authority are such that clients accept nothing of it.
    #[error("clients would not accept a certificate of the pod's authority: {0}")]
    Verify(String),
    /// What was kept is no PEM.
    #[error("is damaged: {0}")]
    Pem(#[from] pem::Error),
    /// What was kept has no host.
    #[error("is damaged: it has no host")]
    NoHost,
}

/// An authority as it is kept across restarts of its sidecar. Its key is secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAuthority {
    /// The common name of the intermediate.
    name: String,
    /// The pod, as certificates name it.
    pod: String,
    /// The names that the intermediate may sign for.
    hosts: BTreeSet<String>,
    /// True if there was no room for more names.
    is_full: bool,
    /// The end of both certificates, in seconds since 1970.
    expires: u64,
    /// The root, in PEM.
    root: String,
    /// The intermediate, in PEM.
    intermediate: String,
    /// The intermediate's key, in PEM.
    key: String,
}

impl std::fmt::Debug for KeptAuthority {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAuthority").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// A certificate of one host, with its key and the time in which it is shown.
#[derive(Debug)]
pub struct HostCertificate {
    /// The certificate, the intermediate's, and the key.
    pub key: Arc<CertifiedKey>,
    from: SystemTime,
    until: SystemTime,
}

impl HostCertificate {
    /// Returns whether it is still to be shown then: a client that gets it has half of its life before it.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        now >= self.from && now + LEAF_LIFE / 2 < self.until
    }
}

/// The authority of one pod.
pub struct PodAuthority {
    kept: KeptAuthority,
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for PodAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.kept.fmt(f)
    }
}

impl PodAuthority {
    /// Makes an authority for a pod, which certificates name, and for these hosts: those that come first, where there are too many for
    /// clients to take them.
    ///
    /// # Errors
    /// There is no host, or clients would not accept what was made.
    pub fn new(pod: &str, hosts: impl IntoIterator<Item = String>, now: SystemTime) -> Result<Self, AuthorityError> {
        let (hosts, is_full) = within_bound(hosts);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // Named after the key, so that no two authorities have the same name: verifiers look for issuers by name.
        let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        let id = HEXLOWER.encode(digest.as_ref().get(..8).unwrap_or_default());
        let pod: String = pod.chars().take(LONGEST_SUBJECT).collect();
        let (from, until) = (now.checked_sub(SLACK).unwrap_or(now), now + LIFE);
        let mut root = authority_params(&format!("Toolweir root {id}"), &pod);
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        (root.not_before, root.not_after) = (from.into(), until.into());
        let name = format!("Toolweir intermediate {id}");
        let mut intermediate = authority_params(&name, &pod);
        (intermediate.not_before, intermediate.not_after) = (from.into(), until.into());
        intermediate.use_authority_key_identifier_extension = true;
        intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        intermediate.name_constraints = Some(NameConstraints {
            permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
            excluded_subtrees: [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
                .map(|all| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(all, 0)))
                .into_iter()
                .chain(below(&hosts).map(GeneralSubtree::DnsName))
                .collect(),
        });
        let (root, intermediate) = {
            // Nothing keeps the root's key: the intermediate is the only certificate that it ever signs.
            let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let made = root.self_signed(&root_key)?;
            (made, intermediate.signed_by(&key, &Issuer::from_params(&root, &root_key))?)
        };
        let kept = KeptAuthority {
            name,
            pod,
            hosts,
            is_full,
            expires: seconds(until),
            root: root.pem(),
            intermediate: intermediate.pem(),
            key: key.serialize_pem(),
        };
        Self::restore(kept, now)
    }

    /// Restores an authority that was kept.
    ///
    /// # Errors
    /// It is damaged, its parts are not of one piece, or it has expired.
    pub fn restore(kept: KeptAuthority, now: SystemTime) -> Result<Self, AuthorityError> {
        let (root, intermediate) = (
            CertificateDer::from_pem_slice(kept.root.as_bytes())?,
            CertificateDer::from_pem_slice(kept.intermediate.as_bytes())?,
        );
        let issuer = Issuer::new(authority_params(&kept.name, &kept.pod), KeyPair::from_pem(&kept.key)?);
        let restored = Self { kept, root, intermediate, issuer };
        restored.check(now)?;
        Ok(restored)
    }

    /// Returns the form in which it is kept.
    pub fn kept(&self) -> &KeptAuthority {
        &self.kept
    }

    /// The certificate that agents trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Returns whether it may sign for a name, which is in lower case.
    pub fn covers(&self, name: &str) -> bool {
        self.kept.hosts.contains(name)
    }

    /// Returns whether some of the names for which it was made found no room.
    pub fn is_full(&self) -> bool {
        self.kept.is_full
    }

    /// Makes a certificate for one name.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn certify(&self, name: &str, now: SystemTime) -> Result<HostCertificate, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (from, until) = (now.checked_sub(SLACK).unwrap_or(now), now + LEAF_LIFE - SLACK);
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        // Nobody reads it but people: the name that counts is among the alternative ones.
        params.distinguished_name.push(DnType::CommonName, name.chars().take(LONGEST_SUBJECT).collect::<String>());
        (params.not_before, params.not_after) = (from.into(), until.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone(), self.intermediate.clone()];
        Ok(HostCertificate { key: Arc::new(CertifiedKey::from_der(chain, key, &provider())?), from, until })
    }

    /// Returns who signs the certificates that agents see, in words.
    pub fn describe(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.intermediate);
        let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let until = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(self.kept.expires));
        let of = if self.kept.pod.is_empty() { String::new() } else { format!(", O={}", self.kept.pod) };
        format!("CN={}{of}, SHA-256 {}, until {until}", self.kept.name, pairs.join(":"))
    }

    /// Checks that a client that trusts the root accepts a certificate of each kind of host now.
    fn check(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let name = self.kept.hosts.first().ok_or(AuthorityError::NoHost)?;
        let refused = |error: &dyn std::fmt::Display| AuthorityError::Verify(error.to_string());
        let leaf = self.certify(name, now)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.map_err(|error| refused(&error))?;
        let server = ServerName::try_from(name.as_str()).map_err(|error| refused(&error))?;
        let since = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now)));
        let intermediates = [self.intermediate.clone()];
        verifier
            .verify_server_cert(leaf.key.end_entity_cert()?, &intermediates, &server, &[], since)
            .map_err(|error| refused(&error))?;
        Ok(())
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The parameters that the root and the intermediate share, without their times. The intermediate's are those of an issuer, too.
fn authority_params(name: &str, pod: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if !pod.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, pod);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Returns what is below each of these hosts, as constraints have it: a name that is permitted also permits those below it, but one that
/// begins with a dot means these alone. Where a host is below another one, that other is left out.
fn below(hosts: &BTreeSet<String>) -> impl Iterator<Item = String> {
    hosts.iter().map(|host| format!(".{host}")).filter(|below| !hosts.iter().any(|other| other.ends_with(below)))
}

/// Returns the hosts, as many as clients take, and whether these are not all.
fn within_bound(hosts: impl IntoIterator<Item = String>) -> (BTreeSet<String>, bool) {
    let (mut within, mut bytes) = (BTreeSet::new(), 0);
    for host in hosts {
        // Permitted itself and excluded with what is below it, each with its tag, its length, and those of what is around it.
        bytes += if within.contains(&host) { 0 } else { 2 * (host.len() + 7) };
        if bytes > LARGEST_NAMES {
            return (within, true);
        }
        within.insert(host);
    }
    (within, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: [&str; 3] = ["mcp.example.com", "bank.tools.svc.cluster.local", "bank.tools"];
    const NOW: Duration = Duration::from_secs(1_900_000_000);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn authority() -> PodAuthority {
        PodAuthority::new("agents/social-0", HOSTS.map(str::to_owned), now()).unwrap()
    }

    /// What a client that trusts the root says to a certificate.
    fn verify(authority: &PodAuthority, leaf: &HostCertificate, name: &str, now: SystemTime) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.root().clone()).unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let since = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now)));
        let (end, intermediates) = leaf.key.cert.split_first().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(end, intermediates, &name, &[], since).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn its_certificates_hold_for_one_declared_host_and_for_a_day() {
        let authority = authority();
        for name in HOSTS {
            assert!(authority.covers(name));
            let leaf = authority.certify(name, now()).unwrap();
            assert_eq!(verify(&authority, &leaf, name, now()), Ok(()));
            for other in HOSTS.iter().filter(|other| **other != name) {
                assert!(verify(&authority, &leaf, other, now()).unwrap_err().contains("not valid for name"), "{other}");
            }
            assert!(verify(&authority, &leaf, name, now() + LEAF_LIFE).unwrap_err().contains("expired"));
            assert!(leaf.is_fresh(now()) && leaf.is_fresh(now() + LEAF_LIFE / 4));
            assert!(!leaf.is_fresh(now() + LEAF_LIFE / 2) && !leaf.is_fresh(now() - 2 * SLACK));
        }
    }

    #[test]
    fn it_cannot_vouch_for_another_host_or_an_address() {
        let authority = authority();
        for other in [
            "example.com",
            "xmcp.example.com",
            "below.mcp.example.com",
            "x.bank.tools",
            "anthropic.com",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert!(!authority.covers(other));
            let leaf = authority.certify(other, now()).unwrap();
            let refused = verify(&authority, &leaf, other, now()).unwrap_err();
            assert!(refused.contains("NameConstraintViolation"), "{other}: {refused}");
        }
    }

    #[test]
    fn a_host_below_another_one_is_covered_beside_it() {
        let hosts = ["example.com", "a.example.com", "b.a.example.com"];
        let authority = PodAuthority::new("", hosts.map(str::to_owned), now()).unwrap();
        for name in hosts {
            assert_eq!(verify(&authority, &authority.certify(name, now()).unwrap(), name, now()), Ok(()), "{name}");
        }
        let below = "x.b.a.example.com";
        assert!(verify(&authority, &authority.certify(below, now()).unwrap(), below, now()).is_err());
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was_and_what_is_damaged_is_noticed() {
        let authority = authority();
        let text = serde_json::to_string(authority.kept()).unwrap();
        let later = now() + 100 * LEAF_LIFE;
        let restored = PodAuthority::restore(serde_json::from_str(&text).unwrap(), later).unwrap();
        assert_eq!((restored.root(), restored.describe()), (authority.root(), authority.describe()));
        let leaf = restored.certify(HOSTS[0], later).unwrap();
        assert_eq!(verify(&authority, &leaf, HOSTS[0], later), Ok(()));
        assert!(!text.is_empty() && !format!("{authority:?} {:?}", authority.kept()).contains("PRIVATE"));
        let other = PodAuthority::new("agents/social-0", HOSTS.map(str::to_owned), now()).unwrap();
        assert_ne!(other.describe(), authority.describe());
        for mixed in [
            KeptAuthority { key: other.kept.key.clone(), ..authority.kept.clone() },
            KeptAuthority { root: other.kept.root.clone(), ..authority.kept.clone() },
            KeptAuthority { intermediate: other.kept.intermediate.clone(), ..authority.kept.clone() },
            KeptAuthority { hosts: BTreeSet::from(["a.example".to_owned()]), ..authority.kept.clone() },
            KeptAuthority { hosts: BTreeSet::new(), ..authority.kept.clone() },
            KeptAuthority { root: String::new(), ..authority.kept.clone() },
        ] {
            PodAuthority::restore(mixed, later).unwrap_err();
        }
        PodAuthority::restore(authority.kept.clone(), now() + LIFE + SLACK).unwrap_err();
    }

    #[test]
    fn the_first_hosts_are_covered_where_there_are_too_many() {
        let many = (0..1000).map(|number| format!("server-{number}.tools.svc.cluster.local"));
        let authority = PodAuthority::new("", many, now()).unwrap();
        assert!(authority.covers("server-0.tools.svc.cluster.local") && !authority.covers("server-999.tools.svc.cluster.local"));
        assert!(authority.is_full() && !self::authority().is_full());
        assert!(authority.intermediate.len() < LARGEST_NAMES + 1024, "{}", authority.intermediate.len());
        assert!(authority.describe().starts_with("CN=Toolweir intermediate ") && !authority.describe().contains("O="));
    }
}
