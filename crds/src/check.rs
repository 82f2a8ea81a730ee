//! Checks a policy against its bounds.

use std::collections::HashMap;

use http::Uri;

use crate::{
    approval::EntryApproval,
    bounds::{
        CIDRS, CONCURRENT, COUNTER_NAME, DOMAIN_NAMES, EGRESS_RULES, EXPRESSION, HEADER_NAME, LIMITS, MAX, OAUTH_VALUE,
        OBJECT_NAME, PENDING_APPROVALS, PINNED_TEXT, PINNED_TOOLS, PORTS, PROMPTS, REQUESTS, RESOURCES, RESULT_BYTES, SCOPES,
        SELECTOR_REQUIREMENTS, SERVER_NAME, SERVERS, SHARED_MAX, SHOWN_EXPRESSION, SHOWN_VALUES, TEXT, TOOL_NAME, TOOLS, URL,
        VALIDATIONS,
    },
    credential::{Credential, CredentialKind, CredentialSource, audience_problem, secret_key_problem},
    egress::{Egress, EgressRule, domain_name_problem, read_cidr},
    entry::{Action, EntryView, Limit, Scope},
    error::FieldError,
    operation::OperationKind,
    policy::{LabelSelector, MCPPolicySpec, SelectorOperator, Server, ServerTls},
    resource_uri,
    text::escaped,
    tool_class::ToolClass,
    tool_name,
    tool_pins::{ServerPins, ToolPins},
    url_port::port_of,
};

/// Checks a spec against the bounds and returns every field that is wrong. `cluster`: the spec is that of an `MCPClusterPolicy`.
/// Paths start at `spec`.
pub fn check(spec: &MCPPolicySpec, cluster: bool) -> Vec<FieldError> {
    let mut found = FieldErrors(Vec::new());
    found.selector("spec.podSelector", &spec.pod_selector);
    let least = usize::from(spec.egress.is_none());
    if spec.servers.len() < least {
        found.report("spec.servers", format!("has no items; write from 1 to {SERVERS} servers, or `egress`"));
    } else {
        found.count("spec.servers", spec.servers.len(), least, SERVERS);
    }
    let mut names = HashMap::new();
    for (index, server) in spec.servers.iter().take(SERVERS).enumerate() {
        let path = format!("spec.servers[{index}]");
        if let Some(first) = names.insert(server.name.as_str(), index) {
            found.report(
                format!("{path}.name"),
                format!("`{}` is also the name of spec.servers[{first}]; merge the two", server.name.escape_debug()),
            );
        }
        found.server(&path, server, cluster);
    }
    if let Some(egress) = &spec.egress {
        found.egress(egress);
    }
    found.0
}

struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    fn report(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { path: path.into(), message: message.into() });
    }

    fn count(&mut self, path: &str, len: usize, least: usize, most: usize) {
        if !(least..=most).contains(&len) {
            self.report(path, format!("has {len} items; from {least} to {most} are possible"));
        }
    }

    fn text(&mut self, path: String, text: &str, most: usize) {
        if text.is_empty() || text.len() > most {
            self.report(path, format!("has {} bytes; from 1 to {most} are possible", text.len()));
        } else if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
            self.report(path, "contains a control character; remove it");
        }
    }

    fn expression(&mut self, path: String, text: &str, most: usize) {
        if text.is_empty() {
            // To YAML, `!` begins a tag, and nothing is left behind it.
            self.report(path, format!("has 0 bytes; from 1 to {most} are possible, and one that begins with `!` needs quotes"));
        } else {
            self.text(path, text, most);
        }
    }

    fn optional_expression(&mut self, path: String, text: Option<&str>) {
        if let Some(text) = text {
            self.expression(path, text, EXPRESSION);
        }
    }

    fn optional_text(&mut self, path: String, text: Option<&str>, most: usize) {
        if let Some(text) = text {
            self.text(path, text, most);
        }
    }

    fn selector(&mut self, path: &str, selector: &LabelSelector) {
        self.count(&format!("{path}.matchExpressions"), selector.match_expressions.len(), 0, SELECTOR_REQUIREMENTS);
        for (index, requirement) in selector.match_expressions.iter().enumerate() {
            let wants_values = matches!(requirement.operator, SelectorOperator::In | SelectorOperator::NotIn);
            if wants_values == requirement.values.is_empty() {
                let advice = if wants_values { "at least one value" } else { "no values" };
                self.report(
                    format!("{path}.matchExpressions[{index}].values"),
                    format!("operator {:?} takes {advice}", requirement.operator),
                );
            }
        }
    }

    fn server(&mut self, path: &str, server: &Server, cluster: bool) {
        if server.name == "*" {
            if !cluster {
                self.report(format!("{path}.name"), "`*` is for an MCPClusterPolicy; name the server");
            }
            if server.url.is_some() {
                self.report(format!("{path}.url"), "the server `*` is every server and has no url; remove it");
            }
        } else if !is_dns_label(&server.name) {
            self.report(
                format!("{path}.name"),
                format!(
                    "`{}` is not a server name; write 1 to {SERVER_NAME} lower case letters, digits and `-`, with a letter or digit first and last",
                    server.name.escape_debug()
                ),
            );
        }
        if let Some(url) = &server.url
            && let Err(problem) = server_url(url)
        {
            self.report(format!("{path}.url"), problem);
        }
        if let Some(credential) = &server.credential {
            self.credential(&format!("{path}.credential"), credential, server);
        }
        if let Some(tls) = server.tls {
            self.tls(&format!("{path}.tls"), tls, server);
        }
        if let Some(pins) = &server.pins {
            self.pins(&format!("{path}.pins"), pins, server, cluster);
        }
        for (kind, most) in [
            (OperationKind::Tool, TOOLS),
            (OperationKind::Prompt, PROMPTS),
            (OperationKind::Resource, RESOURCES),
            (OperationKind::Request, REQUESTS),
        ] {
            self.entries(path, kind, &server.entries(kind), most);
        }
    }

    /// Checks the entries of a kind, of which there may be `most`.
    fn entries(&mut self, path: &str, kind: OperationKind, entries: &[EntryView<'_>], most: usize) {
        let list = kind.field();
        let path = format!("{path}.{list}");
        self.count(&path, entries.len(), 0, most);
        let mut names = HashMap::new();
        for (index, entry) in entries.iter().take(most).enumerate() {
            let path = format!("{path}[{index}]");
            if let Some(first) = names.insert((entry.name, entry.class), index) {
                let (field, what) = match entry.class {
                    Some(class) => ("class", format!("`{}` is also the class", class.as_str())),
                    None => (name_field(kind), format!("`{}` is also the {}", tool_name::shown(entry.name), name_field(kind))),
                };
                self.report(format!("{path}.{field}"), format!("{what} of {list}[{first}]; merge the two"));
            }
            match kind {
                OperationKind::Tool => self.tool_name(&path, entry),
                OperationKind::Resource => {
                    if let Some(problem) = resource_uri::pattern_problem(entry.name) {
                        self.report(format!("{path}.uri"), problem);
                    }
                }
                _ => {
                    if let Some(problem) = tool_name::problem(entry.name) {
                        self.report(format!("{path}.name"), problem);
                    }
                }
            }
            self.entry(&path, entry);
        }
    }

    /// Reports a field that stands without `url`. `why` says what it has to do with the url.
    fn needs_url(&mut self, path: &str, server: &Server, why: &str) {
        if server.url.is_none() && server.name == "*" {
            self.report(path, "stands at the server `*`, which has no url; write it at a server that you name");
        } else if server.url.is_none() {
            self.report(path, format!("stands without `url`; {why} that the same policy gives: write it beside it"));
        }
    }

    fn tls(&mut self, path: &str, tls: ServerTls, server: &Server) {
        self.needs_url(path, server, "it is said of a url");
        // What is wrong with the url itself is reported there.
        let url = server.url.as_deref().and_then(|url| server_url(url).ok());
        if tls == ServerTls::Intercept
            && let Some(problem) = url.and_then(|url| intercept_problem(&url, &server.name))
        {
            self.report(path, problem);
        }
    }

    fn credential(&mut self, path: &str, credential: &Credential, server: &Server) {
        self.needs_url(path, server, "a credential goes only to a url");
        let url = server.url.as_deref();
        let Some(source) = credential.source() else {
            let kinds = CredentialKind::ALL.map(CredentialKind::as_str).join(", ");
            self.report(path, format!("is not of exactly one kind; write one of {kinds}"));
            return;
        };
        for (field, key) in credential.keys() {
            if let Some(problem) = secret_key_problem(key) {
                self.report(format!("{path}.{field}"), problem);
            }
        }
        if let Some((field, audience)) = credential.audience()
            && let Some(problem) = audience_problem(audience)
        {
            self.report(format!("{path}.{field}"), problem);
        }
        let path = format!("{path}.{}", source.kind());
        match source {
            CredentialSource::Header(of) => {
                if let Some(problem) = header_name_problem(&of.name) {
                    self.report(format!("{path}.name"), problem);
                }
            }
            CredentialSource::ClientCertificate(_) if url.is_some_and(|url| !url.starts_with("https://")) => {
                self.report(path, "is shown with TLS alone; write an https:// url, or another kind");
            }
            CredentialSource::OAuth2ClientCredentials(of) => {
                self.token_request(&path, &of.token_url, &of.scopes);
                if let Some(resource) = &of.resource
                    && let Err(problem) = http_url(resource, "the URL of a resource; write https://HOST/PATH")
                {
                    self.report(format!("{path}.resource"), problem);
                }
            }
            CredentialSource::TokenExchange(of) => {
                self.token_request(&path, &of.token_url, &of.scopes);
                if let Some(audience) = &of.audience {
                    self.text(format!("{path}.audience"), audience, OAUTH_VALUE);
                }
                if of.client_id_key.is_some() != of.client_secret_key.is_some() {
                    self.report(path, "has one of clientIdKey and clientSecretKey; write both or neither");
                }
            }
            _ => {}
        }
    }

    fn token_request(&mut self, path: &str, token_url: &str, scopes: &[String]) {
        if let Err(problem) = http_url(token_url, "the URL of a token endpoint; write https://HOST/PATH") {
            self.report(format!("{path}.tokenUrl"), problem);
        }
        self.count(&format!("{path}.scopes"), scopes.len(), 0, SCOPES);
        for (index, scope) in scopes.iter().take(SCOPES).enumerate() {
            // RFC 6749, section 3.3: a scope-token.
            let fits = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || scope.len() > OAUTH_VALUE || !scope.bytes().all(fits) {
                let shown = escaped(scope, 80);
                self.report(
                    format!("{path}.scopes[{index}]"),
                    format!("`{shown}` is not a scope; write 1 to {OAUTH_VALUE} ASCII characters without blanks, `\"` and `\\`, each scope an item of its own"),
                );
            }
        }
    }

    fn egress(&mut self, egress: &Egress) {
        self.count("spec.egress.allow", egress.allow.len(), 0, EGRESS_RULES);
        for (index, rule) in egress.allow.iter().take(EGRESS_RULES).enumerate() {
            self.egress_rule(&format!("spec.egress.allow[{index}]"), rule);
        }
    }

    fn egress_rule(&mut self, path: &str, rule: &EgressRule) {
        if rule.domain_names.is_empty() && rule.cidrs.is_empty() {
            self.report(path, "names no destination; write `domainNames`, `cidrs` or both");
        }
        self.count(&format!("{path}.domainNames"), rule.domain_names.len(), 0, DOMAIN_NAMES);
        for (index, name) in rule.domain_names.iter().take(DOMAIN_NAMES).enumerate() {
            if let Some(problem) = domain_name_problem(name) {
                self.report(format!("{path}.domainNames[{index}]"), problem);
            }
        }
        self.count(&format!("{path}.cidrs"), rule.cidrs.len(), 0, CIDRS);
        for (index, range) in rule.cidrs.iter().take(CIDRS).enumerate() {
            if let Err(problem) = read_cidr(range) {
                self.report(format!("{path}.cidrs[{index}]"), problem);
            }
        }
        self.count(&format!("{path}.ports"), rule.ports.len(), 1, PORTS);
        for (index, _) in rule.ports.iter().take(PORTS).enumerate().filter(|(_, port)| **port == 0) {
            self.report(format!("{path}.ports[{index}]"), "is 0; write a port from 1 to 65535");
        }
        self.distinct(&format!("{path}.domainNames"), &rule.domain_names, DOMAIN_NAMES);
        self.distinct(&format!("{path}.cidrs"), &rule.cidrs, CIDRS);
        self.distinct(&format!("{path}.ports"), &rule.ports, PORTS);
    }

    /// Reports items that stand twice among the first `most`.
    fn distinct<T: Eq + std::hash::Hash>(&mut self, path: &str, items: &[T], most: usize) {
        let mut seen = HashMap::new();
        for (index, item) in items.iter().take(most).enumerate() {
            if let Some(first) = seen.insert(item, index) {
                self.report(format!("{path}[{index}]"), format!("is the same as [{first}]; remove one"));
            }
        }
    }

    fn pins(&mut self, path: &str, pins: &ServerPins, server: &Server, cluster: bool) {
        if server.name == "*" {
            self.report(path, "are of one server, and `*` is every server; write them at a server that you name");
        }
        self.0.extend(object_name_problem(&format!("{path}.name"), &pins.name));
        let at = format!("{path}.namespace");
        match &pins.namespace {
            // That is said already.
            None if server.name == "*" => {}
            None if cluster => self.report(at, "is left out, and an MCPClusterPolicy has none; write that of the pins"),
            Some(_) if !cluster => self.report(at, "stands in an MCPPolicy, whose pins are in its own namespace; remove it"),
            Some(namespace) => self.0.extend(object_name_problem(&at, namespace)),
            None => {}
        }
    }

    fn tool_name(&mut self, path: &str, tool: &EntryView<'_>) {
        match tool.class {
            Some(_) if !tool.name.is_empty() => {
                self.report(path, "has a name and a class; write one of the two, and the other in an entry of its own");
            }
            Some(ToolClass::Unknown) if tool.action != Some(Action::Deny) => {
                self.report(format!("{path}.class"), "is Unknown, which allows nothing; write `action: Deny`, or name the tools");
            }
            Some(_) => {}
            None if tool.name.is_empty() => {
                self.report(format!("{path}.name"), "is left out or empty; write a tool's name, a glob, or `class` in its place");
            }
            None => {
                if let Some(problem) = tool_name::problem(tool.name) {
                    self.report(format!("{path}.name"), problem);
                }
            }
        }
    }

    /// Checks what entries of all kinds have.
    fn entry(&mut self, path: &str, entry: &EntryView<'_>) {
        self.optional_text(format!("{path}.reason"), entry.reason, TEXT);
        self.count(&format!("{path}.limits"), entry.limits.len(), 0, LIMITS);
        for (index, limit) in entry.limits.iter().take(LIMITS).enumerate() {
            self.limit(&format!("{path}.limits[{index}]"), limit);
        }
        self.count(&format!("{path}.validations"), entry.validations.len(), 0, VALIDATIONS);
        for (index, validation) in entry.validations.iter().take(VALIDATIONS).enumerate() {
            let path = format!("{path}.validations[{index}]");
            self.expression(format!("{path}.expression"), &validation.expression, EXPRESSION);
            self.optional_text(format!("{path}.message"), validation.message.as_deref(), TEXT);
        }
        if let Some(approval) = entry.approval {
            self.approval(&format!("{path}.approval"), approval, entry.action);
        }
        if let Some(most) = entry.max_concurrent
            && !(1..=CONCURRENT).contains(&most)
        {
            self.report(
                format!("{path}.maxConcurrent"),
                format!("is {most}; write 1 to {CONCURRENT}, or `action: Deny` to forbid it"),
            );
        }
        if let Some(most) = entry.max_result_bytes
            && !(1..=RESULT_BYTES).contains(&most)
        {
            self.report(format!("{path}.maxResultBytes"), format!("is {most}; write 1 to {RESULT_BYTES}"));
        }
        if entry.max_concurrent_scope == Scope::Session {
            self.report(
                format!("{path}.maxConcurrentScope"),
                "is Session; write Pod, Workload, ServiceAccount, Namespace or Policy".to_owned(),
            );
        } else if entry.max_concurrent.is_none() && !entry.max_concurrent_scope.is_default() {
            self.report(
                format!("{path}.maxConcurrentScope"),
                "stands without `maxConcurrent`; write how many, or remove it".to_owned(),
            );
        }
    }

    fn approval(&mut self, path: &str, approval: &EntryApproval, action: Option<Action>) {
        if action == Some(Action::Deny) {
            self.report(path, "stands beside `action: Deny`, which nobody is asked about; remove one of the two");
        }
        self.optional_expression(format!("{path}.when"), approval.when.as_deref());
        self.optional_text(format!("{path}.message"), approval.message.as_deref(), TEXT);
        self.count(&format!("{path}.show"), approval.show.len(), 0, SHOWN_VALUES);
        for (index, expression) in approval.show.iter().take(SHOWN_VALUES).enumerate() {
            self.expression(format!("{path}.show[{index}]"), expression, SHOWN_EXPRESSION);
        }
        if approval.hold.span() > EntryApproval::LONGEST_HOLD {
            self.report(
                format!("{path}.hold"),
                format!("is {}; write 0s to 50s: clients give up on a call after 60 s", approval.hold),
            );
        }
        if !(EntryApproval::SHORTEST_EXPIRY..=EntryApproval::LONGEST_EXPIRY).contains(&approval.expiry.span()) {
            self.report(format!("{path}.expiry"), format!("is {}; write 10s to 24h", approval.expiry));
        }
        if !(1..=PENDING_APPROVALS).contains(&approval.pending) {
            self.report(format!("{path}.pending"), format!("is {}; write 1 to {PENDING_APPROVALS}", approval.pending));
        }
    }

    fn limit(&mut self, path: &str, limit: &Limit) {
        if !(1..=MAX).contains(&limit.max) {
            self.report(
                format!("{path}.max"),
                format!("is {}; write 1 to {MAX}, or `action: Deny` on the entry to forbid it", limit.max),
            );
        }
        if limit.scope.is_shared() && (SHARED_MAX + 1..=MAX).contains(&limit.max) {
            self.report(
                format!("{path}.max"),
                format!("is {}; a limit that is counted across pods has at most {SHARED_MAX}", limit.max),
            );
        }
        self.optional_expression(format!("{path}.key"), limit.key.as_deref());
        self.optional_expression(format!("{path}.cost"), limit.cost.as_deref());
        self.optional_text(format!("{path}.counter"), limit.counter.as_deref(), COUNTER_NAME);
    }
}

