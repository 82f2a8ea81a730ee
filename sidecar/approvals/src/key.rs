//! What an approval is bound to.

use std::{fmt, sync::Arc};

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use toolweir_crds::approval_request::ApprovalAgent;
use toolweir_engine::AskingPolicy;

/// One call of one pod under policies in one state: a SHA-256 over all of it. Whatever differs, the key differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey([u8; 32]);

impl CallKey {
    /// The key of a call with these arguments ([`arguments_sha256`](crate::arguments_sha256)), of this agent, for which these policies ask.
    pub fn of(server: &str, tool: &str, arguments_sha256: &str, agent: &ApprovalAgent, policies: &[Arc<AskingPolicy>]) -> Self {
        let parts = [server, tool, arguments_sha256, &agent.pod_uid, &agent.service_account];
        let revisions = policies.iter().map(|policy| &*policy.revision);
        Self(digest_of(parts.into_iter().chain(revisions)))
    }

    /// The digest of a state of a policy.
    pub(crate) fn of_revision(revision: &str) -> Self {
        Self(digest_of([revision]))
    }
}

/// The SHA-256 of texts, each after its length, so that no two lists are the same bytes.
fn digest_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    let digest = context.finish();
    std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
}

impl fmt::Display for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallKey({self})")
    }
}

impl Serialize for CallKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CallKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("a key is not 64 lower case hexadecimal digits"))
    }
}
