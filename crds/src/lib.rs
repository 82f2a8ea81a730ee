//! The policy language of Toolweir as types.
//!
//! What `kubectl apply` takes, what the operator sends, what a local file holds and what the sidecar compiles are the
//! same type, [`MCPPolicySpec`]. This crate says what a policy looks like ([`policy`]), which bounds it keeps
//! ([`bounds`]) and how a file of policies is read with errors that name file, line and field ([`document`]).
//! [`stream`] is how policies travel from the operator to a sidecar, `resource` (feature `kube`) how they are kept in a
//! cluster, [`select`] which pods they govern, and [`explain`] what a sidecar says about a call that it is asked about. What a
//! policy means is the business of `toolweir-engine`.

pub mod bounds;
pub mod document;
pub mod explain;
pub mod policy;
pub mod quoting;
#[cfg(feature = "kube")]
pub mod resource;
pub mod select;
pub mod stream;
pub mod window;

pub use document::{Document, FieldError, FileError, Metadata, read_documents};
pub use policy::{
    Action, LabelSelector, LabelSelectorRequirement, Limit, MCPClusterPolicySpec, MCPPolicySpec, Mode, OnStoreFailure, Scope,
    SelectorOperator, Server, Tool, Validation,
};
pub use window::Window;

/// The `apiVersion` of every Toolweir resource.
pub const API_VERSION: &str = "toolweir.dev/v1alpha1";
/// The name of the sidecar's container in a pod.
pub const SIDECAR_CONTAINER: &str = "toolweir-sidecar";
