//! Which bounds a policy keeps. The same numbers stand in the JSON schema and are checked by [`check`], so that a
//! local file is held to what `kubectl apply` is held to.

use std::collections::HashMap;

use http::Uri;

use crate::{
    document::FieldError,
    policy::{LabelSelector, Limit, MCPPolicySpec, Scope, SelectorOperator, Server, Tool},
};

/// Servers of one policy.
pub const SERVERS: usize = 64;
/// Entries of one server.
pub const TOOLS: usize = 1024;
/// Limits of one entry.
pub const LIMITS: usize = 16;
/// Validations of one entry.
pub const VALIDATIONS: usize = 16;
/// Requirements of one selector.
pub const SELECTOR_REQUIREMENTS: usize = 16;
/// Bytes of a server's name.
pub const SERVER_NAME: usize = 63;
/// Bytes of a tool's name. MCP 2025-11-25 (Tools, "Tool Names") wants 128; gateways that join names make longer ones. A call of a
/// longer one is denied, so that names are compared in bounded time.
pub const TOOL_NAME: usize = 512;
/// Bytes of a counter's name.
pub const COUNTER_NAME: usize = 128;
/// Bytes of a URL.
pub const URL: usize = 2048;
/// Bytes of a reason or message.
pub const TEXT: usize = 512;
/// Bytes of a CEL expression.
pub const EXPRESSION: usize = 2048;
/// The largest `max` of a limit.
pub const MAX: i64 = 1_000_000_000_000;
/// The largest `max` of a limit that is counted across pods: millionths of it are exact numbers in the store.
pub const SHARED_MAX: i64 = 9_000_000_000;
/// The largest `maxConcurrent`.
pub const CONCURRENT: i64 = 1_000_000;

/// Checks a spec against the bounds; `cluster` when it is that of an `MCPClusterPolicy`. Paths start at `spec`.
pub fn check(spec: &MCPPolicySpec, cluster: bool) -> Vec<FieldError> {
    let mut found = Found(Vec::new());
    found.selector("spec.podSelector", &spec.pod_selector);
    found.count("spec.servers", spec.servers.len(), 1, SERVERS);
    let mut names = HashMap::new();
    for (index, server) in spec.servers.iter().take(SERVERS).enumerate() {
        let path = format!("spec.servers[{index}]");
        if let Some(first) = names.insert(server.name.as_str(), index) {
            found.at(
                format!("{path}.name"),
                format!("`{}` is also the name of spec.servers[{first}]; merge the two", server.name.escape_debug()),
            );
        }
        found.server(&path, server, cluster);
    }
    found.0
}

struct Found(Vec<FieldError>);

