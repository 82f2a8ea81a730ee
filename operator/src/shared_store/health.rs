//! The health of the shared store, and how it is shown in the status of policies.

use std::{fmt, sync::Arc};

use toolweir_crds::stream::SharedStore;
use toolweir_store::{StoreError, StoreFault, config::IN_CLEAR};

/// The fault where a file of the operator's cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// The closed set of the label `fault`.
pub fn faults() -> impl Iterator<Item = &'static str> {
    std::iter::once(UNREADABLE).chain(StoreFault::ALL.map(StoreFault::as_str))
}

/// The shared store as sidecars get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidecarStore {
    /// Not known yet: a file with the password or the authorities was never read. Sidecars keep the store that they have, so that
    /// a new operator without its Secret takes it from none of them.
    Unread,
    /// There is no store.
    Nowhere,
    /// The store.
    At(Arc<SharedStore>),
}

/// The health of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreHealth {
    /// There is none.
    #[default]
    Absent,
    /// The store was not probed yet.
    Pending,
    /// The store answers.
    Connected,
    /// The store answers, without TLS over the network.
    InClear,
    /// The store does not answer.
    Down(StoreFailure),
}

/// Why the store does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    /// The label `fault` of `toolweir_operator_shared_store_failures_total`.
    pub fault: &'static str,
    /// The error in words.
    pub message: String,
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl From<StoreError> for StoreFailure {
    fn from(error: StoreError) -> Self {
        Self { fault: error.fault.as_str(), message: error.message }
    }
}

impl StoreHealth {
    /// Returns the condition `SharedStoreReady`: its status, its reason and its message.
    pub fn condition(&self) -> (&'static str, String, String) {
        let meanwhile = "Until it does, calls that it would count are answered as onStoreFailure says.";
        match self {
            Self::Absent => {
                let message = "There is no shared store, which a scope wider than a pod needs; the operator's configuration names \
                               it as sharedStore, and so do the chart's values.";
                ("False", "NotConfigured".to_owned(), message.to_owned())
            }
            Self::Pending => ("Unknown", "Pending".to_owned(), "The operator has not asked the shared store yet.".to_owned()),
            Self::Connected => ("True", "Connected".to_owned(), "The shared store answers the operator.".to_owned()),
            // The store is ready; the reason stays one, so that what waits for it goes on working.
            Self::InClear => {
                ("True", "Connected".to_owned(), format!("The shared store answers the operator. Warning: {IN_CLEAR}."))
            }
            Self::Down(down) => {
                ("False", camel_case(down.fault), format!("The shared store does not answer the operator: {down}. {meanwhile}"))
            }
        }
    }
}

/// Returns a label such as `wrong_password` in the form of a condition's reason: `WrongPassword`.
fn camel_case(fault: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    fault.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_says_what_is_wrong_and_what_is_done_meanwhile() {
        let down = StoreHealth::Down(StoreFailure { fault: "wrong_password", message: "WRONGPASS".to_owned() });
        let (status, reason, message) = down.condition();
        assert_eq!((status, reason.as_str()), ("False", "WrongPassword"));
        assert_eq!(
            message,
            "The shared store does not answer the operator: WRONGPASS. Until it does, calls that it would count are answered as \
             onStoreFailure says."
        );
        assert_eq!(StoreHealth::Connected.condition().0, "True");
        assert_eq!((StoreHealth::Pending.condition().0, StoreHealth::Pending.condition().1.as_str()), ("Unknown", "Pending"));
        assert_eq!((StoreHealth::Absent.condition().0, StoreHealth::Absent.condition().1.as_str()), ("False", "NotConfigured"));
    }

    #[test]
    fn a_store_without_tls_is_ready_with_a_warning() {
        let (status, reason, message) = StoreHealth::InClear.condition();
        assert_eq!((status, reason.as_str()), ("True", "Connected"));
        assert!(message.contains("Warning: it is reached without TLS") && message.contains("rediss"), "{message}");
        assert!(!StoreHealth::Connected.condition().2.contains("TLS"));
    }
}
