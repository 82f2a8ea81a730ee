//! The names that expressions read of the arguments.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::case::folded;

/// The names that expressions read of the arguments, to find keys that differ from them in case alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArgumentNames(HashMap<Box<str>, SmallVec<[Box<str>; 1]>>);

impl<N: AsRef<str>> FromIterator<N> for ArgumentNames {
    fn from_iter<I: IntoIterator<Item = N>>(names: I) -> Self {
        let mut all = Self::default();
        for name in names {
            let known = all.0.entry(folded(name.as_ref()).into()).or_default();
            if !known.iter().any(|known| **known == *name.as_ref()) {
                known.push(name.as_ref().into());
            }
        }
        all
    }
}

impl ArgumentNames {
    /// Returns the number of names, without regard to case.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a name that differs from this key in case alone.
    #[inline]
    pub(super) fn differing_in_case(&self, key: &str) -> Option<&str> {
        let same = self.0.get(&*folded(key));
        same.into_iter().flatten().find(|known| ***known != *key).map(|known| &**known)
    }
}
