//! Asks token endpoints for tokens.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use http::{
    HeaderValue, Method, Request,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;

use super::{
    grant::{FetchFailure, FetchOutcome, TokenRequest, read_answer},
    material::ReadyCredential,
    unix_now,
};
use crate::proxy::{reason::ConnectReason, upstream::UpstreamClient};

/// The time that a token endpoint may take, from connecting to the end of its answer.
pub const FETCH: Duration = Duration::from_secs(5);
/// The most bytes of an answer.
const LARGEST: usize = 64 * 1024;

/// Asks token endpoints for tokens.
#[derive(Clone, Debug)]
pub struct TokenClient(pub UpstreamClient);

impl TokenClient {
    /// Asks for a token.
    ///
    /// # Errors
    /// There is none; within [`FETCH`].
    pub async fn fetch(&self, request: &TokenRequest) -> Result<ReadyCredential, FetchFailure> {
        let (asked, unix) = (Instant::now(), unix_now());
        let mut message = Request::new(Full::new(request.body.clone()));
        *message.method_mut() = Method::POST;
        *message.uri_mut() = request.url.clone();
        let headers = message.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(value) = &request.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        let hung_up = |_: Box<dyn Error + Send + Sync>| {
            FetchFailure::passing(FetchOutcome::Invalid, "the answer of the token endpoint breaks off, or has more than 64 KiB")
        };
        let answered = timeout(FETCH, async {
            let response = self.0.send(message).await.map_err(|error| {
                let message = if error.is_connect() {
                    format!("the token endpoint cannot be reached: {}", ConnectReason::of(&error).why)
                } else {
                    "the token endpoint hung up or sent what is no HTTP answer".to_owned()
                };
                FetchFailure::passing(FetchOutcome::Unreachable, message)
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(hung_up)?.to_bytes();
            read_answer(status, &body, unix)
        });
        let late = |_| {
            let seconds = FETCH.as_secs();
            FetchFailure::passing(FetchOutcome::Timeout, format!("the token endpoint did not answer within {seconds} s"))
        };
        let token = answered.await.map_err(late)??;
        ReadyCredential::of_token(&token, asked, unix).map_err(|problem| FetchFailure { outcome: FetchOutcome::Invalid, problem })
    }
}
