//! The arguments of `toolweir-sidecar capture`.

use std::path::PathBuf;

use toolweir_crds::sidecar::{ADMIN_PORT, CAPTURE_PORT, METRICS_PORT, PROXY_PORT};

/// The arguments of `toolweir-sidecar capture`.
#[derive(Debug, clap::Args)]
pub struct CaptureRulesArgs {
    /// User of the sidecar. No other container of the pod may run as it.
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    pub uid: u32,
    /// Group of the sidecar. No other container of the pod may run as it.
    #[arg(long, value_name = "GID", value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    pub gid: u32,
    /// Port to which connections are redirected.
    #[arg(long, default_value_t = CAPTURE_PORT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub capture_port: u16,
    /// The sidecar's port for agents.
    #[arg(long, default_value_t = PROXY_PORT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub proxy_port: u16,
    /// The sidecar's port of the administration.
    #[arg(long, default_value_t = ADMIN_PORT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub admin_port: u16,
    /// The sidecar's port of metrics and probes.
    #[arg(long, default_value_t = METRICS_PORT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub metrics_port: u16,
    /// File that names the pod's resolvers. DNS stays open to them alone.
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,
}

impl CaptureRulesArgs {
    /// The ports of the sidecar, in ascending order.
    pub(super) fn ports(&self) -> [u16; 4] {
        let mut ports = [self.admin_port, self.proxy_port, self.capture_port, self.metrics_port];
        ports.sort_unstable();
        ports
    }

    /// Whether the arguments agree with each other.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let ports = self.ports();
        if let Some((port, _)) = ports.iter().zip(ports.iter().skip(1)).find(|(port, next)| port == next) {
            anyhow::bail!(
                "port {port} is given twice: --admin-port, --proxy-port, --capture-port and --metrics-port must differ"
            );
        }
        Ok(())
    }
}
