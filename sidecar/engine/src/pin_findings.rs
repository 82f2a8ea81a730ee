//! What policies say of the tools that they pin.

use std::sync::Arc;

use toolweir_crds::{Mode, PartSet, ToolPins};

use crate::{
    call::Call,
    denial::{Denial, Reason},
    engine::Engine,
    pins::{PinEffect, PinState, PinnedTools, told},
    rules::{Group, Step},
    seen::SeenTool,
};

/// How a tool differs from pins, where a policy minds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDrift {
    /// The pins, as `namespace/name`.
    pub pins: Arc<str>,
    /// What changed, or that it is not pinned.
    pub state: PinState,
    /// True if calls of it are denied for that; false if policies only report it.
    pub denies: bool,
}

/// What policies that decide together say of a tool for its pins.
#[derive(Debug, Default)]
pub(crate) struct PinFindings {
    /// The most severe denial.
    pub denied: Option<Denial>,
    /// What is only reported.
    pub audited: Vec<Denial>,
    /// The parts of the tool that are not as pins have them; nothing where no pins have it.
    pub changed: Option<PartSet>,
}

impl Engine {
    /// Returns the engine with these pins in place of those it had. A policy whose pins are not among them denies every tool that it
    /// holds to them.
    #[must_use]
    pub fn with_pins<'a>(mut self, pins: impl IntoIterator<Item = &'a ToolPins>) -> Self {
        self.pins = PinnedTools::new(pins);
        self
    }

    /// Returns the pins, as `namespace/name`, that policies name, each once.
    pub fn named_pins(&self, server: &str) -> Vec<&Arc<str>> {
        let rules = self.servers.get(server).map(|rules| rules.tools().policies.as_slice()).unwrap_or_default();
        let mut named: Vec<&Arc<str>> = rules.iter().filter_map(|rules| rules.pins.as_ref()).map(|rule| &rule.id).collect();
        named.sort();
        named.dedup();
        named
    }

    /// Returns how a tool differs from each pins to which policies hold its server, as far as they mind: what changed, and a tool that is
    /// not pinned where a policy does not allow it. Nothing for a tool that was not seen.
    pub fn drift(&self, server: &str, tool: &str, seen: &SeenTool) -> Vec<PinDrift> {
        let Some(rules) = self.servers.get(server) else { return Vec::new() };
        let mut found: Vec<PinDrift> = Vec::new();
        for (rules, rule) in rules.tools().policies.iter().filter_map(|rules| Some((rules, rules.pins.as_ref()?))) {
            let state = self.pins.compare(&rule.id, tool, Some(seen));
            let effect = rule.effect(state);
            if !matches!(state, PinState::Changed(_) | PinState::New) || effect == PinEffect::Nothing {
                continue;
            }
            let denies = rules.mode == Mode::Enforce && effect != PinEffect::Audit;
            match found.iter_mut().find(|known| known.pins == rule.id) {
                Some(known) => known.denies |= denies,
                None => found.push(PinDrift { pins: Arc::clone(&rule.id), state, denies }),
            }
        }
        found
    }

    /// Returns how a tool compares with the pins of a step; none where the policy names none.
    pub(crate) fn pin_state(&self, step: &Step, call: &Call<'_>) -> Option<PinState> {
        let rule = step.rules.pins.as_ref()?;
        Some(self.pins.compare(&rule.id, call.operation.name, call.seen))
    }

    /// Returns what policies that decide together say of a call for its tool's pins.
    pub(crate) fn pin_findings(&self, group: &Group, call: &Call<'_>) -> PinFindings {
        let mut found = PinFindings::default();
        for step in &group.steps {
            let Some((rule, state)) = step.rules.pins.as_ref().zip(self.pin_state(step, call)) else { continue };
            if matches!(state, PinState::Same | PinState::Changed(_)) {
                found.changed = Some(found.changed.unwrap_or_default().union(state.changed()));
            }
            let effect = rule.effect(state);
            let Some(reason) = state.reason().filter(|_| effect != PinEffect::Nothing) else { continue };
            let what = told(rule, state, effect, call.operation.name);
            let mut denial = Denial::of_policy(&step.rules.policy, None, reason, call.operation, &what);
            denial.changed = state.changed();
            denial.told = (effect == PinEffect::Hide).then_some(Reason::NotListed);
            if effect == PinEffect::Audit {
                found.audited.push(denial);
            } else if found.denied.as_ref().is_none_or(|known| denial.reason < known.reason) {
                found.denied = Some(denial);
            }
        }
        found
    }
}
