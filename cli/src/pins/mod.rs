//! Pins: what the tools of a server look like, and whether they still do.
//!
//! `toolweir pin` ([`pin_command`]) reads the tools of a source, and of a pod also those that its sidecar has seen and hides ([`seen`]); [`pinned`]
//! makes `MCPToolPins` of that, and [`manifest`] writes them. `toolweir drift` ([`drift_command`]) compares the same, or what a sidecar saw last, with
//! pins of a file or of the cluster ([`cluster_pins`]). [`drift`] and [`text_diff`] find what differs, and [`drift_text`] writes it for
//! people. What servers wrote is shown so that it cannot deceive: [`exact_text`].

pub mod cluster_pins;
pub mod drift;
pub mod drift_command;
pub mod drift_text;
pub mod exact_text;
pub mod manifest;
pub mod pin_command;
pub mod pinned;
pub mod seen;
pub mod text_diff;
