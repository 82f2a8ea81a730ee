//! The file that tells agents which servers there are, in the usual form of MCP clients.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::Serialize;

use crate::{
    files::{self, Durable},
    in_force::InForce,
};

/// The file and where agents reach the proxy.
#[derive(Clone, Debug)]
pub struct McpConfig {
    path: PathBuf,
    address: SocketAddr,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    mcp_servers: BTreeMap<&'a str, McpServerEntry>,
}

#[derive(Serialize)]
struct McpServerEntry {
    r#type: &'static str,
    url: String,
}

impl McpConfig {
    /// A file for agents of a proxy that listens at an address.
    pub fn new(path: PathBuf, listen: SocketAddr) -> Self {
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Self { path, address: SocketAddr::new(ip, listen.port()) }
    }

    /// Returns the text of the file for these policies: the servers that can be reached.
    pub fn content(&self, in_force: &InForce) -> String {
        let reachable = in_force.servers().filter(|server| server.url.is_some());
        let entry = |name: &str| McpServerEntry { r#type: "http", url: format!("http://{}/{name}", self.address) };
        let mcp_servers = reachable.map(|server| (server.name.as_str(), entry(&server.name))).collect();
        let mut text = serde_json::to_string_pretty(&Content { mcp_servers }).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Writes the file, unless it has this text already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, in_force: &InForce) -> io::Result<()> {
        let content = self.content(in_force);
        if fs::read(&self.path).is_ok_and(|old| old == content.as_bytes()) {
            return Ok(());
        }
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        files::replace(&self.path, content.as_bytes(), 0o644, Durable::No).map_err(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_reach_a_proxy_that_listens_everywhere_on_loopback() {
        for (listen, reached) in [
            ("127.0.0.1:15001", "127.0.0.1:15001"),
            ("0.0.0.0:15001", "127.0.0.1:15001"),
            ("[::]:15001", "[::1]:15001"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            let file = McpConfig::new(PathBuf::from("mcp.json"), listen.parse().unwrap());
            assert_eq!(file.address, reached.parse().unwrap(), "{listen}");
        }
    }
}
