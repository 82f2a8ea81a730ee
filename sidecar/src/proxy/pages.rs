//! Pages of lists that the policies empty, filled from the next ones: as a client that asks for every page would, with
//! its own headers, over Streamable HTTP and HTTP+SSE.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{sync::mpsc, time::Instant};

use super::{
    budget::HeldBytes,
    legacy::LegacyStream,
    representation::{is_events, is_json, unreadable},
    server_answers::AnswerPath,
    state::Proxy,
    stream_judge::{StreamJudge, StreamPlace},
    stream_lists::{PostContext, StreamLists},
};
use crate::{
    lists::{self, ListRequest, Lists, Page, PageSource},
    mcp::{
        edits::Filtered,
        headers::SESSION_ID,
        id::{is_same_id, message_id},
        list::{ListAnswer, OwnRequest},
        sse::{self, EventVerdict, RewriteMode, Rewriter, SseError, SseEvent, spells_ask, spells_list},
    },
};

/// The most pages that are filled at once on one stream.
const MOST_FILLED: usize = 4;
/// The most events of other streams that wait for the client's.
const WAITING: usize = 4;
/// The largest message, in bytes, that takes no room.
const SMALL: usize = 16 * 1024;

/// Sends a request of the sidecar's own. None where the server does not accept it.
async fn send(proxy: &Proxy, posted: &PostContext, request: Vec<u8>) -> Option<Response<Incoming>> {
    let (sent, _) = proxy.exchange(&Method::POST, &posted.headers, posted.url.clone(), request.into(), &posted.server).await;
    sent.ok().filter(|response| response.status().is_success())
}

/// Pages of Streamable HTTP, each in the answer to its own POST.
#[derive(Debug)]
pub struct PagesByPost {
    proxy: Proxy,
    posted: PostContext,
    lists: Lists,
    /// The receiver of other messages of an answer, of up to [`SMALL`] bytes. They come without the id of their event: a client
    /// must not resume a stream that it never saw.
    others: Option<mpsc::Sender<Bytes>>,
}

impl PagesByPost {
    /// Pages that are asked for one after the other.
    pub fn new(proxy: Proxy, posted: PostContext, lists: Lists) -> Self {
        Self { proxy, posted, lists, others: None }
    }

    /// A page in an answer that is JSON.
    async fn in_json(&self, body: Incoming, own: OwnRequest<'_>) -> Option<Page> {
        let state = &self.proxy.state;
        let (bytes, _held) = state.budget.read(body, state.limits.body).await.ok()?;
        let mut room = state.budget.hold(bytes.len()).await.ok()?;
        let mut page = self.lists.page(&bytes, own)?;
        room.shrink(page.message.len());
        page.held = Some(room);
        Some(page)
    }

    /// A page in an answer that is a stream of events.
    async fn in_events(&self, mut body: Incoming, own: OwnRequest<'_>) -> Option<Page> {
        let state = &self.proxy.state;
        let mut rewriter = Rewriter::new(state.limits.body, RewriteMode::All);
        let (mut held, mut found, mut others): (Option<HeldBytes>, _, Vec<Bytes>) = (None, None, Vec::new());
        loop {
            let frame = body.frame().await.transpose().ok()?;
            let mut decide = |event: SseEvent<'_>| {
                self.lists.server_said(event.data);
                let room = |bytes| if bytes > SMALL { state.budget.try_hold(bytes).map(Some) } else { Some(None) };
                let _reading = room(event.data.len() * 2).ok_or(SseError::NoRoom)?;
                if is_answer(event.data, own.id)? {
                    found = Some(self.lists.page(event.data, own).and_then(|mut page| {
                        page.held = room(page.message.len())?;
                        Some(page)
                    }));
                } else if self.others.is_some() && !event.data.is_empty() && event.text.len() <= SMALL {
                    others.extend(self.other_event(event)?);
                }
                Ok(EventVerdict::Take)
            };
            let ended = frame.is_none();
            match frame.map(hyper::body::Frame::into_data) {
                Some(Ok(data)) => rewriter.push(&data, &mut decide).ok()?,
                Some(Err(_)) => continue,
                None => rewriter.finish(&mut decide).ok()?,
            };
            if rewriter.room() > held.as_ref().map_or(0, HeldBytes::bytes) {
                // The room that there was comes free first.
                drop(held.take());
                held = Some(state.budget.try_hold(rewriter.room())?);
            }
            for other in others.drain(..) {
                self.others.as_ref()?.send(other).await.ok()?;
            }
            if found.is_some() || ended {
                return found.flatten();
            }
        }
    }

    /// An event of the stream that is not the page, as the client gets it; none where it does not.
    fn other_event(&self, event: SseEvent<'_>) -> Result<Option<Bytes>, SseError> {
        let mut judged = None;
        if spells_ask(event.data) {
            match self.judge(event) {
                EventVerdict::Pass => {}
                EventVerdict::Replace(data) => judged = Some(data),
                EventVerdict::Take | EventVerdict::TakeData => return Ok(None),
            }
        }
        let data = judged.as_deref().unwrap_or(event.data);
        if spells_list(data)
            && let Filtered::Edited(data) = self.lists.read(data, None).map_err(|_| SseError::Unreadable)?.filtered
        {
            return Ok(Some(sse::with_data(event.text, &data, false)));
        }
        Ok(Some(judged.map_or_else(|| sse::without_id(event.text), |data| sse::with_data(event.text, &data, false))))
    }

    /// Judges what the server asks for beside a page. There is nobody who could wait for a decision: what would have to wait does not pass.
    fn judge(&self, event: SseEvent<'_>) -> EventVerdict {
        let PostContext { headers, server, .. } = &self.posted;
        let session = headers.get(SESSION_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let path = AnswerPath::new(headers, None, server, &self.proxy.state.budget);
        let mut judge = StreamJudge::new(self.proxy.clone(), &server.name, session, path);
        judge.event(event, StreamPlace { stream: None, endpoint: None, call: None })
    }
}

