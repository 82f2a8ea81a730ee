//! Counts that pods share, kept in Valkey or Redis.
//!
//! [`Store::take`] answers what a call wants of them ([`toolweir_engine::shared::SharedDemand`]); [`Store::keep`] keeps the connection;
//! [`Store::usage`] and [`Store::peek`] read without taking.
//!
//! ```text
//! Store::take ── local: decides from leases, or makes a request ── in_flight: sends it, applies the reply
//!                  │ count: one count as this pod knows it            │ worker: a connection for each thread
//!                  │ answer: what was taken                           │ scripts::take: the wire format
//! Store::keep ── upkeep: epochs, signs of life, leases that are over ─┴─ connect: finds the master, opens a connection
//!                                                                        handshake, tls, topology, dns, config, error
//! ```
//!
//! [`local`] and what it uses is pure: values in, values out. The numbers that pods share are made by [`scripts`] in the store alone.

pub mod answer;
pub mod config;
pub mod connect;
pub mod connection;
mod count;
pub mod dns;
pub mod error;
mod handshake;
mod in_flight;
pub mod local;
mod reply;
pub mod scripts;
pub mod slices;
mod state;
mod store;
pub mod tls;
pub mod topology;
mod upkeep;
mod usage;
mod worker;

pub use config::{StoreConfig, StoreUrl};
pub use error::{StoreError, StoreFault};
pub use in_flight::SharedAnswers;
pub use state::Meters;
pub use store::{PeekedCounts, Store};
pub use upkeep::probe;
pub use usage::UsageSnapshot;
