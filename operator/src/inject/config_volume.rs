//! The volume through which the sidecar gives files to the other containers.

/// The volume. The sidecar alone can write to it.
pub const CONFIG_VOLUME: &str = "toolweir-config";
/// The path at which every container mounts it.
pub const CONFIG_PATH: &str = "/etc/toolweir";
/// The file there that says which servers there are, in the usual `mcpServers` form.
pub const MCP_CONFIG: &str = "/etc/toolweir/mcp.json";
