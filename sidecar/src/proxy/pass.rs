//! Answers of servers are passed on: streamed, unless they have to be read or changed.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode, header, response::Parts};
use hyper::body::{Body, Incoming};
use toolweir_engine::Permit;

use super::{
    answer_head::{outcome_of, without_body},
    body::{ResponseBody, Stop},
    event_filter::EventFilter,
    failure::RequestFailure,
    forwarding::remove_hop_by_hop,
    list_changes::{DeclarationWatch, ListChangedNotifier},
    representation::{is_events, unreadable},
    request_guard::ServerGuard,
    response_kind::ResponseKind,
    state::Proxy,
    stream_judge::StreamJudge,
    whole_answer::Unjudged,
};
use crate::{
    account::Account,
    mcp::{
        headers::SESSION_ID,
        sse::{KnownKeys, RewriteMode},
    },
    outcome::Outcome,
    policy_changes::PolicyChanges,
};

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

/// Which events of an answer are looked for; None where it is no stream of events.
fn rewrite_mode(kind: &ResponseKind<'_>, headers: &HeaderMap) -> Option<RewriteMode> {
    match kind {
        _ if is_events(headers) => Some(RewriteMode::All),
        // Some clients take what a GET gives for events, whatever it says that it is.
        ResponseKind::Get => Some(RewriteMode::Foreign),
        _ => None,
    }
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
        let reads_lists = kind.is_list() || kind == ResponseKind::Get;
        // What has no body says nothing.
        let is_empty = body.is_end_stream() && !reads_lists;
        if !is_empty && let Some(why) = unreadable(&parts.headers) {
            if reads_lists || !at.asks_are_free() {
                return without_body(parts, why.to_owned(), at);
            }
            return Ok((Response::from_parts(parts, self.unread(body, permit, &kind)), outcome));
        }
        if let Some(mode) = rewrite_mode(&kind, &parts.headers) {
            let answer = self.events(body, mode, asked, at, permit, (&kind, &parts))?;
            if mode != RewriteMode::Foreign {
                parts.headers.remove(header::CONTENT_LENGTH);
            }
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        if kind.is_list() {
            // On an HTTP+SSE stream the list comes there; what answers the POST is any word.
            let any = !parts.status.is_success() || kind == ResponseKind::PostedList;
            // Boxed: no connection that asks for no list is made larger by it.
            let answer = Box::pin(self.list(body, &parts, any, asked, &kind, at)).await?;
            parts.headers.remove(header::CONTENT_LENGTH);
            return Ok((Response::from_parts(parts, answer), outcome));
        }
        if is_empty {
            return Ok((Response::from_parts(parts, self.unread(body, permit, &kind)), outcome));
        }
        self.judged(Unjudged { parts, body, permit }, asked, &kind, at).await
    }

    /// A body that passes as it is.
    fn unread(&self, body: Incoming, permit: Permit, kind: &ResponseKind<'_>) -> ResponseBody {
        ResponseBody::stream(body, permit, kind.is_kept_open().then(|| self.stop()))
    }

    /// A body whose events are looked at.
    fn events(
        &self,
        body: Incoming,
        mode: RewriteMode,
        asked: &HeaderMap,
        at: &mut ServerGuard<'_, '_>,
        permit: Permit,
        (kind, parts): (&ResponseKind<'_>, &Parts),
    ) -> Result<ResponseBody, RequestFailure> {
        let (url, get) = (at.url()?, *kind == ResponseKind::Get);
        let (open, inject) = if get { Some(self.state.streams.open(&at.server.name, &url)).unzip() } else { (None, None) };
        let filling = self.page_filler(kind, open.as_ref(), asked, &at.server);
        let notifier = (mode == RewriteMode::All && kind.is_kept_open()).then(|| {
            let session = asked.get(SESSION_ID).filter(|_| get);
            let told = session.map(|id| self.state.sessions.told(&at.server.name, id.as_bytes())).unwrap_or_default();
            ListChangedNotifier::new(PolicyChanges::watch(&self.state.governor, &at.server.name), told)
        });
        let opened = parts.headers.get(SESSION_ID);
        let session = asked.get(SESSION_ID).or(opened).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let call = if let ResponseKind::Answer(context) = kind { Some(Arc::new(context.kept())) } else { None };
        let limited = call.as_ref().is_some_and(|call| call.result_limit().is_some());
        let declares = opened.filter(|_| *kind == ResponseKind::Initialize);
        let reads_lists = kind.is_list() || kind.is_kept_open();
        let filter = EventFilter {
            lists: self.lists(&at.server),
            reads_lists,
            open,
            mode,
            // Also where all may be asked for: a policy that comes into force meanwhile holds for this stream too.
            keys: if reads_lists { KnownKeys::LISTS.and(KnownKeys::ASKS) } else { KnownKeys::ASKS },
            notifier,
            filling,
            judge: StreamJudge::new(self.clone(), &at.server.name, session, self.answer_path(asked, parts, at)),
            call,
            account: if limited { at.record.take().map(Account::of_call) } else { None },
            declares: declares.map(|id| DeclarationWatch::new(&self.state, &at.server.name, id.as_bytes())),
            is_over: false,
        };
        let stop = kind.is_kept_open().then(|| self.stop());
        Ok(ResponseBody::events(body, filter, inject, self.clone(), permit, stop))
    }

    /// Forgets the session of a request, since it has ended.
    pub(super) fn end_session(&self, asked: &HeaderMap, server: &str) {
        if let Some(id) = asked.get(SESSION_ID) {
            self.state.sessions.remove(server, id.as_bytes());
            if let Ok(session) = id.to_str() {
                self.state.governor.server_requests.session_ended(server, session);
            }
        }
    }

    /// A future that is done when the sidecar stops.
    pub(super) fn stop(&self) -> Stop {
        let mut stopping = self.state.stopping.clone();
        Box::pin(async move {
            // An error says that nobody can stop it any more: then it goes on.
            if stopping.wait_for(|stopping| *stopping).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
