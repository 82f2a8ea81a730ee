//! Decides MCP tool calls.
//!
//! Policies in, decisions out: [`Engine::compile`] turns the policies of one pod into an [`Engine`], and
//! [`Engine::decide`] answers for one call at one point in time; where counts are shared with other pods, [`Engine::begin`] and
//! [`Pending::finish`] do, with what the store of these counts says in between. [`Engine::explain`] says what would be answered,
//! and why. Nothing here does I/O or has a clock of its own.

pub mod case;
pub mod cel;
mod compile;
pub mod counters;
mod decide;
mod denial;
mod explain;
pub mod glob;
pub mod json;
mod rules;
pub mod shared;
mod verdicts;
pub mod window;

pub use compile::{Options, Policy, PolicyId, Problem, Severity};
pub use counters::{Counters, Memory, Permit};
pub use decide::{Begun, Call, Decision, Outcome, Pending};
pub use denial::{Denial, LimitInfo, Reason};
pub use rules::{Engine, LimitView, ServerView};
pub use verdicts::Verdict;
pub use window::{Amount, Timestamp};
