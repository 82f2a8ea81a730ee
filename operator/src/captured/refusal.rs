//! The reasons to refuse a pod whose traffic is to be captured.

/// A reason to refuse a pod whose traffic is to be captured. The metric, the message and docs/injection.md use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaptureRefusal {
    /// Nothing is captured in this cluster.
    MethodNone,
    /// The pod did not opt in to injection.
    NotInjected,
    /// It runs on Windows.
    Windows,
    /// It shares the network of its node.
    HostNetwork,
    /// A part that the operator added is not there, or not as it was.
    CaptureMissing,
    /// A container starts before the rules and the sidecar are there.
    InitContainerBefore,
    /// It shares the processes of its node.
    HostPid,
    /// It shares the memory of its node's processes.
    HostIpc,
    /// Its containers see each other's processes.
    ShareProcessNamespace,
    /// It has files of its node.
    HostPath,
    /// It changes the kernel's settings.
    Sysctls,
    /// A container has every right on its node.
    Privileged,
    /// A container may get more rights than it starts with.
    PrivilegeEscalation,
    /// A container has capabilities.
    CapabilitiesNotDropped,
    /// A container may use every system call.
    Seccomp,
    /// A container sees all of `/proc`.
    ProcMount,
    /// A container has the sidecar's user or group.
    SidecarUser,
    /// A container has files that are the sidecar's alone.
    SidecarVolume,
}

impl CaptureRefusal {
    /// Every reason, in the order in which they are looked for.
    pub const ALL: [Self; 18] = [
        Self::MethodNone,
        Self::NotInjected,
        Self::Windows,
        Self::HostNetwork,
        Self::CaptureMissing,
        Self::InitContainerBefore,
        Self::HostPid,
        Self::HostIpc,
        Self::ShareProcessNamespace,
        Self::HostPath,
        Self::Sysctls,
        Self::Privileged,
        Self::PrivilegeEscalation,
        Self::CapabilitiesNotDropped,
        Self::Seccomp,
        Self::ProcMount,
        Self::SidecarUser,
        Self::SidecarVolume,
    ];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MethodNone => "MethodNone",
            Self::NotInjected => "NotInjected",
            Self::Windows => "Windows",
            Self::HostNetwork => "HostNetwork",
            Self::CaptureMissing => "CaptureMissing",
            Self::InitContainerBefore => "InitContainerBefore",
            Self::HostPid => "HostPid",
            Self::HostIpc => "HostIpc",
            Self::ShareProcessNamespace => "ShareProcessNamespace",
            Self::HostPath => "HostPath",
            Self::Sysctls => "Sysctls",
            Self::Privileged => "Privileged",
            Self::PrivilegeEscalation => "PrivilegeEscalation",
            Self::CapabilitiesNotDropped => "CapabilitiesNotDropped",
            Self::Seccomp => "Seccomp",
            Self::ProcMount => "ProcMount",
            Self::SidecarUser => "SidecarUser",
            Self::SidecarVolume => "SidecarVolume",
        }
    }

    /// Returns one sentence for people: what the pod could do.
    pub fn explain(self) -> &'static str {
        match self {
            Self::MethodNone => "The chart's capture.method is None, so nothing is captured.",
            Self::NotInjected => "Without a sidecar there is nothing to which traffic could be redirected.",
            Self::Windows => "The rules are those of Linux.",
            Self::HostNetwork => "The pod shares its node's network, whose rules are not its own.",
            Self::CaptureMissing => "What the operator added is missing or changed, so nothing may be captured.",
            Self::InitContainerBefore => {
                "What starts before the rules and the sidecar can send what it likes, or take the sidecar's ports."
            }
            Self::HostPid => "A process of the node can be made to send what the pod may not.",
            Self::HostIpc => "Memory that is shared with the node's processes is a way out.",
            Self::ShareProcessNamespace => "A container can signal the sidecar and look into it.",
            Self::HostPath => {
                "Among the node's files are the sockets of its container runtime, which starts whatever it is told to."
            }
            Self::Sysctls => "Settings of the kernel can change what the rules see.",
            Self::Privileged => "A privileged container can delete the rules.",
            Self::PrivilegeEscalation => "A set-uid program can take the sidecar's user or capabilities.",
            Self::CapabilitiesNotDropped => {
                "With capabilities a container can delete the rules, send raw packets or take the sidecar's user."
            }
            Self::Seccomp => "Without a profile, a container can create namespaces, and with them capabilities.",
            Self::ProcMount => "Through an unmasked /proc, root can change settings of the kernel.",
            Self::SidecarUser => {
                "The rules know the sidecar by its user and group. In a pod that runs, both can be read, and an image can be made with them."
            }
            Self::SidecarVolume => "Who writes the sidecar's files changes the policies that it enforces.",
        }
    }
}
