//! `toolweir suggest`: a policy for the tools of a server, to begin with.
//!
//! [`rules`] says what becomes of each tool: by its class, or by what agents did ([`observations`]). [`others`] says what becomes of all
//! else that the server offers or asks for. [`manifest`] writes that as an
//! `MCPPolicy` with comments, and compiles it. All are pure. [`command`] reads the tools, and [`pods`]
//! asks sidecars.

pub mod command;
pub mod manifest;
pub mod observations;
pub mod others;
pub mod pods;
pub mod rules;