/// Returns true where a message is the answer to the sidecar's request with this id.
fn is_answer(message: &[u8], own: &str) -> Result<bool, SseError> {
    if memchr::memmem::find(message, own.as_bytes()).is_none() {
        return Ok(false);
    }
    let id = message_id(message).map_err(|_| SseError::Unreadable)?;
    Ok(id.is_some_and(|id| id.string().is_ok_and(|id| id.as_deref() == Some(own))))
}

impl PageSource for PagesByPost {
    async fn page(&mut self, request: Vec<u8>, own: OwnRequest<'_>) -> Option<Page> {
        let (parts, body) = send(&self.proxy, &self.posted, request).await?.into_parts();
        if unreadable(&parts.headers).is_some() {
            return None;
        }
        if is_events(&parts.headers) {
            return self.in_events(body, own).await;
        }
        if is_json(&parts.headers) { self.in_json(body, own).await } else { None }
    }
}

/// Pages of HTTP+SSE, which come on the client's stream.
#[derive(Debug)]
pub struct PagesByStream {
    proxy: Proxy,
    posted: PostContext,
    on: Arc<StreamLists>,
}

impl PageSource for PagesByStream {
    async fn page(&mut self, request: Vec<u8>, own: OwnRequest<'_>) -> Option<Page> {
        let page = self.on.expected.expect(own)?;
        drop(send(&self.proxy, &self.posted, request).await?);
        page.await.ok()?
    }
}

/// Pages that no client asked for and no client gets.
#[derive(Debug)]
pub enum OwnPages {
    /// Those of Streamable HTTP.
    Post(PagesByPost),
    /// Those of HTTP+SSE.
    Stream(PagesByStream),
}

impl OwnPages {
    /// Pages for a client that may have an HTTP+SSE stream.
    ///
    /// Other messages come with them. On the stream of HTTP+SSE the client gets those. Beside a page of Streamable HTTP there is no
    /// stream of the client's to put them on: its POST is the call's, whose answer has not begun and may be JSON; and by MCP what a
    /// server sends there is about the request, of which the client knows nothing. So they go nowhere, but for what they say of the
    /// list. A server that first waits for an answer of the client does not get it, and the list runs out of time.
    pub fn new(proxy: Proxy, posted: PostContext, stream: Option<&LegacyStream>) -> Self {
        match stream {
            Some(stream) => Self::Stream(PagesByStream { proxy, posted, on: Arc::clone(&stream.lists) }),
            None => {
                let lists = proxy.lists(&posted.server);
                Self::Post(PagesByPost::new(proxy, posted, lists))
            }
        }
    }
}

impl PageSource for OwnPages {
    async fn page(&mut self, request: Vec<u8>, own: OwnRequest<'_>) -> Option<Page> {
        match self {
            Self::Post(pages) => pages.page(request, own).await,
            Self::Stream(pages) => pages.page(request, own).await,
        }
    }
}

/// A page that is being filled, and the event that brings it.
struct FillingPage {
    page: Pin<Box<dyn Future<Output = Page> + Send>>,
    /// The event of the page that the client asked for, without its data.
    event: Bytes,
    /// Nothing has passed since that came, so that its id still says where the client is.
    resumable: bool,
    _room: HeldBytes,
}

