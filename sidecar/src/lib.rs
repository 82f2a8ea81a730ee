//! The proxy beside an agent that holds its MCP tool calls to policy.
//!
//! ```text
//!  policies                                  messages
//!  source (files) ──┐                  ┌── proxy (HTTP) ──┐
//!                   ├─> governor <─────┤                  ├─> mcp (bytes in, meaning out), lists, pending
//!  control          │    │             └── stdio (pipes) ─┘
//!  (the operator) ──┘    ├─ in_force   the policies in force, and each server's metrics
//!                        ├─ freshness  whether they are what their source says
//!                        ├─ counts     of this pod, and of the store that pods share
//!                        ├─ credentials  what servers are shown
//!                        ├─ approvals  calls that a person must approve: the requests, and what was decided
//!                        ├─ observed   what agents did: calls and peak rates of each tool
//!                        ├─ capture    where connections lead that the kernel redirects
//!                        └─ record     of one call ──> audit (the log)
//! ```
//!
//! [`run`] and [`stdio`] put these together. [`admin`] serves what is seen of them: [`scrape`] is the page of metrics, which
//! each module registers in [`registry`], and [`explain`] says what would be decided. [`import_command`], [`replay_command`] and [`capture_rules`] stand
//! alone, and so does [`approvals::command`], which asks a running sidecar.

pub mod account;
pub mod admin;
pub mod answer_rate;
pub mod approvals;
pub mod audit;
pub mod capture;
pub mod capture_rules;
pub mod connections;
pub mod control;
pub mod counts;
pub mod credentials;
pub mod explain;
pub mod files;
pub mod freshness;
pub mod governor;
pub mod import_command;
pub mod in_force;
pub mod interception;
pub mod listed_names;
pub mod lists;
pub mod mcp;
pub mod mcp_config;
pub mod metrics;
pub mod net;
pub mod observed;
pub mod outcome;
pub mod own_lists;
pub mod pending;
pub mod pod_args;
pub mod policy_changes;
pub mod proxy;
pub mod record;
pub mod references;
pub mod registry;
pub mod replay_command;
pub mod run;
pub mod scrape;
pub mod seen_tools;
pub mod server_judge;
pub mod server_metrics;
pub mod server_requests;
pub mod source;
pub mod stdio;
pub mod tasks;
