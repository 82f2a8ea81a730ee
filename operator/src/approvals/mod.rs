//! Approvals: calls that wait for a person. A sidecar says what it asks; the operator makes an `MCPApproval` of it, writes its state, and
//! tells the sidecar what a person decided. It never decides, and never writes what a person writes.
//!
//! Plain data and functions, without I/O: [`records`] (what is kept of objects), [`request`] (what a sidecar asks, checked),
//! [`transition`] (what becomes of a request), [`plan`](mod@plan) (what is to be done for a pod with a stream), [`upkeep`] (and for pods
//! without), [`guarded`] (whether the API server checks who decides), [`notices`], [`webhook_message`] and [`webhook_url`].
//!
//! [`service`] is the state that all share. [`session`] serves one stream, [`tasks`] the rest; [`writer`] writes objects, [`webhook`]
//! sends messages. [`settings`] starts them.

pub mod guarded;
pub mod metrics;
pub mod notices;
pub mod plan;
pub mod records;
pub mod request;
pub mod service;
pub mod session;
pub mod settings;
pub mod tasks;
pub mod transition;
pub mod upkeep;
pub mod webhook;
pub mod webhook_message;
pub mod webhook_url;
pub mod writer;
