//! The description of a server's authorization (RFC 9728), in which the server has the sidecar's URL.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri, header, request::Parts};
use hyper::body::Incoming;
use tokio::time::timeout;
use toolweir_engine::Permit;

use super::{
    body::ResponseBody,
    failure::RequestFailure,
    forwarding::{remove_hop_by_hop, sidecar_origin},
    oauth,
    replies::text,
    representation::{COMPRESSED, is_coded},
    request_guard::ServerGuard,
    response_kind::ResponseKind,
    state::Proxy,
};
use crate::outcome::Outcome;

impl Proxy {
    /// Passes on the description of a server's authorization, or of what issues its tokens at the same origin, as the server gives it.
    pub(super) async fn description_of_server(
        &self,
        request: &Parts,
        url: Uri,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        at.request.method = "_authorization";
        // What authorizes is the sidecar's: the agent is not told of another way.
        if at.server.credential.is_some() || at.request.in_force.engine.closed(&at.server.name).is_some() {
            return Err(RequestFailure::NotFound);
        }
        let response = self.send(&Method::GET, &request.headers, url, Bytes::new(), at).await?;
        self.pass(response, &request.headers, at, Permit::default(), ResponseKind::Message).await
    }

    /// Answers a request for the description of a server's authorization.
    pub(super) async fn authorization(
        &self,
        request: &Parts,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        if request.method != Method::GET {
            return Err(RequestFailure::Method);
        }
        if let Some(denial) = at.request.in_force.engine.closed(&at.server.name) {
            return Ok((text(StatusCode::FORBIDDEN, denial.message), Outcome::Denied));
        }
        // What authorizes is the sidecar's: the agent is not told of another way.
        if at.server.credential.is_some() {
            return Err(RequestFailure::NotFound);
        }
        let url = at.url()?;
        let asked = &request.headers;
        let (mut refused, mut unreadable) = (None, None);
        for place in self.state.described.places(&at.server.name, &url) {
            let response = self.send(&Method::GET, asked, place, Bytes::new(), at).await?;
            if response.status() != StatusCode::OK {
                let says_more = |before: &Response<Incoming>| before.status() != StatusCode::NOT_FOUND;
                refused = Some(refused.filter(says_more).unwrap_or(response));
                continue;
            }
            match self.description(response, asked, at).await? {
                Ok(described) => return Ok((described, Outcome::Ok)),
                Err(why) => unreadable = Some(why),
            }
        }
        match (unreadable, refused) {
            (None, Some(response)) => self.pass(response, asked, at, Permit::default(), ResponseKind::Message).await,
            (why, _) => Err(RequestFailure::Invalid(at.server.name.clone(), why.unwrap_or("it has no description").to_owned())),
        }
    }

    /// A description of a server's authorization with the sidecar's URL; else why it is none.
    async fn description(
        &self,
        response: Response<Incoming>,
        asked: &HeaderMap,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<Result<Response<ResponseBody>, &'static str>, RequestFailure> {
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        self.localize(&mut parts.headers, asked, at);
        if is_coded(&parts.headers) {
            return Ok(Err(COMPRESSED));
        }
        let before = Instant::now();
        let most = self.state.limits.body.min(oauth::LARGEST);
        let read = timeout(self.state.limits.first_byte, self.state.budget.read(body, most)).await;
        at.waited_since(before);
        let (bytes, held) = read.ok().and_then(Result::ok).ok_or_else(|| RequestFailure::Upstream(at.server.name.clone()))?;
        let local = format!("{}/{}", sidecar_origin(asked), at.server.name);
        let Some(edited) = oauth::rewrite_resource(&bytes, &local) else {
            return Ok(Err("the description of its authorization is no JSON object with one `resource`"));
        };
        parts.headers.remove(header::CONTENT_LENGTH);
        Ok(Ok(Response::from_parts(parts, ResponseBody::held(edited, held))))
    }
}
