//! Why a pod is not injected.

use serde_json::Value;

use super::{Context, INJECT_LABEL, MIRROR, string};

/// A reason not to inject a pod. The metric, the audit annotation, the warning and docs/injection.md use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// The namespace is one that is never touched.
    ProtectedNamespace,
    /// The pod's label says no.
    OptedOut,
    /// Nobody said yes.
    NotOptedIn,
    /// It is the image of a pod that a kubelet runs from a file.
    MirrorPod,
    /// It runs on Windows.
    Windows,
    /// It shares the network of its node.
    HostNetwork,
    /// Everything is there.
    AlreadyInjected,
}

impl Skip {
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

    /// Its name.
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

    /// One sentence for people.
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

    /// Whether whoever makes the pod is told: they asked for a sidecar and get none. The API server asks about pods that opted
    /// in, so also where it knows otherwise than the operator.
    pub fn warns(self) -> bool {
        !matches!(self, Self::OptedOut | Self::AlreadyInjected)
    }
}

/// Why a pod is not to be injected, if so, but for [`Skip::AlreadyInjected`].
pub(super) fn skip(pod: &Value, context: &Context<'_>) -> Option<Skip> {
    if context.config.protects(context.namespace, context.operator_namespace) {
        return Some(Skip::ProtectedNamespace);
    }
    match pod.get("metadata").and_then(|metadata| string(metadata.get("labels")?.get(INJECT_LABEL)?)) {
        Some("disabled") => return Some(Skip::OptedOut),
        Some("enabled") => {}
        _ => {
            // A namespace that is not known yet: the API server, which knows it, sent the pod here.
            let opted_in = |labels: &crate::select::Labels| labels.get(INJECT_LABEL).is_some_and(|value| value == "enabled");
            if !context.namespace_labels.is_none_or(opted_in) {
                return Some(Skip::NotOptedIn);
            }
        }
    }
    let spec = pod.get("spec")?;
    let text = |path: &str| spec.pointer(path).and_then(string);
    if pod.get("metadata").and_then(|metadata| metadata.get("annotations")?.get(MIRROR)).is_some() {
        return Some(Skip::MirrorPod);
    }
    if text("/os/name") == Some("windows") || text("/nodeSelector/kubernetes.io~1os") == Some("windows") {
        return Some(Skip::Windows);
    }
    (spec.get("hostNetwork") == Some(&Value::Bool(true))).then_some(Skip::HostNetwork)
}
