//! Pins: whether a tool is as it was when a person looked at it, and what policies say where it is not.

use std::sync::Arc;

use hashbrown::HashMap;
use toolweir_crds::{OnDrift, OnNew, PartDigests, PartSet, ServerPins, ToolPins};

use crate::{call::Operation, denial::Reason, seen::SeenTool, words, words::display_name};

/// All pins of the policies in force, by `namespace/name`.
#[derive(Debug, Default)]
pub(crate) struct PinnedTools(HashMap<Box<str>, HashMap<Box<str>, PinnedDigests>>);

/// The digests of a pinned tool; none where the pins cannot be read, so that nothing is as it was.
type PinnedDigests = Option<PartDigests>;

impl PinnedTools {
    /// Reads pins. Of two with the same name, the last holds.
    pub(crate) fn new<'a>(pins: impl IntoIterator<Item = &'a ToolPins>) -> Self {
        let tools = |pins: &ToolPins| {
            let tools = pins.spec.tools.iter();
            tools.map(|tool| (tool.name.as_str().into(), tool.digests().ok())).collect()
        };
        Self(pins.into_iter().map(|pins| (pins.to_string().into(), tools(pins))).collect())
    }

    /// Compares a tool with pins.
    pub(crate) fn compare(&self, pins: &str, tool: &str, seen: Option<&SeenTool>) -> PinState {
        let Some(pinned) = self.0.get(pins) else { return PinState::Missing };
        let Some(digests) = pinned.get(tool) else { return PinState::New };
        match (digests, seen) {
            (Some(digests), Some(seen)) if !seen.definitions.is_empty() => {
                let changed = seen.definitions.iter().map(|now| digests.changed(now)).fold(PartSet::default(), PartSet::union);
                if changed.is_empty() { PinState::Same } else { PinState::Changed(changed) }
            }
            _ => PinState::Unverified,
        }
    }
}

/// How a tool compares with pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinState {
    /// It is as it was pinned, but for notation.
    Same,
    /// These parts are others.
    Changed(PartSet),
    /// It is not pinned.
    New,
    /// It is pinned, and what it looks like now is not known.
    Unverified,
    /// There are no such pins.
    Missing,
}

impl PinState {
    /// Returns the name, as explanations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Changed(_) => "changed",
            Self::New => "new",
            Self::Unverified => "unverified",
            Self::Missing => "missing",
        }
    }

    /// Returns the parts that changed.
    pub fn changed(self) -> PartSet {
        if let Self::Changed(parts) = self { parts } else { PartSet::default() }
    }

    pub(crate) fn reason(self) -> Option<Reason> {
        match self {
            Self::Same => None,
            Self::Changed(_) => Some(Reason::PinDrift),
            Self::New => Some(Reason::NotPinned),
            Self::Unverified | Self::Missing => Some(Reason::PinUnverified),
        }
    }
}

/// The pins to which a policy holds a server.
#[derive(Clone, Debug)]
pub(crate) struct PinRule {
    /// The pins, as `namespace/name`.
    pub id: Arc<str>,
    pub on_drift: OnDrift,
    pub on_new: OnNew,
}

impl PinRule {
    /// Makes the rule of a policy; `namespace` is the policy's.
    pub(crate) fn new(pins: &ServerPins, namespace: &str) -> Self {
        Self { id: pins.full_name(namespace).into(), on_drift: pins.on_drift, on_new: pins.on_new }
    }

    /// Returns what the policy does with a tool that compares so.
    pub(crate) fn effect(&self, state: PinState) -> PinEffect {
        match (state, self.on_drift, self.on_new) {
            (PinState::Same, ..) | (PinState::New, _, OnNew::Allow) => PinEffect::Nothing,
            (PinState::New, _, OnNew::Audit) => PinEffect::Audit,
            (PinState::New, _, OnNew::Deny) | (_, OnDrift::Deny, _) => PinEffect::Deny,
            (_, OnDrift::Hide, _) => PinEffect::Hide,
            (_, OnDrift::Audit, _) => PinEffect::Audit,
        }
    }
}

/// What a policy does with a tool that is not as pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PinEffect {
    Nothing,
    Audit,
    Hide,
    Deny,
}

/// Returns what a caller is told of a tool that compares so.
pub(crate) fn told(rule: &PinRule, state: PinState, effect: PinEffect, tool: &str) -> String {
    let shown = display_name(tool);
    match state {
        _ if effect == PinEffect::Hide => words::not_among(Operation::tool(tool)),
        PinState::Changed(parts) => format!(
            "{shown} is not as it was when it was pinned: {parts} changed. It may not be called until a person has looked at it and pinned it again."
        ),
        PinState::New => format!("{shown} is not pinned. It may not be called until a person has looked at it and pinned it."),
        PinState::Missing => {
            format!(
                "its pins {} are not there, so that nobody knows whether {shown} is as it was. Ask whoever keeps the policy.",
                rule.id
            )
        }
        PinState::Unverified | PinState::Same => format!(
            "{shown} is pinned, and its server's list could not be read to see whether it is as it was. List the tools, then try again."
        ),
    }
}
