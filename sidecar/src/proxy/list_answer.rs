//! The answer to a request for a list that is no stream of events: read whole, and shown as far as its entries may be used.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, response::Parts};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    body::ResponseBody,
    budget::{HeldBytes, NotRead, ReadError},
    failure::RequestFailure,
    legacy::OpenLegacyStream,
    pages::{PageFiller, PagesByPost},
    representation::is_json,
    request_guard::ServerGuard,
    response_kind::{ListContext, ResponseKind},
    state::Proxy,
    stream_lists::PostContext,
};
use crate::{
    in_force::ServerInForce,
    lists::{self, ListRequest, Page},
    mcp::{
        edits::Filtered,
        id::is_same_id,
        list::ListAnswer,
        sse::{spells_ask, spells_list},
    },
};

/// Returns true for bytes that are text to all: UTF-8 without a NUL, which a text of two bytes for each character has.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && memchr::memchr(0, bytes).is_none()
}

impl Proxy {
    /// Reads the answer to a request for a list to its end.
    async fn read_list(&self, body: Incoming, at: &mut ServerGuard<'_, '_>) -> Result<(Bytes, HeldBytes), RequestFailure> {
        let before = Instant::now();
        let read = timeout(self.state.limits.first_byte, self.state.budget.read(body, self.state.limits.body)).await;
        at.waited_since(before);
        match read {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(NotRead { why: ReadError::TooLarge, .. })) => {
                Err(at.invalid(format!("the list is larger than {} bytes; raise --max-body", self.state.limits.body)))
            }
            Ok(Err(NotRead { why: ReadError::NoRoom, .. })) => Err(RequestFailure::Overloaded),
            Ok(Err(NotRead { why: ReadError::Sender, .. })) => Err(RequestFailure::Upstream(at.server.name.clone())),
            Err(_) => Err(RequestFailure::Timeout(at.server.name.clone())),
        }
    }

    /// Reads an answer with a list and shows of it what may be used. With `any` it may be something else: an error passes
    /// whatever it is, unless some client could find a list in it. A page that comes empty is filled.
    pub(super) async fn list(
        &self,
        body: Incoming,
        parts: &Parts,
        any: bool,
        asked: &HeaderMap,
        kind: &ResponseKind<'_>,
        at: &mut ServerGuard<'_, '_>,
    ) -> Result<ResponseBody, RequestFailure> {
        let (bytes, held) = self.read_list(body, at).await?;
        if bytes.is_empty() {
            return Ok(ResponseBody::whole(bytes));
        }
        if !is_json(&parts.headers) && !any {
            return Err(at.invalid("the list is neither JSON nor an event stream".to_owned()));
        }
        // For what stays of it.
        let Ok(room) = self.state.budget.hold(bytes.len()).await else { return Err(RequestFailure::Overloaded) };
        let lists = self.lists(&at.server);
        let mut read = lists.read(&bytes, None);
        let judged;
        // What is no list that can be read may ask for something all the same.
        if read.as_ref().map_or_else(|_| spells_ask(&bytes), |read| read.asks)
            && let Some(new) = self.judge_list(&bytes, parts, asked, at).await?
        {
            judged = new;
            read = lists.read(&judged, None);
            if let Ok(ListAnswer { filtered: Filtered::Same, .. }) = read {
                return Ok(ResponseBody::held(judged.clone(), room));
            }
        }
        let listing = |read: &ListAnswer<'_>| {
            let ResponseKind::List(Some(listing)) = kind else { return None };
            read.page.filter(|page| is_same_id(page.id, listing.id.as_str())).map(|_| *listing)
        };
        match read.map(|read| (listing(&read), Page::emptied(read))) {
            Ok((Some(listing), Ok(page))) => {
                drop((bytes, held));
                Ok(self.fill(page, room, listing, asked, at).await)
            }
            Ok((None, Ok(page))) => Ok(ResponseBody::held(page.message, room)),
            Ok((_, Err(Filtered::Same))) => Ok(ResponseBody::held(bytes, held)),
            Ok((_, Err(Filtered::Edited(edited)))) => Ok(ResponseBody::held(edited, room)),
            Err(_) if any && !spells_list(&bytes) && is_text(&bytes) => Ok(ResponseBody::held(bytes, held)),
            Err(error) => Err(at.invalid(format!("the list {error}"))),
        }
    }

    /// Goes on from a page that came empty until one has an entry.
    async fn fill(
        &self,
        mut page: Page,
        mut room: HeldBytes,
        listing: ListContext<'_>,
        headers: &HeaderMap,
        at: &mut ServerGuard<'_, '_>,
    ) -> ResponseBody {
        room.shrink(page.message.len());
        page.held = Some(room);
        if let Some(asked) = ListRequest::new(listing.id, listing.request) {
            let mut pages =
                PagesByPost::new(self.clone(), PostContext::new(headers, listing.url, &at.server), self.lists(&at.server));
            let before = Instant::now();
            page = lists::fill(&asked, page, &mut pages, (before + self.state.limits.first_byte).into()).await;
            at.waited_since(before);
        }
        match page.held {
            Some(held) => ResponseBody::held(page.message, held),
            None => ResponseBody::whole(page.message),
        }
    }

    /// The filler of pages that come empty in a stream of events.
    pub(super) fn page_filler(
        &self,
        kind: &ResponseKind<'_>,
        open: Option<&OpenLegacyStream>,
        asked: &HeaderMap,
        server: &Arc<ServerInForce>,
    ) -> Option<PageFiller> {
        let (proxy, lists) = (self.clone(), self.lists(server));
        match (kind, open) {
            (ResponseKind::List(Some(ListContext { id, request, url })), _) => {
                let own = ListRequest::new(*id, request).zip(PostContext::kept(asked, url, server, &self.state.budget))?;
                Some(PageFiller::of_answer(proxy, lists, own))
            }
            (_, Some(open)) => Some(PageFiller::of_stream(proxy, lists, Arc::clone(open.lists()))),
            _ => None,
        }
    }
}
