//! The outcome of a request.

/// The outcome of a request: the closed set of the metrics' label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered.
    Ok,
    /// The server answered with an HTTP error of the client's making (4xx).
    UpstreamRejected,
    /// The server answered with an HTTP error of its own (5xx).
    UpstreamError,
    /// The server could not be connected to.
    ConnectFailed,
    /// The sidecar has nothing to show a server that has a credential, so nothing was sent.
    CredentialUnavailable,
    /// The server refuses the sidecar's credential, also after a renewal.
    CredentialRefused,
    /// The server did not begin to answer in time.
    UpstreamTimeout,
    /// The server hung up, or its answer is no HTTP.
    UpstreamFailed,
    /// The server's answer cannot be passed on: a redirect, a list that cannot be read.
    UpstreamInvalid,
    /// The server's answer has more bytes than a policy lets pass.
    ResultTooLarge,
    /// A policy denied it.
    Denied,
    /// The message needs no answer and was not forwarded.
    Dropped,
    /// The message has no clear meaning.
    Refused,
    /// The request comes from a page of another origin.
    ForbiddenOrigin,
    /// No policy names the server.
    UnknownServer,
    /// There is nothing at its path, or not for its HTTP method.
    NotFound,
    /// The body did not come in time, or the client hung up while sending it.
    ClientFailed,
    /// Too many bytes or connections are held.
    Overloaded,
    /// The client cancelled it before it was answered.
    Cancelled,
    /// The client hung up before the answer.
    ClientGone,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 20] = [
        Self::Ok,
        Self::UpstreamRejected,
        Self::UpstreamError,
        Self::ConnectFailed,
        Self::CredentialUnavailable,
        Self::CredentialRefused,
        Self::UpstreamTimeout,
        Self::UpstreamFailed,
        Self::UpstreamInvalid,
        Self::ResultTooLarge,
        Self::Denied,
        Self::Dropped,
        Self::Refused,
        Self::ForbiddenOrigin,
        Self::UnknownServer,
        Self::NotFound,
        Self::ClientFailed,
        Self::Overloaded,
        Self::Cancelled,
        Self::ClientGone,
    ];

    /// As metrics and the audit log name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::UpstreamRejected => "upstream_rejected",
            Self::UpstreamError => "upstream_error",
            Self::ConnectFailed => "connect_failed",
            Self::CredentialUnavailable => "credential_unavailable",
            Self::CredentialRefused => "credential_refused",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::ResultTooLarge => "result_too_large",
            Self::Denied => "denied",
            Self::Dropped => "dropped",
            Self::Refused => "refused",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::UnknownServer => "unknown_server",
            Self::NotFound => "not_found",
            Self::ClientFailed => "client_failed",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
            Self::ClientGone => "client_gone",
        }
    }
}

/// How a list ended that the sidecar asked for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListingEnd {
    /// The last page came.
    Complete,
    /// A page did not come, or there are more of them than are read, or nobody waits for it any more.
    Failed,
    /// It took too long.
    Timeout,
}

impl ListingEnd {
    /// Every end.
    pub const ALL: [Self; 3] = [Self::Complete, Self::Failed, Self::Timeout];

    /// The metrics' label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

/// The end of an answer that the sidecar gives a server in its client's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerAnswerEnd {
    /// The server took it.
    Ok,
    /// The server answered with an HTTP error.
    Rejected,
    /// It could not be sent, or the server hung up.
    Failed,
    /// It took too long.
    Timeout,
    /// It was not sent: the server asks for more than is answered.
    Dropped,
}

impl ServerAnswerEnd {
    /// Every end.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Rejected, Self::Failed, Self::Timeout, Self::Dropped];

    /// The metrics' label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Dropped => "dropped",
        }
    }
}
