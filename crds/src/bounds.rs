//! The bounds of a policy. The JSON schema has the same numbers as [`check`](mod@crate::check), so that a local file is held to
//! what `kubectl apply` is held to.

/// Expressions of one `show`.
pub const SHOWN_VALUES: usize = 8;
/// Bytes of an expression of `show`.
pub const SHOWN_EXPRESSION: usize = 256;
/// Bytes of a value that an approver is shown.
pub const SHOWN_VALUE: usize = 512;
/// The largest `pending`.
pub const PENDING_APPROVALS: u32 = 50;
/// Requests for approval of one pod that are not ended, whatever `pending` says.
pub const POD_APPROVALS: usize = 64;
/// Policies that one approval satisfies. The API server's budget for a check of the authorizer allows one expression each.
pub const ASKING_POLICIES: usize = 8;
/// Bytes of the texts of all policies that ask for one call.
pub const APPROVAL_MESSAGE: usize = 2048;
/// Values that one request shows, of all policies that ask.
pub const APPROVAL_SHOWN: usize = 32;
/// The largest generation of a policy: every number up to it is exact in JSON.
pub const GENERATION: i64 = (1 << 53) - 1;
/// Bytes of the name of a user.
pub const USER_NAME: usize = 512;

/// Servers of one policy.
pub const SERVERS: usize = 64;
/// Entries of one server.
pub const TOOLS: usize = 1024;
/// Entries for prompts of one server.
pub const PROMPTS: usize = 256;
/// Entries for resources of one server.
pub const RESOURCES: usize = 256;
/// Entries for requests of one server: one for each that there is.
pub const REQUESTS: usize = 3;
/// Bytes of what a request for approval is about: a tool's name, or a method and what it names.
pub const ASKED_NAME: usize = RESOURCE_URI + 64;
/// The largest `maxResultBytes`.
pub const RESULT_BYTES: i64 = 1 << 30;
/// Limits of one entry.
pub const LIMITS: usize = 16;
/// Validations of one entry.
pub const VALIDATIONS: usize = 16;
/// Requirements of one selector.
pub const SELECTOR_REQUIREMENTS: usize = 16;
/// Bytes of a server's name.
pub const SERVER_NAME: usize = 63;
/// Bytes of a tool's name. MCP 2025-11-25 (Tools, "Tool Names") wants 128; gateways that join names make longer ones. A call of a
/// longer one is denied, so that names are compared in bounded time. The schema counts characters.
pub const TOOL_NAME: usize = 512;
/// Tools of one `MCPToolPins`.
pub const PINNED_TOOLS: usize = 1024;
/// Bytes that are kept of a part of a pinned tool.
pub const PINNED_TEXT: usize = 8192;
/// Bytes of the name of a Kubernetes object (RFC 1123, a subdomain).
pub const OBJECT_NAME: usize = 253;
/// Bytes of a counter's name.
pub const COUNTER_NAME: usize = 128;
/// Bytes of a URL.
pub const URL: usize = 2048;
/// Bytes of a resource's URI, and of an entry for resources. A longer URI is ambiguous, so that URIs are compared in bounded time.
pub const RESOURCE_URI: usize = 2048;
/// URIs that stand for a template of resources.
pub const TEMPLATE_WITNESSES: usize = 64;
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
/// Bytes of a key of a Secret, as Kubernetes has it.
pub const SECRET_KEY: usize = 253;
/// Bytes of the name of a header that holds a credential.
pub const HEADER_NAME: usize = 64;
/// Bytes of the audience of a token of a service account.
pub const AUDIENCE: usize = 253;
/// Bytes of a scope, or of an audience that a token service is asked for (RFC 6749, section 3.3; RFC 8693, section 2.1).
pub const OAUTH_VALUE: usize = 256;
/// Scopes of a credential.
pub const SCOPES: usize = 32;
/// Bytes of a file's name.
pub const FILE_NAME: usize = 255;
/// Rules of an `egress`. The engine keeps a bit for each.
pub const EGRESS_RULES: usize = 64;
/// Domain names of one rule.
pub const DOMAIN_NAMES: usize = 64;
/// Bytes of a domain name, with its `*.` (RFC 1035, section 2.3.4).
pub const DOMAIN_NAME: usize = 253;
/// Address ranges of one rule.
pub const CIDRS: usize = 16;
/// Bytes of an address range.
pub const CIDR: usize = 43;
/// Ports of one rule.
pub const PORTS: usize = 16;