/// Returns the field of an entry of a kind that says what it matches.
fn name_field(kind: OperationKind) -> &'static str {
    if kind == OperationKind::Resource { "uri" } else { "name" }
}

/// Checks pins as the schema does, and that no tool or part stands twice.
pub fn check_tool_pins(pins: &ToolPins) -> Vec<FieldError> {
    let mut found = FieldErrors(Vec::new());
    for (path, name) in [("metadata.name", &pins.name), ("metadata.namespace", &pins.namespace)] {
        found.0.extend(object_name_problem(path, name));
    }
    let spec = &pins.spec;
    found.text("spec.server".to_owned(), &spec.server, SERVER_NAME);
    found.count("spec.tools", spec.tools.len(), 0, PINNED_TOOLS);
    let mut names = HashMap::new();
    for (index, tool) in spec.tools.iter().take(PINNED_TOOLS).enumerate() {
        let path = format!("spec.tools[{index}]");
        found.text(format!("{path}.name"), &tool.name, TOOL_NAME);
        if let Some(first) = names.insert(tool.name.as_str(), index) {
            found.report(format!("{path}.name"), format!("is also the name of tools[{first}]; remove one"));
        }
        let wrong = tool.digests().err();
        found.0.extend(wrong.map(|FieldError { path: at, message }| FieldError { path: format!("{path}.{at}"), message }));
        for (index, pinned) in tool.parts.iter().enumerate().filter(|(_, pinned)| pinned.text.len() > PINNED_TEXT) {
            let message = format!("has {} bytes; at most {PINNED_TEXT} are possible", pinned.text.len());
            found.report(format!("{path}.parts[{index}].text"), message);
        }
    }
    found.0
}

