//! Injects the sidecar into agent pods and streams to each the policies that govern it.
//!
//! [`index`], [`select`], [`acks`], [`status`] and [`inject`] are plain data and functions: what is known of the cluster, which
//! policies govern which pod, what a policy's status says, what a pod becomes. [`cluster`] feeds the index from the API server,
//! [`stream`] serves the sidecars ([`auth`] says who they are), [`admission`] the webhooks ([`review`] reads what comes, [`weigh`] says
//! what it would take, [`namespaces`] asks for what the index may not know yet), [`publish`] writes, [`leader`] says who writes status, [`events`] tells of denials, [`shared`] of the store
//! that pods share, [`certs`] keeps what TLS needs. [`serve`] has the ports, [`seats`] and [`room`] bound what strangers take there,
//! [`client_ca`] says who may use the webhooks. [`run`](mod@run) puts them together.

pub mod acks;
pub mod admission;
pub mod auth;
pub mod certs;
pub mod check;
pub mod client_ca;
pub mod cluster;
pub mod config;
pub mod events;
pub mod index;
pub mod inject;
pub mod leader;
pub mod metrics;
pub mod namespaces;
pub mod publish;
pub mod review;
pub mod room;
pub mod run;
pub mod seats;
pub mod select;
pub mod serve;
pub mod shared;
pub mod status;
pub mod stream;
pub mod weigh;
pub mod world;

pub use toolweir_crds::SIDECAR_CONTAINER;
