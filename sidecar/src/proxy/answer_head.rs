//! What the head of a server's answer says, and what is left of an answer whose body does not pass.

use bytes::Bytes;
use http::{Response, StatusCode, header, response::Parts};

use super::{body::ResponseBody, failure::RequestFailure, request_guard::ServerGuard};
use crate::outcome::Outcome;

/// The outcome of a request that was answered with this status.
pub fn outcome_of(status: StatusCode) -> Outcome {
    if status.is_server_error() {
        Outcome::UpstreamError
    } else if status.is_client_error() {
        Outcome::UpstreamRejected
    } else {
        Outcome::Ok
    }
}

/// The head of an answer whose body cannot be read, if the answer is an error: what that says in its head is for the client all
/// the same.
pub(super) fn without_body(
    mut parts: Parts,
    why: String,
    at: &ServerGuard<'_, '_>,
) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
    let status = parts.status;
    if status.is_success() {
        return Err(at.invalid(why));
    }
    tracing::warn!(server = at.server.name, status = status.as_u16(), why, "the body of an error was left out");
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE] {
        parts.headers.remove(name);
    }
    Ok((Response::from_parts(parts, ResponseBody::whole(Bytes::new())), outcome_of(status)))
}
