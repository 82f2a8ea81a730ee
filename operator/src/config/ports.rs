//! The ports at which a sidecar listens.

use serde::Deserialize;
use toolweir_crds::sidecar::{ADMIN_PORT, CAPTURE_PORT, METRICS_PORT, PROXY_PORT};

/// The ports at which a sidecar listens. A service mesh has some of the default ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarPorts {
    /// The administration.
    pub admin: u16,
    /// The proxy that agents call.
    pub proxy: u16,
    /// Metrics and probes.
    pub metrics: u16,
    /// Captured connections.
    pub capture: u16,
}

impl Default for SidecarPorts {
    fn default() -> Self {
        Self { admin: ADMIN_PORT, proxy: PROXY_PORT, metrics: METRICS_PORT, capture: CAPTURE_PORT }
    }
}

impl SidecarPorts {
    /// Returns each port with its name.
    pub fn named(self) -> [(&'static str, u16); 4] {
        [("admin", self.admin), ("proxy", self.proxy), ("metrics", self.metrics), ("capture", self.capture)]
    }

    /// Checks that a user without privileges can listen on all of them at once.
    pub(super) fn check(self) -> Result<(), String> {
        let mut seen: Vec<(&str, u16)> = Vec::new();
        for (name, port) in self.named() {
            if port < 1024 {
                return Err(format!("sidecar.ports.{name}: is {port}; from 1024 to 65535 are possible"));
            }
            if let Some((other, _)) = seen.iter().find(|(_, taken)| *taken == port) {
                return Err(format!("sidecar.ports.{name}: is {port}, as sidecar.ports.{other} is; each needs its own"));
            }
            seen.push((name, port));
        }
        Ok(())
    }
}
