//! Decides the calls of an audit log anew, by other policies, with the times at which they came.
//!
//! ```text
//! Policy ── Replay::add_log ──> an engine for each log; where the log lacks what conditions read, one without these conditions
//! line ──── Replay::add_line ─> RecordedCall: what a decision needs, in a few bytes
//!           Replay::finish ───> the calls in the order of their times, decided by the engine ──> ReplayReport
//! ```
//!
//! Each log is one run of one pod: its own counts belong to it. Counts that pods share are kept for all logs together. The line
//! reading and the arguments that do not fit into memory are the only I/O here.

mod argument_store;
mod audit_line;
mod lines;
mod log_engine;
mod names;
mod recording;
mod replay;
mod report;
mod report_text;
mod shared_counts;

pub use audit_line::{CallLine, LineApproval, LinePins, RecordedEffect, RecordedLine};
pub use lines::{MOST_BYTES, next_line};
pub use replay::{LogId, Replay, ReplayError};
pub use report::{Change, Damage, DecisionChange, Example, ReplayReport, SkippedLines};