/// Returns what is wrong with the name of a Kubernetes object, if something is (RFC 1123, a subdomain).
pub(crate) fn object_name_problem(path: &str, name: &str) -> Option<FieldError> {
    let fits = (1..=OBJECT_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    let message = || format!("`{}` is not a Kubernetes name; write lower case letters, digits, `-` and `.`", escaped(name, 80));
    (!fits).then(|| FieldError { path: path.to_owned(), message: message() })
}

/// Checks a selector and returns every field that is wrong. Paths start at `path`.
pub fn check_selector(path: &str, selector: &LabelSelector) -> Vec<FieldError> {
    let mut found = FieldErrors(Vec::new());
    found.selector(path, selector);
    found.0
}

/// Returns whether a name is a DNS label (RFC 1123), as names of servers must be: they are path segments and labels of metrics.
fn is_dns_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=SERVER_NAME).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Headers that mean something to HTTP, to MCP or to the sidecar, and so can hold no credential.
const NO_CREDENTIAL: [&str; 16] = [
    "accept",
    "accept-encoding",
    "connection",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "last-event-id",
    "origin",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Returns what is wrong with the name of a header that holds a credential, if something is.
fn header_name_problem(name: &str) -> Option<String> {
    let shown = escaped(name, 80);
    let Ok(known) = http::HeaderName::from_bytes(name.as_bytes()) else {
        return Some(format!("`{shown}` is not the name of a header; write letters, digits and `-`"));
    };
    if name.len() > HEADER_NAME {
        return Some(format!("has {} bytes; at most {HEADER_NAME} are possible", name.len()));
    }
    // Some servers take `_` for `-`, and so the sidecar removes both.
    let name = known.as_str().replace('_', "-");
    let has_meaning = NO_CREDENTIAL.contains(&name.as_str())
        || ["access-control-", "content-", "mcp-", "proxy-", "sec-"].iter().any(|prefix| name.starts_with(prefix));
    has_meaning.then(|| {
        format!("`{shown}` has another meaning and can hold no credential; write the header that the server reads its key from")
    })
}

/// Returns why TLS to the url of a server cannot be opened, if so.
fn intercept_problem(url: &Uri, server: &str) -> Option<String> {
    if url.scheme_str() != Some("https") {
        return Some("is Intercept, and http is governed without it; leave `tls` out, or write an https:// url".to_owned());
    }
    let host = url.host().unwrap_or_default();
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    (name.starts_with('*') || domain_name_problem(&name).is_some()).then(|| {
        format!(
            "is Intercept, and `{}` is no name, and a pod's authority vouches for names alone; write the server's name into `url`, or leave `tls` out and have the agent use http://127.0.0.1:15001/{}",
            escaped(host, 80),
            escaped(server, SERVER_NAME)
        )
    })
}

/// Reads the URL of a server. Files, `kubectl apply` and the proxy all read it with this function.
///
/// # Errors
/// The error and what to write instead, in one line without the field's path.
pub fn server_url(url: &str) -> Result<Uri, String> {
    http_url(url, "a URL of an MCP server; write http://HOST[:PORT]/PATH or https://...")
}

/// Reads a URL. `what` says what it should be.
fn http_url(url: &str, what: &str) -> Result<Uri, String> {
    let shown = escaped(url, 80);
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return Err(format!("`{shown}` is not {what}"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if url.len() > URL {
        return Err(format!("has {} bytes; at most {URL} are possible", url.len()));
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err(format!("`{shown}` names no host"));
    }
    if authority.contains('@') {
        return Err("holds a password; write it as `credential`, or leave it to the agent's Authorization header".to_owned());
    }
    if url.contains('#') {
        return Err("has a fragment (#...), which no server sees; remove it".to_owned());
    }
    if url.bytes().any(|b| b <= b' ' || b >= 0x7f || b"\"<>\\^`{|}".contains(&b)) {
        return Err(format!("`{shown}` has a character that a URL cannot hold; percent-encode it"));
    }
    let uri: Uri = url.parse().map_err(|error| format!("`{shown}` is not a URL: {error}"))?;
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else { return Err(format!("`{shown}` names no host")) };
    if host.contains('*') {
        return Err(format!("`{shown}` has a `*` in its host; a URL names one host, so write its name"));
    }
    if port_of(&uri).is_none() {
        return Err(format!("`{shown}` has a port that cannot be connected to; write a number from 1 to 65535, or none"));
    }
    Ok(uri)
}
