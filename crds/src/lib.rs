//! The policy language of Toolweir as types.
//!
//! `kubectl apply`, the operator, a local file and the sidecar all use the same type, [`MCPPolicySpec`]. This crate knows the form of a
//! policy; `toolweir-engine` gives it a meaning. No I/O, but for [`policy_files`].
//!
//! ```text
//! policy (types) <- check (against bounds) <- document (a file with places of errors)
//!    ^  ^  ^
//!    |  |  +- resource, status   the policies in a cluster (feature `kube`)
//!    |  +---- select             the pods that they govern
//!    +------- stream, explain, observed, seen   the operator and the plugin talk to a sidecar
//! ```
//!
//! [`approval_request`] has calls that wait for a person, [`tool_pins`] has what tools looked like when they were pinned, [`credential`] says what a sidecar shows a server, [`egress`] where else a pod may connect to,
//! [`error`] has the errors, [`window`], [`tool_name`] and [`resource_uri`] read single values, [`quoting`] finds texts that kubectl reads as another type,
//! [`sidecar`] has the names and ports of an injected sidecar, [`text`] makes texts of others one line.

mod approval;
pub mod approval_request;
pub mod bounds;
pub mod check;
pub mod credential;
pub mod document;
pub mod egress;
mod entry;
pub mod error;
pub mod explain;
mod not_null;
pub mod observed;
mod operation;
pub mod policy;
pub mod policy_files;
pub mod quoting;
mod request_name;
#[cfg(feature = "kube")]
pub mod resource;
pub mod resource_uri;
pub mod seen;
pub mod select;
pub mod sidecar;
#[cfg(feature = "kube")]
mod status;
pub mod stream;
pub mod text;
mod tool_class;
pub mod tool_name;
pub mod tool_pins;
mod url_port;
pub mod window;
mod yaml_words;

pub use approval::{EntryApproval, TimeSpan};
pub use credential::{Credential, CredentialKind, CredentialSource};
pub use document::{Document, Manifests, Metadata, read_documents, read_manifests};
pub use egress::{Egress, EgressDefault, EgressRule};
pub use entry::{Action, EntryView, Limit, Prompt, Resource, Scope, ServerRequest, Tool, Validation};
pub use error::{FieldError, FileError};
pub use operation::OperationKind;
pub use policy::{
    DefaultActions, LabelSelector, LabelSelectorRequirement, MCPClusterPolicySpec, MCPPolicySpec, Mode, OnStoreFailure,
    SelectorOperator, Server, ServerTls,
};
pub use request_name::RequestName;
pub use sidecar::SIDECAR_CONTAINER;
pub use tool_class::{ToolClass, ToolSeverity};
pub use tool_pins::{
    MCPToolPinsSpec, OnDrift, OnNew, PartDigests, PartSet, PinnedPart, PinnedTool, ServerPins, ToolPart, ToolPins,
};
pub use url_port::port_of;
pub use window::Window;

/// The `apiVersion` of every Toolweir resource.
pub const API_VERSION: &str = "toolweir.dev/v1alpha1";
