//! The operator's own certificates: authorities in a Secret, rotated with overlap, and serving certificates that never
//! leave the memory of the replica that made them.
//!
//! [`plan`] says when authorities come and go, [`issue`] makes them, [`store`] says what the Secret looks like: no I/O.
//! [`keeper`] keeps the Secret, this replica's certificate and the `caBundle` of the webhooks current.
//! docs/certificates.md tells it to users.

pub mod issue;
pub mod keeper;
pub mod plan;
pub mod store;

pub use keeper::{Keeper, Serving, Settings};
pub use plan::Lives;