/// Fills the pages that come empty on a stream of events.
pub struct PageFiller {
    proxy: Proxy,
    lists: Lists,
    /// The request of which this is the answer.
    own: Option<(ListRequest, PostContext)>,
    /// The lists of the stream, if it can be one of HTTP+SSE.
    on: Option<Arc<StreamLists>>,
    filled: Vec<FillingPage>,
    ready: VecDeque<(Bytes, Option<HeldBytes>)>,
    others: (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>),
}

impl PageFiller {
    /// For the answer to this request.
    pub fn of_answer(proxy: Proxy, lists: Lists, own: (ListRequest, PostContext)) -> Self {
        Self { own: Some(own), ..Self::new(proxy, lists) }
    }

    /// For a stream that can be of the HTTP+SSE transport.
    pub fn of_stream(proxy: Proxy, lists: Lists, on: Arc<StreamLists>) -> Self {
        Self { on: Some(on), ..Self::new(proxy, lists) }
    }

    fn new(proxy: Proxy, lists: Lists) -> Self {
        Self { proxy, lists, own: None, on: None, filled: Vec::new(), ready: VecDeque::new(), others: mpsc::channel(WAITING) }
    }

    /// Takes an event that has come. Returns true where it answers a request of the sidecar's own: the client does not get it.
    pub fn take_own_answer(&mut self, data: &[u8]) -> bool {
        let budget = &self.proxy.state.budget;
        let room = |bytes| if bytes > SMALL { budget.try_hold(bytes).map(Some) } else { Some(None) };
        if self.on.as_ref().is_some_and(|on| on.expected.answered(data, &self.lists, room)) {
            return true;
        }
        for filled in &mut self.filled {
            filled.resumable = false;
        }
        false
    }

    /// Takes the event of a list that was read: if its page came empty, it is filled, and the client gets it later.
    pub fn begin(&mut self, event: SseEvent<'_>, read: ListAnswer<'_>) -> EventVerdict {
        let id = read.page.map(|page| page.id);
        let found = id.and_then(|id| match (&self.own, &self.on) {
            (Some((asked, _)), _) => {
                if is_same_id(id, &asked.id) {
                    self.own.take()
                } else {
                    None
                }
            }
            (None, Some(on)) => on.asked.take(id),
            (None, None) => None,
        });
        let page = match Page::emptied(read) {
            Ok(page) => page,
            Err(Filtered::Edited(new)) => return EventVerdict::Replace(new),
            Err(Filtered::Same) => return EventVerdict::Pass,
        };
        let state = &self.proxy.state;
        let frame = sse::with_data(event.text, b"", true);
        let room = state.budget.try_hold(page.message.len() + frame.len());
        let (Some((asked, posted)), Some(room)) = (found.filter(|_| self.filled.len() < MOST_FILLED), room) else {
            return EventVerdict::Replace(page.message.into());
        };
        let until = Instant::now() + state.limits.first_byte;
        let proxy = self.proxy.clone();
        let page: Pin<Box<dyn Future<Output = Page> + Send>> = match &self.on {
            Some(on) => {
                let mut pages = PagesByStream { proxy, posted, on: Arc::clone(on) };
                Box::pin(async move { lists::fill(&asked, page, &mut pages, until).await })
            }
            None => {
                let mut pages =
                    PagesByPost { others: Some(self.others.0.clone()), ..PagesByPost::new(proxy, posted, self.lists.clone()) };
                Box::pin(async move { lists::fill(&asked, page, &mut pages, until).await })
            }
        };
        self.filled.push(FillingPage { page, event: frame, resumable: true, _room: room });
        EventVerdict::Take
    }

    /// Goes on with the pages that are being filled.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        let mut at = 0;
        while let Some(filled) = self.filled.get_mut(at) {
            let Poll::Ready(page) = filled.page.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            let filled = self.filled.swap_remove(at);
            self.ready.push_back((sse::with_data(&filled.event, &page.message, filled.resumable), page.held));
        }
    }

    /// The next event for the client, to be put between two of its stream, and the room that it takes.
    pub fn event(&mut self, context: &mut Context<'_>) -> Option<(Bytes, Option<HeldBytes>)> {
        match self.others.1.poll_recv(context) {
            Poll::Ready(Some(other)) => Some((other, None)),
            _ => self.ready.pop_front(),
        }
    }

    /// Returns true where nothing is to come.
    pub fn is_done(&self) -> bool {
        self.filled.is_empty() && self.ready.is_empty() && self.others.1.is_empty()
    }
}
