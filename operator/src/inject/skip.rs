//! The reasons not to inject a pod.

use serde_json::Value;

use super::{
    context::InjectionContext,
    opt_in::{INJECT_LABEL, OptIn, namespace_opted_in},
};

/// The annotation of a pod that a kubelet runs from a file.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The properties of a pod for which it can have no sidecar.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodKind {
    /// It has the annotation [`MIRROR`].
    pub mirror: bool,
    /// It runs on Windows.
    pub windows: bool,
    /// It shares the network of its node.
    pub host_network: bool,
}

/// A reason not to inject a pod. The metric, the audit annotation, the warning and docs/injection.md use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    /// The namespace is one that is never touched.
    ProtectedNamespace,
    /// The pod's label is `disabled`.
    OptedOut,
    /// Neither the namespace nor the pod opted in.
    NotOptedIn,
    /// It is the mirror of a static pod.
    MirrorPod,
    /// It runs on Windows.
    Windows,
    /// It shares the network of its node.
    HostNetwork,
    /// The sidecar is there as it should be.
    AlreadyInjected,
}

impl SkipReason {
    /// Every reason, in the order in which they are looked for.
    pub const ALL: [Self; 7] = [
        Self::ProtectedNamespace,
        Self::OptedOut,
        Self::NotOptedIn,
        Self::MirrorPod,
        Self::Windows,
        Self::HostNetwork,
        Self::AlreadyInjected,
    ];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProtectedNamespace => "ProtectedNamespace",
            Self::OptedOut => "OptedOut",
            Self::NotOptedIn => "NotOptedIn",
            Self::MirrorPod => "MirrorPod",
            Self::Windows => "Windows",
            Self::HostNetwork => "HostNetwork",
            Self::AlreadyInjected => "AlreadyInjected",
        }
    }

    /// Returns one sentence for people.
    pub fn explain(self) -> &'static str {
        match self {
            Self::ProtectedNamespace => "Pods of this namespace are never touched: the cluster or the operator runs there.",
            Self::OptedOut => "The pod has the label toolweir.dev/inject: disabled.",
            Self::NotOptedIn => "Neither the namespace nor the pod has the label toolweir.dev/inject: enabled.",
            Self::MirrorPod => "A kubelet runs this pod from a file, and the API server only shows it.",
            Self::Windows => "The pod runs on Windows, and the sidecar on Linux.",
            Self::HostNetwork => "The pod shares its node's network, where a sidecar would serve the whole node.",
            Self::AlreadyInjected => "All that belongs to the sidecar is there and as it should be.",
        }
    }

    /// Returns whether the API server passes a warning on to whoever creates the pod: they asked for a sidecar and get none. The
    /// API server sends only pods that opted in, so that holds also where the operator knows otherwise.
    pub fn warns(self) -> bool {
        !matches!(self, Self::OptedOut | Self::AlreadyInjected)
    }
}

impl PodKind {
    /// Returns why such a pod can have no sidecar, if so.
    pub fn skip_reason(self) -> Option<SkipReason> {
        if self.mirror {
            Some(SkipReason::MirrorPod)
        } else if self.windows {
            Some(SkipReason::Windows)
        } else {
            self.host_network.then_some(SkipReason::HostNetwork)
        }
    }
}

/// Returns why a pod is not injected, if so, except for [`SkipReason::AlreadyInjected`].
pub(super) fn skip(pod: &Value, context: &InjectionContext<'_>) -> Option<SkipReason> {
    if context.config.protects(context.namespace, context.operator_namespace) {
        return Some(SkipReason::ProtectedNamespace);
    }
    let label = pod.get("metadata").and_then(|metadata| metadata.get("labels")?.get(INJECT_LABEL)?.as_str());
    match label.and_then(OptIn::from_value) {
        Some(OptIn::Disabled) => return Some(SkipReason::OptedOut),
        Some(OptIn::Enabled) => {}
        None => {
            // A namespace that is not known yet: the API server, which knows it, sent the pod here.
            if !context.namespace_info.is_none_or(|info| namespace_opted_in(&info.labels)) {
                return Some(SkipReason::NotOptedIn);
            }
        }
    }
    let spec = pod.get("spec")?;
    let is_windows = |path: &str| spec.pointer(path).and_then(Value::as_str) == Some("windows");
    let kind = PodKind {
        mirror: pod.get("metadata").and_then(|metadata| metadata.get("annotations")?.get(MIRROR)).is_some(),
        windows: is_windows("/os/name") || is_windows("/nodeSelector/kubernetes.io~1os"),
        host_network: spec.get("hostNetwork") == Some(&Value::Bool(true)),
    };
    kind.skip_reason()
}
