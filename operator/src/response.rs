//! Responses that every port gives.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};

/// A response, as every port sends it.
pub type PortResponse = Response<BoxBody<Bytes, Infallible>>;

/// Returns a response of one line of plain text.
pub fn plain_text(status: StatusCode, line: &str) -> PortResponse {
    let mut response = with_content(Bytes::from(format!("{line}\n")), "text/plain; charset=utf-8");
    *response.status_mut() = status;
    response
}

/// Returns a response with this content. The status is 200.
pub fn with_content(content: Bytes, content_type: &'static str) -> PortResponse {
    let mut response = Response::new(Full::new(content).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
