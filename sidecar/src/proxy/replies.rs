//! Answers that the sidecar gives itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{
    body::ResponseBody,
    failure::{RETRY_AFTER, RequestFailure},
};
use crate::mcp::{answer, headers};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// An answer of this type.
fn with_type(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// An answer for people.
pub fn text(status: StatusCode, message: String) -> Response<ResponseBody> {
    with_type(status, HeaderValue::from_static("text/plain; charset=utf-8"), message.into())
}

/// The answer to a message that was taken and that is not answered here: 202 without a body (MCP 2025-11-25, Transports, "Sending
/// Messages to the Server").
pub fn accepted() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(Bytes::new()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// A message of MCP with status 200, as an event where the client takes events alone.
pub fn message(asked: &HeaderMap, body: Bytes) -> Response<ResponseBody> {
    if headers::takes_events_alone(asked) {
        with_type(StatusCode::OK, EVENTS, answer::event(&body))
    } else {
        with_type(StatusCode::OK, JSON, body)
    }
}

/// The answer with an error of HTTP.
pub fn failed(failure: &RequestFailure, status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    let mut response = with_type(status, JSON, body);
    if matches!(failure, RequestFailure::Method) {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    }
    if failure.retry() {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.into());
    }
    response
}
