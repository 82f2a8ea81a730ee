//! What can go wrong with a request: whose fault it was, whether to try again, and what the client is told.

use http::StatusCode;

use super::reason::Reason;
use crate::{governor::Outcome, mcp::request::Refusal, under_way::NotKept};

/// Whose fault a failure was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client's: the same request fails again.
    Client,
    /// The server's.
    Upstream,
    /// The sidecar's own bounds.
    Own,
}

/// A request that is not answered by its server.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its meaning is not clear.
    #[error("Refused: {0}.")]
    Refused(#[from] Refusal),
    /// It comes from a page of another origin.
    #[error("Refused: the {0} header names an origin that is not local. Use http://127.0.0.1, or --allow-host.")]
    ForbiddenOrigin(&'static str),
    /// There is nothing at its path.
    #[error("Nothing is here. An MCP server is reached at /<name>, with the name that a policy gives it.")]
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
    Connect(String, Reason),
    /// The proxy on the way to the server seems not to have passed the request on. The server may have said so itself, so
    /// it is not certain that nothing was sent.
    #[error("The MCP server {0} cannot be connected to: {why}.", why = .1.why)]
    Proxy(String, Reason),
    /// The server did not begin to answer in time.
    #[error("The MCP server {0} did not begin to answer in time.")]
    Timeout(String),
    /// The server hung up, or its answer is no HTTP.
    #[error("The MCP server {0} hung up or sent what is no HTTP answer.")]
    Upstream(String),
    /// The answer cannot be passed on.
    #[error("The answer of the MCP server {0} cannot be passed on: {1}.")]
    Invalid(String, String),
}

impl Failure {
    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status(),
            Self::ForbiddenOrigin(_) => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownServer => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::Unanswered => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::NoUrl(_) | Self::Connect(..) | Self::Proxy(..) | Self::Upstream(_) | Self::Invalid(..) => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// The JSON-RPC error code of the answer.
    pub fn code(&self) -> i32 {
        match self {
            Self::Refused(refusal) => refusal.code(),
            _ if self.fault() == Fault::Client => -32600,
            // JSON-RPC's internal error: the client did nothing wrong.
            _ => -32603,
        }
    }

    /// As the metrics name it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Refused,
            Self::ForbiddenOrigin(_) => Outcome::ForbiddenOrigin,
            Self::NotFound | Self::Method => Outcome::NotFound,
            Self::UnknownServer => Outcome::UnknownServer,
            Self::Body => Outcome::ClientFailed,
            Self::Overloaded | Self::Unanswered => Outcome::Overloaded,
            Self::NoUrl(_) | Self::Connect(..) | Self::Proxy(..) => Outcome::ConnectFailed,
            Self::Timeout(_) => Outcome::UpstreamTimeout,
            Self::Upstream(_) => Outcome::UpstreamFailed,
            Self::Invalid(..) => Outcome::UpstreamInvalid,
        }
    }

    /// Whose fault it was.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused(_) | Self::ForbiddenOrigin(_) | Self::NotFound | Self::UnknownServer | Self::Method | Self::Body => {
                Fault::Client
            }
            Self::NoUrl(_) | Self::Overloaded | Self::Unanswered => Fault::Own,
            Self::Connect(..) | Self::Proxy(..) | Self::Timeout(_) | Self::Upstream(_) | Self::Invalid(..) => Fault::Upstream,
        }
    }

    /// What it is, without a word of the request: for the log.
    pub fn in_general(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.in_general(),
            other => other.to_string(),
        }
    }

    /// Whether the same request may do better later. A request that timed out may have been carried out.
    pub fn retry(&self) -> bool {
        match self {
            Self::Overloaded | Self::Unanswered => true,
            Self::Connect(_, reason) | Self::Proxy(_, reason) => reason.passes,
            _ => false,
        }
    }

    /// Whether it is certain that nothing was sent to the server. An answer never says so, whatever its status: a gateway
    /// may give it when the call has long begun.
    pub fn nothing_sent(&self) -> bool {
        matches!(self, Self::Connect(..) | Self::NoUrl(_))
    }
}

impl From<NotKept> for Failure {
    fn from(why: NotKept) -> Self {
        match why {
            NotKept::InUse => Refusal::IdInUse.into(),
            NotKept::LongId => Refusal::LongId.into(),
            NotKept::NoRoom => Self::Unanswered,
        }
    }
}
