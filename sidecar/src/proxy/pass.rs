//! Answers of servers are passed on: streamed, unless they have to be read or changed.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header, response::Parts};
use hyper::body::Incoming;
use toolweir_engine::Permit;

use super::{
    body::{EventFilter, ResponseBody, Stop},
    failure::RequestFailure,
    forwarding::remove_hop_by_hop,
    list_changes::{DeclarationWatch, ListChangedNotifier},
    representation::{is_coded, is_events, is_json, unreadable},
    request_guard::ServerGuard,
    response_kind::ResponseKind,
    state::Proxy,
};
use crate::{
    mcp::{headers::SESSION_ID, sse::RewriteMode},
    outcome::Outcome,
    policy_changes::PolicyChanges,
};

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

/// Refuses an answer whose status ends no request, or leads elsewhere.
fn check_status(parts: &Parts, at: &ServerGuard<'_, '_>) -> Result<(), RequestFailure> {
    let status = parts.status;
    if status.is_informational() {
        return Err(at.invalid(format!("its status is {}, which ends no request", status.as_u16())));
    }
    if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
        // Followed by the client it would lead past the sidecar.
        let place = parts.headers.get(header::LOCATION).and_then(|place| place.to_str().ok()).unwrap_or("nowhere");
        let place: String = place.chars().take(200).collect();
        return Err(at.invalid(format!("it redirects to {place}; write that URL in the policy")));
    }
    Ok(())
}

/// Which events of an answer are looked for; None where it passes as it is, or is a list that is no stream of events.
fn rewrite_mode(kind: &ResponseKind<'_>, headers: &HeaderMap) -> Option<RewriteMode> {
    match kind {
        // Some clients take what a GET gives for events, whatever it says that it is.
        ResponseKind::Get => Some(if is_events(headers) { RewriteMode::All } else { RewriteMode::Foreign }),
        ResponseKind::List(_) | ResponseKind::PostedList => is_events(headers).then_some(RewriteMode::All),
        // Only an acknowledgement is looked for.
        ResponseKind::Listen => (is_events(headers) && unreadable(headers).is_none()).then_some(RewriteMode::All),
        ResponseKind::Message | ResponseKind::Answer(_) | ResponseKind::Initialize => None,
    }
}

/// The head of an answer whose body cannot be read, if the answer is an error: what that says in its head is for the client all
/// the same.
fn without_body(
    mut parts: Parts,
    why: &'static str,
    at: &ServerGuard<'_, '_>,
) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
    let status = parts.status;
    if status.is_success() {
        return Err(at.invalid(why.to_owned()));
    }
    tracing::warn!(server = at.server.name, status = status.as_u16(), why, "the body of an error was left out");
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE] {
        parts.headers.remove(name);
    }
    Ok((Response::from_parts(parts, ResponseBody::whole(Bytes::new())), outcome_of(status)))
}

impl Proxy {
    /// Passes an answer on. `asked` are the headers of the request, and `permit` its places among the calls under way.
    pub(super) async fn pass(
        &self,
        response: Response<Incoming>,
        asked: &HeaderMap,
        at: &mut ServerGuard<'_, '_>,
        permit: Permit,
        kind: ResponseKind<'_>,
    ) -> Result<(Response<ResponseBody>, Outcome), RequestFailure> {
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        check_status(&parts, at)?;
        self.localize(&mut parts.headers, asked, at);
        let outcome = outcome_of(parts.status);
        if parts.status == StatusCode::NOT_FOUND {
            self.end_session(asked, &at.server.name);
        }
        if (kind.is_list() || kind == ResponseKind::Get)
            && let Some(why) = unreadable(&parts.headers)
        {
            return without_body(parts, why, at);
        }
        if let Some(mode) = rewrite_mode(&kind, &parts.headers) {
            let answer = self.events(body, mode, asked, at, permit, &kind)?;
            if mode != RewriteMode::Foreign {
                parts.headers.remove(header::CONTENT_LENGTH);
            }
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        if kind.is_list() {
            // On an HTTP+SSE stream the list comes there; what answers the POST is any word.
            let any = !parts.status.is_success() || kind == ResponseKind::PostedList;
            let answer = self.list(body, is_json(&parts.headers), any, asked, &kind, at).await?;
            parts.headers.remove(header::CONTENT_LENGTH);
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        let stop = kind.is_kept_open().then(|| self.stop());
        let session = parts.headers.get(SESSION_ID).filter(|_| kind == ResponseKind::Initialize && !is_coded(&parts.headers));
        let declares = session.map(|id| DeclarationWatch::new(&self.state, &at.server.name, id.as_bytes()));
        Ok((Response::from_parts(parts, ResponseBody::Stream { inner: body, permit, stop, declares }), outcome))
    }

    /// A body whose events are looked at.
    fn events(
        &self,
        body: Incoming,
        mode: RewriteMode,
        asked: &HeaderMap,
        at: &ServerGuard<'_, '_>,
        permit: Permit,
        kind: &ResponseKind<'_>,
    ) -> Result<ResponseBody, RequestFailure> {
        let (url, get) = (at.url()?, *kind == ResponseKind::Get);
        let (open, inject) = if get { Some(self.state.streams.open(&at.server.name, &url)).unzip() } else { (None, None) };
        let filling = self.page_filler(kind, open.as_ref(), asked, &at.server);
        let notifier = (mode == RewriteMode::All && !kind.is_list()).then(|| {
            let session = asked.get(SESSION_ID).filter(|_| get);
            let told = session.map(|id| self.state.sessions.told(&at.server.name, id.as_bytes())).unwrap_or_default();
            ListChangedNotifier::new(PolicyChanges::watch(&self.state.governor, &at.server.name), told)
        });
        let filter = EventFilter { lists: self.lists(&at.server), open, mode, notifier, filling };
        let stop = kind.is_kept_open().then(|| self.stop());
        let (largest, budget) = (self.state.limits.body, self.state.budget.clone());
        Ok(ResponseBody::events(body, largest, filter, inject, budget, permit, stop))
    }

    /// Forgets the session of a request, since it has ended.
    pub(super) fn end_session(&self, asked: &HeaderMap, server: &str) {
        if let Some(id) = asked.get(SESSION_ID) {
            self.state.sessions.remove(server, id.as_bytes());
        }
    }

    /// A future that is done when the sidecar stops.
    fn stop(&self) -> Stop {
        let mut stopping = self.state.stopping.clone();
        Box::pin(async move {
            // An error says that nobody can stop it any more: then it goes on.
            if stopping.wait_for(|stopping| *stopping).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
