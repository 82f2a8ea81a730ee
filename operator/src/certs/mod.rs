//! The operator's own certificates: authorities in a Secret, rotated with overlap, and serving certificates that never
//! leave the memory of the replica that made them.
//!
//! [`plan`] says when authorities come and go, [`issue`] makes them, [`store`] says what the Secret looks like: no I/O.
//! [`shared_store`] says the same of the certificate of the chart's store, which the operator makes too.
//! [`keeper`] keeps the Secrets, this replica's certificate and the `caBundle` of the webhooks current.
//! docs/certificates.md tells it to users.

pub mod issue;
pub mod keeper;
pub mod plan;
pub mod shared_store;
pub mod store;

pub use keeper::{Keeper, Serving, Settings, StoreSettings};
pub use plan::Lives;
