//! The certificate of the store that the chart runs: the content of its Secret, and when it is made anew. No I/O.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{
    issue::{IssueError, StoreKeyPair},
    plan::{self, Authority, AuthoritySet, CertificateLifetimes},
    store::labels,
};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const BUNDLE: &str = "ca.crt";
const TYPE: &str = "kubernetes.io/tls";

/// Returns the Secret to write; none where it is as it should be. A certificate is kept as long as the authority that signs now
/// has signed it and half of its life is left.
///
/// # Errors
/// The Secret belongs to somebody else, or a certificate cannot be made.
pub fn due(
    name: &str,
    found: Option<&Secret>,
    state: &AuthoritySet,
    names: &[String],
    now: SystemTime,
    lifetimes: &CertificateLifetimes,
) -> Result<Option<Secret>, StoreCertificateError> {
    let signer = state.signer(now).ok_or(StoreCertificateError::NoSigner)?;
    let bundle = state.bundle();
    if let Some(found) = found {
        let is_ours = |held: &BTreeMap<_, _>| labels().iter().all(|(label, value)| held.get(label) == Some(value));
        if found.type_.as_deref() != Some(TYPE) || !found.metadata.labels.as_ref().is_some_and(is_ours) {
            return Err(StoreCertificateError::Foreign);
        }
        let text = |key: &str| found.data.as_ref()?.get(key).and_then(|ByteString(text)| String::from_utf8(text.clone()).ok());
        if let (Some(certificate), Some(key), Some(held)) = (text(CERTIFICATE), text(KEY), text(BUNDLE)) {
            let pair = StoreKeyPair { certificate, key };
            let alone = AuthoritySet { authorities: vec![signer.clone()] };
            let half = plan::store_leaf(&signer.span, now, lifetimes).renew;
            if held == bundle && pair.is_good(&alone, names, now) && pair.is_good(&alone, names, half) {
                return Ok(None);
            }
        }
    }
    Ok(Some(secret(name, found, signer, &bundle, names, now, lifetimes)?))
}

fn secret(
    name: &str,
    found: Option<&Secret>,
    signer: &Authority,
    bundle: &str,
    names: &[String],
    now: SystemTime,
    lifetimes: &CertificateLifetimes,
) -> Result<Secret, IssueError> {
    let StoreKeyPair { certificate, key } = StoreKeyPair::new(signer, &plan::store_leaf(&signer.span, now, lifetimes), names)?;
    let new = || ObjectMeta { name: Some(name.to_owned()), labels: Some(labels()), ..ObjectMeta::default() };
    Ok(Secret {
        // With the version that was read: what another replica wrote meanwhile is not written over.
        metadata: found.map_or_else(new, |found| found.metadata.clone()),
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from(
            [(CERTIFICATE, certificate.as_str()), (KEY, key.as_str()), (BUNDLE, bundle)]
                .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))),
        )),
        ..Secret::default()
    })
}

/// The errors of making the store's certificate.
#[derive(Debug, thiserror::Error)]
pub enum StoreCertificateError {
    /// The Secret is not the operator's.
    #[error("it is not one that an operator made; delete it, or give the chart another name")]
    Foreign,
    /// No authority can sign.
    #[error("no authority can sign; is the clock right?")]
    NoSigner,
    /// The certificate cannot be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certs::{issue, plan::AuthoritySpan};

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + days * DAY
    }

    fn names() -> Vec<String> {
        issue::names("toolweir-store", "toolweir-system")
    }

    fn authority(made: u32, signs_from: u32) -> Authority {
        issue::authority(&AuthoritySpan { made: at(made), signs_from: at(signs_from), expires: at(made + 365) }).unwrap()
    }

    fn due_at(found: Option<&Secret>, state: &AuthoritySet, day: u32) -> Option<Secret> {
        due("toolweir-store-tls", found, state, &names(), at(day), &CertificateLifetimes::default()).unwrap()
    }

    fn text(secret: &Secret, key: &str) -> String {
        String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
    }

    #[test]
    fn it_is_made_once_and_anew_at_half_of_its_life() {
        let state = AuthoritySet { authorities: vec![authority(0, 0)] };
        let first = due_at(None, &state, 0).unwrap();
        assert_eq!((first.type_.as_deref(), first.metadata.name.as_deref()), (Some(TYPE), Some("toolweir-store-tls")));
        assert_eq!(text(&first, BUNDLE), state.bundle());
        let pair = StoreKeyPair { certificate: text(&first, CERTIFICATE), key: text(&first, KEY) };
        assert!(pair.is_good(&state, &names(), at(89)) && !pair.is_good(&state, &names(), at(91)));
        assert!(!format!("{pair:?}").contains("PRIVATE"));
        for day in [0, 1, 44] {
            assert_eq!(due_at(Some(&first), &state, day), None, "{day}");
        }
        let second = due_at(Some(&first), &state, 46).unwrap();
        assert_ne!(text(&first, CERTIFICATE), text(&second, CERTIFICATE));
        assert_eq!(due_at(Some(&second), &state, 46), None);
    }

    #[test]
    fn it_is_of_the_authority_that_signs_now_and_says_whom_to_trust() {
        let (old, new) = (authority(0, 0), authority(121, 242));
        let state = AuthoritySet { authorities: vec![old.clone()] };
        let first = due_at(None, &state, 100).unwrap();
        // A successor is only trusted at first.
        let both = AuthoritySet { authorities: vec![old.clone(), new.clone()] };
        let second = due_at(Some(&first), &both, 121).unwrap();
        assert_eq!(text(&second, BUNDLE), both.bundle());
        let pair = |secret: &Secret| StoreKeyPair { certificate: text(secret, CERTIFICATE), key: text(secret, KEY) };
        assert!(pair(&second).is_good(&AuthoritySet { authorities: vec![old] }, &names(), at(122)));
        // Then it signs.
        let third = due_at(Some(&second), &both, 242).unwrap();
        assert!(pair(&third).is_good(&AuthoritySet { authorities: vec![new] }, &names(), at(243)));
    }

    #[test]
    fn what_does_not_fit_is_made_anew_and_what_is_somebody_elses_is_left_alone() {
        let state = AuthoritySet { authorities: vec![authority(0, 0)] };
        let good = due_at(None, &state, 0).unwrap();
        for (key, other) in
            [(KEY, text(&due_at(None, &state, 0).unwrap(), KEY)), (CERTIFICATE, "x".to_owned()), (BUNDLE, String::new())]
        {
            let mut bad = good.clone();
            bad.data.as_mut().unwrap().insert(key.to_owned(), ByteString(other.into_bytes()));
            assert!(due_at(Some(&bad), &state, 1).is_some(), "{key}");
        }
        let mut foreign = good.clone();
        foreign.metadata.labels = None;
        let said = due("s", Some(&foreign), &state, &names(), at(1), &CertificateLifetimes::default()).unwrap_err().to_string();
        assert!(said.starts_with("it is not one that an operator made"), "{said}");
        // Another name.
        let other = issue::names("counts", "toolweir-system");
        assert!(due("s", Some(&good), &state, &other, at(1), &CertificateLifetimes::default()).unwrap().is_some());
    }

    #[test]
    fn an_authority_at_its_end_makes_one_and_not_one_each_time() {
        let state = AuthoritySet { authorities: vec![authority(0, 0)] };
        let last = due_at(None, &state, 364).unwrap();
        assert_eq!(due_at(Some(&last), &state, 364), None);
    }
}
