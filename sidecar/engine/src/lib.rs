//! The engine: it decides on MCP tool calls, and on connections to somewhere else.
//!
//! [`Engine::compile`] turns the policies of one pod into an [`Engine`], and [`Engine::decide`] answers for one call at one point
//! in time. Nothing here does I/O or has a clock of its own: the time is an argument, and so are the answers of a store of shared
//! counts.
//!
//! ```text
//! Policy ── compile ──> Engine: rules for each server, a plan for each tool
//!                         │
//! Call ───── begin ───────┤  denials that do not depend on the call
//!                         │  cel        validations, keys and costs
//!                         │  counters   this pod's own counts: all of them are taken, or none
//!                         ├──> Decision
//!                         └──> Pending: demands on counts that pods share ── finish(answers) ──> Decision
//! ```
//!
//! - [`Engine::begin`] and [`Pending::finish`] decide where counts are shared with other pods. Between them, the caller asks the
//!   store for [`Pending::demands`].
//! - [`Decision`] has the [`Effect`], with a [`Permit`] or a [`Denial`], and the denials of policies in audit mode.
//! - [`Engine::explain`] says what would be decided, and why, without taking anything.
//! - [`Engine::decide_connection`] decides on a connection to somewhere else than a server that a policy names.
//! - [`SeenTool`] is what the caller knows of the tool's definition: its class for entries of classes, and digests for pins
//!   ([`Engine::with_pins`]).
//! - [`policy_files`] compiles policies as they stand in files.
//! - [`json`] reads the messages and arguments, [`cel`] evaluates expressions, [`window`] counts.
//!
//! # Example
//!
//! ```
//! use toolweir_engine::{Call, CompileOptions, Effect, Engine, Memory, Operation, Policy, PolicyId, Reason, Timestamp};
//!
//! // At most one payment in a minute.
//! let spec = r#"{"servers": [{"name": "bank", "url": "http://bank/mcp", "tools": [
//!     {"name": "pay", "limits": [{"max": 1, "window": "minute"}]}
//! ]}]}"#;
//! let id = PolicyId { cluster: false, namespace: "agents".to_owned(), name: "payments".to_owned() };
//! let policy = Policy { id, created: None, spec: serde_json::from_str(spec)?, version: None, unreadable: None };
//!
//! let counters = Memory::new(Memory::COUNTERS);
//! let (engine, problems) = Engine::compile(&[policy], counters, &CompileOptions::default());
//! assert!(problems.is_empty());
//!
//! let call = Call { server: "bank", operation: Operation::tool("pay"), arguments: None, session: "", seen: None };
//! let first = engine.decide(&call, Timestamp(0));
//! assert!(matches!(first.effect, Effect::Allowed(_)));
//! let second = engine.decide(&call, Timestamp(1));
//! assert_eq!(second.labels(), ("denied", Reason::RateLimit));
//!
//! let other = engine.decide(&Call { operation: Operation::tool("close_account"), ..call }, Timestamp(2));
//! assert_eq!(other.labels(), ("denied", Reason::NotListed));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod access;
mod address;
mod approval;
mod ask;
mod call;
pub mod case;
pub mod cel;
mod compile;
mod connect;
pub mod counters;
mod decide;
mod denial;
pub mod egress;
mod egress_doubts;
mod egress_message;
mod egress_rules;
mod engine;
mod entry;
mod evaluate;
mod explain;
pub mod glob;
pub mod json;
mod names;
mod pin_findings;
mod pins;
mod policy;
pub mod policy_files;
mod result_limit;
mod rules;
mod seen;
pub mod shared;
pub mod take;
mod take_denial;
mod verdicts;
mod wants;
pub mod window;
mod words;

pub use ask::{ApprovalAsk, AskingPolicy};
pub use call::{Call, Operation};
pub use compile::CompileOptions;
pub use counters::{Memory, Permit};
pub use decide::{Decision, DecisionStart, Effect, Pending};
pub use denial::{Denial, LimitInfo, Reason};
pub use egress::{AddressRanges, Destination, EgressDecision, EgressEffect, EgressReason};
pub use engine::{Engine, LimitView, ReadsOfCall, ServerView};
pub use pin_findings::PinDrift;
pub use pins::PinState;
pub use policy::{Policy, PolicyId, Problem, Severity};
pub use result_limit::ResultLimit;
pub use seen::SeenTool;
pub use toolweir_crds::resource_uri;
pub use verdicts::Verdict;
pub use window::{Amount, Timestamp};
