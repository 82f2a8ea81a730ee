//! The operator's own certificates: authorities in a Secret, rotated with overlap, and serving certificates that never
//! leave the memory of the replica that made them.
//!
//! [`plan`] says when authorities come and go, [`issue`] makes them, [`store`] reads and writes the Secret's content: no I/O.
//! [`shared_store`] does the same for the certificate of the chart's store, which the operator makes too.
//! [`manager`] keeps the Secrets, this replica's certificate and the `caBundle` of the webhooks current.
//! docs/certificates.md describes it for users.

pub mod issue;
pub mod manager;
pub mod plan;
pub mod shared_store;
pub mod store;

pub use manager::{CertificateManager, CertificateMetrics, CertificateSettings, ServingCertificate, StoreCertificateSettings};
pub use plan::CertificateLifetimes;
