//! The requests that a call makes of its limits: amounts and places, by the identity of the limit.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use smallvec::SmallVec;

use crate::window::{Amount, Full, Span, Timestamp, Usage};

/// The name of a limit's counts. The same text is the same count, across reloads too.
#[derive(Clone, Debug)]
pub struct Identity {
    text: Arc<str>,
    hash: u64,
}

impl Identity {
    /// Makes the identity of this text.
    pub fn new(text: &str) -> Self {
        Self { hash: hash_of(text, 0), text: text.into() }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the text, to share it.
    #[inline]
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Returns the hash of the text. It is computed once.
    #[inline]
    pub(crate) fn text_hash(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for Identity {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for Identity {}

#[expect(deprecated, reason = "std's only hasher with stable keys; identities are the policy's, not an attacker's")]
fn hash_of(text: &str, seed: u64) -> u64 {
    let mut hasher = std::hash::SipHasher::new_with_keys(seed, 0x746f_6f6c_7765_6972);
    text.hash(&mut hasher);
    hasher.finish()
}

/// The name of one of the counts of a limit: that of a session, of a key's value, or the only one (empty).
pub type Instance = SmallVec<[u8; 24]>;

/// Instances longer than this are kept as a hash, so that a client cannot fill memory with long ones.
const LONGEST_INSTANCE: usize = 64;

/// Makes the instance of this text.
pub fn instance(text: &str) -> Instance {
    if text.len() <= LONGEST_INSTANCE {
        return Instance::from_slice(text.as_bytes());
    }
    let mut hashed = Instance::from_slice(&[0]);
    hashed.extend_from_slice(&hash_of(text, 1).to_le_bytes());
    hashed.extend_from_slice(&hash_of(text, 2).to_le_bytes());
    hashed
}

/// An amount to be counted against one maximum.
#[derive(Clone, Debug)]
pub struct Take {
    /// The limit's identity.
    pub identity: Identity,
    /// The one of the limit's counts that it is for.
    pub instance: Instance,
    /// The window's length.
    pub span: Span,
    /// The most that may count at once.
    pub max: Amount,
    /// The amount that the call adds.
    pub amount: Amount,
}

impl Take {
    /// Checks that the amount fits now, on top of `usage`; `None` where the limit has let nothing through.
    pub(crate) fn check(&self, usage: Option<&mut Usage>, now: Timestamp) -> Result<(), Full> {
        match usage {
            Some(usage) => usage.check(self.span, now, self.amount, self.max),
            None if self.amount > self.max => Err(Full::Never),
            None => Ok(()),
        }
    }
}

/// A place among the calls in flight.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The entry's identity.
    pub identity: Identity,
    /// The number of calls that may be in flight at once.
    pub max: u64,
}

/// The reason why a call's limits were not taken. Indices are those of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// These takes do not fit now.
    Full(SmallVec<[(usize, Full); 2]>),
    /// This hold has no place now.
    Busy(usize),
    /// More counts are live than are kept; nothing is let through that would need a new one.
    OutOfCounters(usize),
}
