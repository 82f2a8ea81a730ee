//! The store of counts that pods share: [`health`] says how it is, [`monitor`] reads its files and probes it.

pub mod health;
pub mod monitor;
