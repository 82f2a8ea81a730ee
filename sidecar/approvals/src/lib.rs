//! Approvals of calls by people: what exactly is approved, and the book of requests and decisions. Pure: time and randomness are arguments.
//!
//! - [`arguments_sha256`] is the digest of a call's arguments in their canonical form (RFC 8785). Arguments that have no exact one are
//!   refused.
//! - [`CallKey`] names one call of one pod under policies in one state. An approval is of one key.
//! - [`Book`] has the requests of one sidecar. [`Book::ask`] joins or makes one, [`Book::decide`] and [`Book::learn`] enter what people
//!   decided, and [`Book::begin_use`] uses an approval up, once. [`Book::report`] is what the operator is told.
//! - [`KeptBook`] is the book as a file keeps it.
//!
//! ```text
//! ask ──> Pending ── decide, learn ──> Approved ── begin_use ──> Used
//!            │  │                       │  │  ^                   │
//!            │  └──> Denied             │  │  └──── give_back ────┘
//!            └──> Expired, Voided <─────┘──┘
//! ```

mod book;
mod canonical;
mod inexact;
mod kept;
mod key;
mod name;
mod number;
mod request;

pub use crate::{
    book::{ApprovalUse, Asked, AskedCall, Book, Decided, NotDecided, NotUsable},
    canonical::{arguments_sha256, canonical_json},
    inexact::{Inexact, NotExact},
    kept::{KeptBook, KeptBookError},
    key::CallKey,
    request::{ApprovalChange, ApprovalStep, WaitingApproval},
};
