//! The facts besides the pod on which its injection depends.

use super::namespace_info::NamespaceInfo;
use crate::config::OperatorConfig;

/// The facts besides the pod on which its injection depends.
#[derive(Clone, Copy, Debug)]
pub struct InjectionContext<'a> {
    /// The configuration.
    pub config: &'a OperatorConfig,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// What is known of that namespace. None where it is not known: then the pod counts as opted in, since the
    /// API server sends only pods that did.
    pub namespace_info: Option<&'a NamespaceInfo>,
    /// The operator's own namespace.
    pub operator_namespace: &'a str,
    /// The URL at which sidecars reach the operator, such as `https://toolweir-operator.toolweir-system.svc:8444`.
    pub stream_url: &'a str,
    /// The certificates of the operator's CAs, in PEM.
    pub ca: &'a str,
    /// Whether a policy that governs the pod has the TLS of agents to a server opened (`tls: Intercept`). It matters only for a pod
    /// that is captured, and is not asked of one that an earlier round told to do so.
    pub intercepts: bool,
    /// A random number, from which the ids of a captured pod's sidecar are chosen.
    pub seed: u64,
    /// The operator's version.
    pub version: &'a str,
}
