//! Counts that pods share, kept in Valkey or Redis.

pub mod config;
pub mod connect;
