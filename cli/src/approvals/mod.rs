//! Calls that wait for a person: `kubectl toolweir approvals` shows them, `approve` and `deny` decide.
//!
//! [`command`] reads the command line. [`request`] reads an `MCPApproval`, [`request_text`] writes it for people. [`listing`] shows those that
//! there are, and [`watch`] what becomes of them; [`decide`] writes a decision, and [`refusal`] says which right was missing.

pub mod command;
pub mod decide;
pub mod listing;
pub mod refusal;
pub mod request;
pub mod request_text;
pub mod waiting;
pub mod watch;
