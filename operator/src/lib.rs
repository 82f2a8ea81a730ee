//! Injects the sidecar into agent pods and streams to each the policies that govern it.
//!
//! [`index`], [`select`], [`acks`] and [`status`] are plain data and functions: what is known of the cluster, which
//! policies govern which pod, and what a policy's status says. [`cluster`] feeds the index from the API server, [`stream`]
//! serves the sidecars ([`auth`] says who they are), [`publish`] writes.

pub mod acks;
pub mod admission;
pub mod auth;
pub mod cluster;
pub mod config;
pub mod index;
pub mod inject;
pub mod metrics;
pub mod publish;
pub mod select;
pub mod status;
pub mod stream;
pub mod world;

/// The name of the sidecar's container.
pub const SIDECAR_CONTAINER: &str = "toolweir-sidecar";
