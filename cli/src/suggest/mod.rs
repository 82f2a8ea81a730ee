//! `toolweir suggest`: a policy for the tools of a server, to begin with.
//!
//! [`rules`] says what becomes of each tool: by its class, or by what agents did ([`observations`]). [`manifest`] writes that as an
//! `MCPPolicy` with comments, and compiles it. Both are pure. [`command`] reads the tools, and [`pods`]
//! asks sidecars.

pub mod command;
pub mod manifest;
pub mod observations;
pub mod pods;
pub mod rules;
