//! The proxy beside an agent that holds its MCP tool calls to policy.
//!
//! [`proxy`] and [`stdio`] are the two ways in. Both parse with [`mcp`], decide and record with [`governor`], whose
//! policies come from files ([`source`]) or from the operator ([`control`]).

pub mod admin;
pub mod audit;
pub mod control;
pub mod explain;
pub mod files;
pub mod governor;
pub mod import;
pub mod mcp;
pub mod mcp_config;
pub mod metrics;
pub mod proxy;
pub mod run;
pub mod source;
pub mod stdio;
pub mod under_way;
