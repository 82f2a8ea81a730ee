//! Counts that pods share, kept in Valkey or Redis.
//!
//! [`Store::take`] answers what a call wants of them ([`toolweir_engine::shared::Wanted`]); [`Store::keep`] keeps the connection.
//! [`local`] is what one pod knows, pure; [`scripts`] what is carried out in the store; [`config`] and [`connect`] where it is;
//! [`dns`] looks its name up.

pub mod config;
pub mod connect;
pub mod dns;
pub mod local;
pub mod scripts;
pub mod slices;
mod store;
mod upkeep;

pub use store::{Looked, Meters, Seen, Store};
pub use upkeep::probe;
