//! How traffic of pods that opt in to it is captured.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::shown;

/// How traffic of pods that opt in to it is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// How the rules get into a pod.
    pub method: CaptureMethod,
    /// Address ranges that count as private, besides those that always do.
    pub private_cidrs: Vec<String>,
    /// The user and group ids from which those of a captured pod's sidecar are chosen.
    pub user_range: IdRange,
    /// Certificates in PEM of authorities that captured agents, and their sidecars, trust besides those of the sidecar's image.
    pub extra_roots: String,
}

/// How the rules of capture get into a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum CaptureMethod {
    /// Not at all: pods that opt in are refused.
    #[default]
    None,
    /// By an init container.
    Init,
}

/// User or group ids, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one.
    pub first: u32,
    /// The last one.
    pub last: u32,
}

/// The greatest id that Kubernetes takes.
const GREATEST_ID: u32 = i32::MAX as u32;
/// The fewest ids of a range: what a pod names itself must leave enough to choose from.
const FEWEST_IDS: u32 = 256;
/// The most ranges. Each is an argument of every sidecar.
const MOST_CIDRS: usize = 64;
/// The longest `extraRoots`, in bytes: every captured pod holds them, in a variable of its sidecar.
const LONGEST_ROOTS: usize = 64 * 1024;

impl Default for IdRange {
    fn default() -> Self {
        // A pod with `hostUsers: false` has 65536 ids.
        Self { first: 1024, last: 65535 }
    }
}

impl IdRange {
    /// Returns whether an id is one of these.
    pub fn contains(self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
        Some(Self { first: number(first)?, last: number(last)? })
    }
}

impl<'de> Deserialize<'de> for IdRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || {
            de::Error::custom(format!("userRange: `{}` is not a range of user ids; write for example 1024-65535", shown(&text)))
        };
        Self::parse(&text).ok_or_else(wrong)
    }
}

impl CaptureConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        let IdRange { first, last } = self.user_range;
        if first == 0 || last > GREATEST_ID || last < first || last - first < FEWEST_IDS - 1 {
            return Err(format!(
                "capture.userRange: is {first}-{last}; write at least {FEWEST_IDS} ids from 1 to {GREATEST_ID}, for example 1024-65535"
            ));
        }
        if self.private_cidrs.len() > MOST_CIDRS {
            return Err(format!("capture.privateCidrs: has {} ranges; {MOST_CIDRS} are possible", self.private_cidrs.len()));
        }
        for (at, cidr) in self.private_cidrs.iter().enumerate() {
            if let Some(problem) = cidr_problem(cidr) {
                return Err(format!("capture.privateCidrs[{at}]: {problem}"));
            }
        }
        match roots_problem(&self.extra_roots) {
            Some(problem) => Err(format!("capture.extraRoots: {problem}")),
            None => Ok(()),
        }
    }
}

/// Returns what is wrong with the certificates of authorities, if anything.
fn roots_problem(pem: &str) -> Option<String> {
    if pem.is_empty() {
        return None;
    }
    if pem.len() > LONGEST_ROOTS {
        return Some(format!(
            "has {} bytes; write at most {LONGEST_ROOTS}: only the certificates of your own authorities, since those of public ones \
             are in the sidecar's image",
            pem.len()
        ));
    }
    if pem.contains("PRIVATE KEY-----") {
        return Some(
            "has a private key, which every pod would show; write the certificates alone, and replace that key".to_owned(),
        );
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let at = roots.len() + 1;
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        if let Err(error) = added {
            return Some(format!("certificate {at} cannot be used: {}; write that of an authority, in PEM", shown(&error)));
        }
    }
    let advice = "write the authorities' certificates in PEM, from -----BEGIN CERTIFICATE----- on, or leave it empty";
    roots.is_empty().then(|| format!("has no certificate; {advice}"))
}

/// Returns what is wrong with an address range, if anything.
fn cidr_problem(text: &str) -> Option<String> {
    let no_range = || Some(format!("`{}` is not an address range; write for example 203.0.113.0/24 or fd00::/8", shown(text)));
    let Some((address, bits)) = text.split_once('/') else { return no_range() };
    let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u32>()) else { return no_range() };
    let (host_bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()).checked_shl(96 + bits), 32),
        IpAddr::V6(address) => (address.to_bits().checked_shl(bits), 128),
    };
    if bits > width {
        return no_range();
    }
    let has_host_bits = bits < width && host_bits.is_some_and(|rest| rest != 0);
    has_host_bits.then(|| format!("`{}` has bits after its prefix; write the first address of the range", shown(text)))
}
