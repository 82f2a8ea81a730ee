//! The pins of the cluster as the index keeps them, and which of them policies name.

use std::fmt;

use serde_json::value::{RawValue, to_raw_value};
use toolweir_crds::{PinnedTool, Server, ToolPins};
use toolweir_engine::PolicyId;

/// Namespace and name of an `MCPToolPins`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinsKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PinsKey {
    /// Returns the pins to which a policy holds a server; none where it holds it to none. Those of an `MCPPolicy` are in its own namespace,
    /// whatever else it says.
    pub fn of(policy: &PolicyId, server: &Server) -> Option<Self> {
        let pins = server.pins.as_ref()?;
        let namespace = if policy.cluster { pins.namespace.clone().unwrap_or_default() } else { policy.namespace.clone() };
        Some(Self { namespace, name: pins.name.clone() })
    }
}

impl fmt::Display for PinsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Pins as they stand in the cluster.
#[derive(Clone, Debug)]
pub struct PinsEntry {
    /// Their uid.
    pub uid: String,
    /// Their generation, which changes with their spec.
    pub generation: i64,
    /// As the sidecars get them. Written, since pins are mostly text, of which a tree would take twice as much.
    json: Box<RawValue>,
}

impl PinsEntry {
    /// Creates an entry.
    pub fn new(uid: String, generation: i64, pins: &ToolPins) -> Self {
        Self { uid, generation, json: written(pins) }
    }

    /// Returns the pins as JSON.
    pub fn json(&self) -> &RawValue {
        &self.json
    }

    /// Returns the pins as JSON, without their texts.
    pub fn without_texts(&self) -> Box<RawValue> {
        let Ok(mut pins) = serde_json::from_str::<ToolPins>(self.json.get()) else { return self.json.clone() };
        pins.spec.tools.iter_mut().for_each(PinnedTool::drop_texts);
        written(&pins)
    }
}

fn written(pins: &ToolPins) -> Box<RawValue> {
    to_raw_value(pins).unwrap_or_default()
}

/// Pins of a snapshot, in the state in which they are there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IncludedPins {
    /// Their name.
    pub key: PinsKey,
    /// Their uid.
    pub uid: String,
    /// Their generation.
    pub generation: i64,
}

/// A server that a policy holds to pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedServer {
    /// The server.
    pub server: String,
    /// The pins, which need not be there.
    pub pins: PinsKey,
}