impl Found {
    fn at(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { path: path.into(), message: message.into() });
    }

    fn count(&mut self, path: &str, len: usize, least: usize, most: usize) {
        if !(least..=most).contains(&len) {
            self.at(path, format!("has {len} items; from {least} to {most} are possible"));
        }
    }

    fn text(&mut self, path: String, text: &str, most: usize) {
        if text.is_empty() || text.len() > most {
            self.at(path, format!("has {} bytes; from 1 to {most} are possible", text.len()));
        } else if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
            self.at(path, "contains a control character; remove it");
        }
    }

    fn optional_text(&mut self, path: String, text: Option<&str>, most: usize) {
        if let Some(text) = text {
            self.text(path, text, most);
        }
    }

    pub(crate) fn selector(&mut self, path: &str, selector: &LabelSelector) {
        self.count(&format!("{path}.matchExpressions"), selector.match_expressions.len(), 0, SELECTOR_REQUIREMENTS);
        for (index, requirement) in selector.match_expressions.iter().enumerate() {
            let wants_values = matches!(requirement.operator, SelectorOperator::In | SelectorOperator::NotIn);
            if wants_values == requirement.values.is_empty() {
                let advice = if wants_values { "at least one value" } else { "no values" };
                self.at(
                    format!("{path}.matchExpressions[{index}].values"),
                    format!("operator {:?} takes {advice}", requirement.operator),
                );
            }
        }
    }

    fn server(&mut self, path: &str, server: &Server, cluster: bool) {
        if server.name == "*" {
            if !cluster {
                self.at(format!("{path}.name"), "`*` is for an MCPClusterPolicy; name the server");
            }
            if server.url.is_some() {
                self.at(format!("{path}.url"), "the server `*` is every server and has no url; remove it");
            }
        } else if !is_dns_label(&server.name) {
            self.at(
                format!("{path}.name"),
                format!(
                    "`{}` is no server name; write 1 to {SERVER_NAME} lower case letters, digits and `-`, with a letter or digit first and last",
                    server.name.escape_debug()
                ),
            );
        }
        if let Some(url) = &server.url
            && let Err(problem) = server_url(url)
        {
            self.at(format!("{path}.url"), problem);
        }
        self.count(&format!("{path}.tools"), server.tools.len(), 0, TOOLS);
        let mut names = HashMap::new();
        for (index, tool) in server.tools.iter().take(TOOLS).enumerate() {
            let path = format!("{path}.tools[{index}]");
            if let Some(first) = names.insert(tool.name.as_str(), index) {
                let name = tool.name.escape_debug();
                self.at(format!("{path}.name"), format!("`{name}` is also the name of tools[{first}]; merge the two"));
            }
            self.tool(&path, tool);
        }
    }

    fn tool(&mut self, path: &str, tool: &Tool) {
        if !is_tool_name(&tool.name) {
            self.at(
                format!("{path}.name"),
                format!(
                    "`{}` is a name that no tool can have; write 1 to {TOOL_NAME} ASCII letters, digits and `_ - . / :`, or `*` for any characters",
                    tool.name.escape_debug()
                ),
            );
        }
        self.optional_text(format!("{path}.reason"), tool.reason.as_deref(), TEXT);
        self.count(&format!("{path}.limits"), tool.limits.len(), 0, LIMITS);
        for (index, limit) in tool.limits.iter().take(LIMITS).enumerate() {
            self.limit(&format!("{path}.limits[{index}]"), limit);
        }
        self.count(&format!("{path}.validations"), tool.validations.len(), 0, VALIDATIONS);
        for (index, validation) in tool.validations.iter().take(VALIDATIONS).enumerate() {
            let path = format!("{path}.validations[{index}]");
            self.text(format!("{path}.expression"), &validation.expression, EXPRESSION);
            self.optional_text(format!("{path}.message"), validation.message.as_deref(), TEXT);
        }
        if let Some(most) = tool.max_concurrent
            && !(1..=CONCURRENT).contains(&most)
        {
            self.at(
                format!("{path}.maxConcurrent"),
                format!("is {most}; write 1 to {CONCURRENT}, or `action: Deny` to forbid the tool"),
            );
        }
        if tool.max_concurrent_scope == Scope::Session {
            self.at(
                format!("{path}.maxConcurrentScope"),
                "is Session; write Pod, Workload, ServiceAccount, Namespace or Policy".to_owned(),
            );
        } else if tool.max_concurrent.is_none() && !tool.max_concurrent_scope.is_default() {
            self.at(
                format!("{path}.maxConcurrentScope"),
                "stands without `maxConcurrent`; write how many, or remove it".to_owned(),
            );
        }
    }

    fn limit(&mut self, path: &str, limit: &Limit) {
        if !(1..=MAX).contains(&limit.max) {
            self.at(
                format!("{path}.max"),
                format!("is {}; write 1 to {MAX}, or `action: Deny` on the entry to forbid the tool", limit.max),
            );
        }
        if limit.scope.is_shared() && (SHARED_MAX + 1..=MAX).contains(&limit.max) {
            self.at(
                format!("{path}.max"),
                format!("is {}; a limit that is counted across pods has at most {SHARED_MAX}", limit.max),
            );
        }
        self.optional_text(format!("{path}.key"), limit.key.as_deref(), EXPRESSION);
        self.optional_text(format!("{path}.cost"), limit.cost.as_deref(), EXPRESSION);
        self.optional_text(format!("{path}.counter"), limit.counter.as_deref(), COUNTER_NAME);
    }
}

/// Checks a selector; paths start at `path`.
pub fn check_selector(path: &str, selector: &LabelSelector) -> Vec<FieldError> {
    let mut found = Found(Vec::new());
    found.selector(path, selector);
    found.0
}

/// A label of RFC 1123: what a server may be called, since its name is a path segment and a metric label.
fn is_dns_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=SERVER_NAME).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether a tool can have a name that this, taken as a glob, matches. MCP 2025-11-25 wants letters, digits, `_`, `-`
/// and `.`; `/` and `:` are what gateways join names with.
fn is_tool_name(name: &str) -> bool {
    (1..=TOOL_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:*".contains(&b))
}

/// The URL of a server as it is connected to: the one reading for files, `kubectl apply` and the proxy.
///
/// # Errors
/// What is wrong with it and what to write instead, in one line; it does not repeat the field's path.
pub fn server_url(url: &str) -> Result<Uri, String> {
    let shown = url.chars().take(80).flat_map(char::escape_debug).collect::<String>();
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return Err(format!("`{shown}` is no URL of an MCP server; write http://HOST[:PORT]/PATH or https://..."));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if url.len() > URL {
        return Err(format!("has {} bytes; at most {URL} are possible", url.len()));
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err(format!("`{shown}` names no host"));
    }
    if authority.contains('@') {
        return Err("holds a password; the agent's Authorization header is passed on instead".to_owned());
    }
    if url.contains('#') {
        return Err("has a fragment (#...), which no server sees; remove it".to_owned());
    }
    if url.bytes().any(|b| b <= b' ' || b >= 0x7f || b"\"<>\\^`{|}".contains(&b)) {
        return Err(format!("`{shown}` has a character that a URL cannot hold; percent-encode it"));
    }
    let uri: Uri = url.parse().map_err(|error| format!("`{shown}` is no URL: {error}"))?;
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return Err(format!("`{shown}` names no host"));
    };
    // The parser takes any text for a port, and whoever connects takes what is no number for none.
    let (_, port) = authority.as_str().rsplit_once(authority.host()).unwrap_or_default();
    if port.len() > 1 && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(format!("`{shown}` has a port that cannot be connected to; write a number from 1 to 65535, or none"));
    }
    Ok(uri)
}
