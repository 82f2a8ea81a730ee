//! Failures of requests: whose fault each is, whether to try again, and the words for the client.

use bytes::Bytes;
use http::StatusCode;

use super::reason::ConnectReason;
use crate::{
    credentials::CredentialProblem,
    mcp::{
        answer::{NotCarriedOut, not_carried_out},
        request::{HEADER_MISMATCH, Refusal},
        scan::ReplyTo,
    },
    outcome::Outcome,
    pending::RegisterError,
};

/// When a request that may do better later is to be sent again, in seconds.
pub const RETRY_AFTER: u32 = 1;

/// Whose fault a failure was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureOrigin {
    /// The client's: the same request fails again.
    Client,
    /// The server's.
    Upstream,
    /// The sidecar's own bounds.
    Own,
}

/// A request that is not answered by its server.
#[derive(Debug, thiserror::Error)]
pub enum RequestFailure {
    /// Its meaning is not clear.
    #[error("Refused: {0}.")]
    Refused(#[from] Refusal),
    /// The request comes from a page of another origin.
    #[error("Refused: the {0} header names an origin that is not local. Use http://127.0.0.1, or --allow-host.")]
    ForbiddenOrigin(&'static str),
    /// A page of another origin than the server's calls the server by its own URL.
    #[error("Refused: the Origin header names another origin than the server's. A page may call the server that it comes from.")]
    ForeignOrigin,
    /// There is nothing at its path.
    #[error("Nothing is here. An MCP server is reached at /<name>, with the name that a policy gives it and nothing after it.")]
    NotFound,
    /// No policy names the server.
    #[error("No policy in force names this server, so it cannot be reached.")]
    UnknownServer,
    /// An HTTP method that MCP does not use.
    #[error("MCP uses POST, GET and DELETE here.")]
    Method,
    /// The body did not come, or not in time.
    #[error("The request's body did not arrive.")]
    Body,
    /// Too many bytes are held.
    #[error("The sidecar holds as many bytes as it may. Try again in a moment.")]
    Overloaded,
    /// Too many requests have no answer yet, where an answer comes elsewhere.
    #[error("As many requests as may be have no answer yet. Try again when some are answered.")]
    Unanswered,
    /// The server has no url.
    #[error("No policy says where the MCP server {0} is.")]
    NoUrl(String),
    /// The server cannot be connected to.
    #[error("The MCP server {0} cannot be connected to: {why}.", why = .1.why)]
    Connect(String, ConnectReason),
    /// The proxy on the way to the server seems not to have passed the request on. The server may have said so itself, so
    /// it is not certain that nothing was sent.
    #[error("The MCP server {0} cannot be connected to: {why}.", why = .1.why)]
    Proxy(String, ConnectReason),
    /// The sidecar has nothing to show the server, so nothing was sent.
    #[error("The MCP server {0} cannot be called, since the sidecar's credential for it cannot be used: {1}.")]
    Credential(String, CredentialProblem),
    /// The server refuses what the sidecar shows it, also after a renewal: how.
    #[error(
        "The MCP server {0} refuses the sidecar's credential ({1}), so nothing was carried out. Whoever runs the server or wrote the \
         policy can fix that; a credential of your own does not help."
    )]
    CredentialRefused(String, &'static str),
    /// The server did not begin to answer in time.
    #[error("The MCP server {0} did not begin to answer in time.")]
    Timeout(String),
    /// The server hung up, or its answer is no HTTP.
    #[error("The MCP server {0} hung up or sent what is no HTTP answer.")]
    Upstream(String),
    /// The server hung up after the sidecar had shown its certificate. Some refuse one so.
    #[error("The MCP server {0} hung up after it was shown the sidecar's certificate; it may refuse that.")]
    UpstreamOfCertificate(String),
    /// stdio: the server's process ended.
    #[error("The MCP server {0} ended before it answered.")]
    Ended(String),
    /// The answer cannot be passed on.
    #[error("The answer of the MCP server {0} cannot be passed on: {1}.")]
    Invalid(String, String),
}

impl RequestFailure {
    /// The answer in words: for a tool call a tool result, else a JSON-RPC error, with the id where it is known.
    pub fn answer(&self, to: &ReplyTo<'_>) -> Bytes {
        let mut message = self.to_string();
        if to.takes_tool_result
            && matches!(self, Self::Timeout(_) | Self::Upstream(_) | Self::UpstreamOfCertificate(_) | Self::Ended(_))
        {
            message.push_str(" The call may have been carried out.");
        }
        let retry = self.retry();
        let why = NotCarriedOut { reason: self.outcome().as_str(), retry, retry_after_seconds: retry.then_some(RETRY_AFTER) };
        not_carried_out(to, self.code(), &message, &why)
    }

