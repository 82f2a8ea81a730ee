//! Names and ports of an injected sidecar, and the audience of its token. The operator writes them into the pod, the sidecar listens
//! there, and the plugin looks there.

/// The name of the sidecar's container in a pod.
pub const SIDECAR_CONTAINER: &str = "toolweir-sidecar";
/// The audience of the tokens with which sidecars open the policy stream.
pub const AUDIENCE: &str = "toolweir";
/// The port of the administration. It listens on the loopback address only.
pub const ADMIN_PORT: u16 = 15000;
/// The port at which the agent reaches its servers. It listens on the loopback address only.
pub const PROXY_PORT: u16 = 15001;
/// The port of metrics and probes.
pub const METRICS_PORT: u16 = 15020;
/// The port to which connections of a captured pod are redirected. It listens on the loopback addresses only.
pub const CAPTURE_PORT: u16 = 15002;
/// The name of the init container that writes the rules of capture.
pub const CAPTURE_CONTAINER: &str = "toolweir-capture";
