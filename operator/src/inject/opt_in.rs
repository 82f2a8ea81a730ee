//! The label by which namespaces and pods opt in to injection.

use toolweir_crds::select::Labels;

/// The label of namespaces and pods.
pub const INJECT_LABEL: &str = "toolweir.dev/inject";

/// A value of the label. Other values are treated as if the label were not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// `enabled`.
    Enabled,
    /// `disabled`.
    Disabled,
}

impl OptIn {
    /// Reads a value of the label.
    pub fn from_value(value: &str) -> Option<Self> {
        match value {
            "enabled" => Some(Self::Enabled),
            "disabled" => Some(Self::Disabled),
            _ => None,
        }
    }

    /// Reads the label among others.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        Self::from_value(labels.get(INJECT_LABEL)?)
    }
}

/// Returns whether a namespace with these labels opted in.
pub fn namespace_opted_in(labels: &Labels) -> bool {
    OptIn::from_labels(labels) == Some(OptIn::Enabled)
}