    /// The HTTP status of the answer to a client of MCP. Clients end their whole session at an HTTP error, and hand over
    /// the words of an answer that has the request's id; so there is an error only where MCP asks for one.
    pub fn status_of_answer(&self, to: &ReplyTo<'_>) -> StatusCode {
        let is_error = match self {
            // MCP 2025-11-25, Transports, "Security Warning".
            Self::ForbiddenOrigin(_) | Self::ForeignOrigin => true,
            // MCP 2026-07-28, "Request Metadata Headers": only at an error does a client send the call again with others.
            _ if to.modern && self.code() == HEADER_MISMATCH => true,
            // There every answer has a status of its own: it is no session that ends.
            _ => to.id.is_none() || (to.modern && !to.takes_tool_result),
        };
        if is_error { self.status() } else { StatusCode::OK }
    }

    /// The HTTP status that says what became of the request.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::ForbiddenOrigin(_) | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownServer => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::Unanswered => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::NoUrl(_)
            | Self::Connect(..)
            | Self::Proxy(..)
            | Self::Credential(..)
            | Self::CredentialRefused(..)
            | Self::Upstream(_)
            | Self::UpstreamOfCertificate(_)
            | Self::Ended(_)
            | Self::Invalid(..) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The JSON-RPC error code of the answer.
    pub fn code(&self) -> i32 {
        match self {
            Self::Refused(refusal) => refusal.code(),
            _ if self.origin() == FailureOrigin::Client => -32600,
            // JSON-RPC's internal error: the client did nothing wrong.
            _ => -32603,
        }
    }

    /// As the metrics name it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Refused,
            Self::ForbiddenOrigin(_) | Self::ForeignOrigin => Outcome::ForbiddenOrigin,
            Self::NotFound | Self::Method => Outcome::NotFound,
            Self::UnknownServer => Outcome::UnknownServer,
            Self::Body => Outcome::ClientFailed,
            Self::Overloaded | Self::Unanswered => Outcome::Overloaded,
            Self::NoUrl(_) | Self::Connect(..) | Self::Proxy(..) => Outcome::ConnectFailed,
            Self::Credential(..) => Outcome::CredentialUnavailable,
            Self::CredentialRefused(..) => Outcome::CredentialRefused,
            Self::Timeout(_) => Outcome::UpstreamTimeout,
            Self::Upstream(_) | Self::UpstreamOfCertificate(_) | Self::Ended(_) => Outcome::UpstreamFailed,
            Self::Invalid(..) => Outcome::UpstreamInvalid,
        }
    }

    /// Whose fault it was.
    pub fn origin(&self) -> FailureOrigin {
        match self {
            Self::Refused(_)
            | Self::ForbiddenOrigin(_)
            | Self::ForeignOrigin
            | Self::NotFound
            | Self::UnknownServer
            | Self::Method
            | Self::Body => FailureOrigin::Client,
            Self::NoUrl(_) | Self::Overloaded | Self::Unanswered | Self::Credential(..) => FailureOrigin::Own,
            Self::Connect(..)
            | Self::Proxy(..)
            | Self::CredentialRefused(..)
            | Self::Timeout(_)
            | Self::Upstream(_)
            | Self::UpstreamOfCertificate(_)
            | Self::Ended(_)
            | Self::Invalid(..) => FailureOrigin::Upstream,
        }
    }

    /// The failure without a word of the request, for the log.
    pub fn in_general(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.in_general(),
            other => other.to_string(),
        }
    }

    /// Returns true where the same request may do better later. A request that timed out may have been carried out.
    pub fn retry(&self) -> bool {
        match self {
            Self::Overloaded | Self::Unanswered => true,
            Self::Connect(_, reason) | Self::Proxy(_, reason) => reason.passes,
            Self::Credential(_, problem) => problem.passes,
            _ => false,
        }
    }

    /// Returns true where it is certain that nothing was sent to the server. An answer never says so, whatever its status: a gateway
    /// may give it when the call has long begun.
    pub fn nothing_sent(&self) -> bool {
        matches!(self, Self::Connect(..) | Self::NoUrl(_) | Self::Credential(..))
    }

    /// Returns true where it is certain that the server did not take the request, so that no answer to it can come.
    pub fn not_taken(&self) -> bool {
        self.nothing_sent() || matches!(self, Self::CredentialRefused(..))
    }
}

impl From<RegisterError> for RequestFailure {
    fn from(why: RegisterError) -> Self {
        match why {
            RegisterError::InUse => Refusal::IdInUse.into(),
            RegisterError::Cancelled => Refusal::IdCancelled.into(),
            RegisterError::LongId => Refusal::LongId.into(),
            RegisterError::NoRoom => Self::Unanswered,
        }
    }
}
