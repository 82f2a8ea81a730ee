//! Injects the sidecar into agent pods and streams to each the policies that govern it.
//!
//! Plain data and functions, without I/O: [`index`] (the cluster as it is known, and which policies govern which pod), [`acks`] (what
//! sidecars enforce), [`status`], [`credential_status`], [`interception_status`] and [`pins_status`] (the status of policies), [`pins`],
//! [`drift_events`] (what becomes an event of changed tools), [`inject`] (a pod with a sidecar), [`captured`] (a pod whose capture nothing
//! may undo), [`credentials`], [`quantity`], [`weigh`], [`review`], most of [`certs`] and of [`approvals`].
//!
//! ```text
//! API server --watch--> cluster --> cluster_state (index, acks) --> stream --> sidecars
//!      |  ^                               |            ^               |
//!      |  +-- publish (status, leader) <--+            +-- acks -------+--> events
//!      +--webhook--> admission (review, weigh, namespaces) --> inject, captured, index
//! ```
//!
//! [`auth`] authenticates sidecars, [`client_ca`] API servers. [`serve`] has the ports; [`seats`], [`evicting_semaphore`] and [`worker`]
//! bound what clients take there before they are authenticated; [`response`], [`probes`] and [`metrics_port`] answer. [`shared_store`]
//! reads and probes the store that pods share. [`approvals`] has people asked, and says what they decided. Each module creates its metrics in the registry of [`metrics`]; [`operator_metrics`]
//! collects them. [`run`](mod@run) starts all parts; [`check`] asks a running operator.

pub mod acks;
pub mod admission;
pub mod approvals;
pub mod auth;
pub mod captured;
pub mod certs;
pub mod check;
pub mod client_ca;
pub mod cluster;
pub mod cluster_state;
pub mod config;
pub mod credential_status;
pub mod credentials;
pub mod drift_events;
pub mod event_notice;
pub mod events;
pub mod evicting_semaphore;
pub mod index;
pub mod inject;
pub mod interception_status;
pub mod leader;
pub mod metrics;
pub mod metrics_port;
pub mod namespaces;
pub mod next_line;
pub mod operator_metrics;
pub mod pins;
pub mod pins_status;
pub mod probes;
pub mod publish;
pub mod quantity;
pub mod readiness;
pub mod response;
pub mod review;
pub mod run;
pub mod seats;
pub mod serve;
pub mod shared_store;
pub mod status;
pub mod stream;
pub mod watch;
pub mod weigh;
pub mod worker;
