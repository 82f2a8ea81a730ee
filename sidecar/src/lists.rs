//! Lists of tools, prompts, resources and tasks on their way to a client, whatever carries them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use toolweir_crds::OperationKind;
use toolweir_engine::{
    Operation, SeenTool,
    json::{JsonError, Raw},
};

use crate::{
    governor::Governor,
    in_force::{InForce, ServerInForce},
    mcp::{
        changes::is_list_changed,
        edits::Filtered,
        id::{is_same_id, message_id},
        list::{self, ListAnswer, ListPage, OwnRequest, Rules},
        list_kind::ListKind,
        page_request,
    },
    outcome::ListingEnd,
    proxy::budget::HeldBytes,
    seen_tools::{ToolsOfServer, tools_of_server::ListedPage},
};

/// The time for which a client may keep a list, unless said otherwise. So long an agent may see what a policy allows that is no longer in
/// force.
pub const TTL: Duration = Duration::from_secs(5);

/// The most resource templates of one answer that are looked at, as each is compared with every entry. Others are not shown.
const MOST_TEMPLATES: usize = 512;

/// Shows of the lists of one server what may be used.
#[derive(Clone, Debug)]
pub struct Lists {
    governor: Arc<Governor>,
    server: String,
    /// Milliseconds.
    ttl: u32,
}

impl Lists {
    /// Lists of a server, which a client may keep for `ttl`.
    pub fn of(governor: &Arc<Governor>, server: &str, ttl: Duration) -> Self {
        Self {
            governor: Arc::clone(governor),
            server: server.to_owned(),
            ttl: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// What decides.
    pub fn governor(&self) -> &Arc<Governor> {
        &self.governor
    }

    /// The server's name.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Shows of an answer what may be used now. `own` is the request of the sidecar's own whose answer it is.
    ///
    /// # Errors
    /// The answer is not strict JSON.
    pub fn read<'a>(&self, answer: &'a [u8], own: Option<OwnRequest<'_>>) -> Result<ListAnswer<'a>, JsonError> {
        let in_force = self.governor.in_force();
        let server = in_force.server(&self.server);
        let learning = server.and_then(|server| Some((server, server.tools_seen()?)));
        let is_for_nobody = own.is_some_and(|own| own.client_id.is_none());
        let mut page: Option<ListedPage<'_>> = None;
        let (rules, mut hidden, mut templates) = (Rules { ttl: self.ttl, own }, BTreeMap::new(), 0);
        let read = list::filter(answer, &rules, &mut |entry| {
            if let Some(learning) = learning.filter(|_| entry.list == ListKind::Tools) {
                page.get_or_insert_with(|| begin_page(learning)).learn(entry);
            }
            let mut stays = true;
            for name in entry.names {
                let seen = page.as_ref().filter(|_| entry.list == ListKind::Tools).and_then(|page| page.seen(name));
                let is_template = entry.list == ListKind::Templates;
                templates += usize::from(is_template);
                let is_too_many = is_template && templates > MOST_TEMPLATES;
                let shown = !is_too_many && self.may_use(&in_force, entry.list, name, seen);
                self.learn_name(entry.list, name);
                if !shown && !is_for_nobody {
                    *hidden.entry(entry.list).or_default() += 1;
                }
                stays &= shown;
            }
            stays
        });
        for (list, count) in hidden {
            self.governor.metrics.servers.hidden(&self.server, list).inc_by(count);
        }
        let found = read.as_ref().ok().and_then(|read| read.page).filter(|page| page.list == ListKind::Tools);
        // The last page of tools can be one without a tool.
        let page = page.or_else(|| found.and(learning).map(begin_page));
        if let Some((page, (server, _))) = page.zip(learning) {
            let ends = found.is_some_and(|page| page.next.is_none());
            self.governor.page_passed(&in_force, server, &page.finish(!ends));
        }
        read
    }

    /// Returns true where an entry of a list with this name, URI, URI template or id may be used. `seen` is what the list says of
    /// a tool.
    fn may_use(&self, in_force: &InForce, list: ListKind, name: &str, seen: Option<&SeenTool>) -> bool {
        let (engine, server) = (&in_force.engine, self.server.as_str());
        match list {
            ListKind::Tools => engine.may_use(server, Operation::tool(name), seen),
            ListKind::Prompts => engine.may_use(server, Operation::prompt(name), None),
            ListKind::Resources => engine.may_use(server, Operation::resource(name), None),
            ListKind::Templates => {
                let witness = engine.template_witness(server, name);
                engine.may_use(server, Operation::resource(witness.as_deref().unwrap_or(name)), None)
            }
            ListKind::Tasks => self.governor.tasks().find(server, name).is_some_and(|tool| {
                let seen = in_force.seen(server, &tool);
                engine.may_use(server, Operation::tool(&tool), seen.as_deref())
            }),
        }
    }

    /// Remembers a name that the server lists, where it is one that requests have.
    fn learn_name(&self, list: ListKind, name: &str) {
        let kind = match list {
            ListKind::Tools => OperationKind::Tool,
            ListKind::Prompts => OperationKind::Prompt,
            ListKind::Resources => OperationKind::Resource,
            ListKind::Templates | ListKind::Tasks => return,
        };
        self.governor.learn_name(&self.server, kind, name);
    }

    /// Takes note of a message of the server that is none of its lists.
    pub fn server_said(&self, message: &[u8]) {
        if is_list_changed(message) {
            self.governor.list_changed(&self.server);
        }
    }
}

/// Begins a page of a list of a server.
fn begin_page<'a>((server, tools): (&Arc<ServerInForce>, &'a Arc<ToolsOfServer>)) -> ListedPage<'a> {
    tools.begin_page(!server.pins.is_empty(), std::time::Instant::now())
}

/// The most pages of a list that are read for one request of a client, the one that it asked for included.
const MOST_PAGES: usize = 20;
/// The longest cursor with which a page is asked for, as it is written.
const LONGEST_CURSOR: usize = 4096;
/// The largest request that is kept to ask for further pages with.
pub const LARGEST_REQUEST: usize = 16 * 1024;
/// The most lists for which a client may wait on one stream and have all their pages filled.
const MOST_ASKED: usize = 4;
/// The most requests of the sidecar's own that may be without an answer on one stream.
const MOST_EXPECTED: usize = 64;

/// A client's request for a list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Its id, as it is written.
    pub id: String,
    /// The whole message.
    pub request: Bytes,
}

impl ListRequest {
    /// A request. None where it is too large to be kept.
    pub fn new(id: Raw<'_>, request: &Bytes) -> Option<Self> {
        (request.len() <= LARGEST_REQUEST).then(|| Self { id: id.as_str().to_owned(), request: request.clone() })
    }
}

/// A page of a list, as the client gets it.
#[derive(Debug)]
pub struct Page {
    /// The answer with it, under the client's id.
    pub message: Bytes,
    /// The room that it takes, where it is of a size to speak of.
    pub held: Option<HeldBytes>,
    /// True where it has an entry.
    shown: bool,
    next: Option<String>,
}

impl Page {
    /// The page that an answer holds, if every entry of it was cut out and another page follows; else what the client gets.
    pub fn emptied(read: ListAnswer<'_>) -> Result<Self, Filtered> {
        match (read.filtered, read.page) {
            (Filtered::Edited(message), Some(ListPage { entries: 1.., shown: 0, next: Some(next), .. })) => {
                Ok(Self::new(message, false, Some(next)))
            }
            (filtered, _) => Err(filtered),
        }
    }

    fn new(mut message: Vec<u8>, shown: bool, next: Option<Raw<'_>>) -> Self {
        // It was made with room for all that was cut out.
        message.shrink_to_fit();
        Self { message: message.into(), held: None, shown, next: next.map(|next| next.as_str().to_owned()) }
    }
}

impl Lists {
    /// The page in the answer to a request of the sidecar's own. None if the answer holds none. Of one that no client gets, there is no
    /// message.
    pub fn page(&self, answer: &[u8], own: OwnRequest<'_>) -> Option<Page> {
        let read = self.read(answer, Some(own)).ok()?;
        let page = read.page.filter(|page| page.id.string().is_ok_and(|id| id.as_deref() == Some(own.id)))?;
        match (own.client_id, read.filtered) {
            (None, _) if page.list != ListKind::Tools => None,
            (None, _) => Some(Page::new(Vec::new(), page.shown > 0, page.next)),
            (Some(_), Filtered::Edited(message)) => Some(Page::new(message, page.shown > 0, page.next)),
            (Some(_), Filtered::Same) => None,
        }
    }
}

/// A source of further pages.
pub trait PageSource {
    /// Sends this request of the sidecar's own, whose ids are `own`, and waits for the page. None where no page comes.
    fn page(&mut self, request: Vec<u8>, own: OwnRequest<'_>) -> impl Future<Output = Option<Page>> + Send;
}

/// Goes on from an empty page until one has an entry, or none follows: some clients never ask for a second page. What cannot be
/// had within the bounds ends it with the page so far, whose cursor the client can go on from.
pub async fn fill(asked: &ListRequest, mut page: Page, pages: &mut impl PageSource, until: Instant) -> Page {
    let mut before: Vec<String> = Vec::new();
    while !page.shown && before.len() + 1 < MOST_PAGES {
        let next = page.next.take().and_then(|cursor| request_for(&asked.request, cursor, &mut before));
        let Some((id, request)) = next else { break };
        match timeout_at(until, pages.page(request, OwnRequest { id: &id, client_id: Some(&asked.id) })).await {
            Ok(Some(next)) => page = next,
            _ => break,
        }
    }
    page
}

/// Asks for every page of a list of tools, the first one with a message that `request` makes for an id, and lets each be learned from. No
/// client gets them.
pub async fn list_all(request: impl Fn(&str) -> Option<Vec<u8>>, pages: &mut impl PageSource, until: Instant) -> ListingEnd {
    let mut before: Vec<String> = Vec::new();
    let Some((id, first)) = own_id().and_then(|id| request(&id).map(|first| (id, Bytes::from(first)))) else {
        return ListingEnd::Failed;
    };
    if first.len() > LARGEST_REQUEST {
        return ListingEnd::Failed;
    }
    let (mut id, mut message) = (id, first.to_vec());
    while before.len() < MOST_PAGES {
        let page = match timeout_at(until, pages.page(message, OwnRequest { id: &id, client_id: None })).await {
            Ok(Some(page)) => page,
            Ok(None) => return ListingEnd::Failed,
            Err(_) => return ListingEnd::Timeout,
        };
        let Some(cursor) = page.next else { return ListingEnd::Complete };
        let Some(next) = request_for(&first, cursor, &mut before) else { break };
        (id, message) = next;
    }
    ListingEnd::Failed
}

/// The request for the page of a cursor, made of that for the first one, with its id. None where there is no asking for it: the cursor
/// is too long, or was asked for before. It becomes one of those.
fn request_for(first: &Bytes, cursor: String, before: &mut Vec<String>) -> Option<(String, Vec<u8>)> {
    if cursor.len() > LONGEST_CURSOR || before.contains(&cursor) {
        return None;
    }
    let id = own_id()?;
    let request = page_request::for_page(first, &id, &cursor)?;
    before.push(cursor);
    Some((id, request))
}

/// The prefix of the ids of the sidecar's own requests.
const OWN: &str = "toolweir-";

/// An id that is no client's: it has 128 random bits.
fn own_id() -> Option<String> {
    let mut random = [0_u8; 16];
    SystemRandom::new().fill(&mut random).ok()?;
    Some(format!("{OWN}{}", data_encoding::HEXLOWER.encode(&random)))
}

/// Lists that a client has asked for where answers are known by their id alone, with what is needed to ask for more: the oldest
/// are forgotten first.
#[derive(Debug)]
pub struct ListRequests<T>(Mutex<VecDeque<(ListRequest, T)>>);

impl<T> Default for ListRequests<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> ListRequests<T> {
    /// Keeps a request. Call it before it is sent: its answer can be quick.
    pub fn keep(&self, asked: ListRequest, with: T) {
        let mut kept = lock(&self.0);
        if kept.len() >= MOST_ASKED {
            kept.pop_front();
        }
        kept.push_back((asked, with));
    }

    /// The request with this id, which is forgotten.
    pub fn take(&self, id: Raw<'_>) -> Option<(ListRequest, T)> {
        let mut kept = lock(&self.0);
        let at = kept.iter().position(|(asked, _)| is_same_id(id, &asked.id))?;
        kept.remove(at)
    }
}

/// Requests of the sidecar's own where answers are known by their id alone. One that nobody waits for any more stays until its
/// answer comes, which no client gets.
#[derive(Debug, Default)]
pub struct ExpectedPages(Mutex<HashMap<String, PageWaiter>>);

#[derive(Debug)]
struct PageWaiter {
    /// The id that the page gets, as it is written; none where no client gets it.
    client_id: Option<String>,
    page: oneshot::Sender<Option<Page>>,
}

impl ExpectedPages {
    /// Expects the answer to a request. Call it before that is sent. Nothing where there are too many.
    pub fn expect(&self, own: OwnRequest<'_>) -> Option<oneshot::Receiver<Option<Page>>> {
        let (page, receiver) = oneshot::channel();
        let mut expected = lock(&self.0);
        if expected.len() >= MOST_EXPECTED {
            return None;
        }
        expected.insert(own.id.to_owned(), PageWaiter { client_id: own.client_id.map(str::to_owned), page });
        Some(receiver)
    }

    /// Takes a message of the server, and hands it to who waits for it; false where it answers no request of the sidecar's.
    /// `room` gives what a page of so many bytes takes, or nothing where there is no room.
    pub fn answered(&self, message: &[u8], lists: &Lists, room: impl FnOnce(usize) -> Option<Option<HeldBytes>>) -> bool {
        let Some((id, waiter)) = self.find(message) else { return false };
        let page = lists.page(message, OwnRequest { id: &id, client_id: waiter.client_id.as_deref() }).and_then(|mut page| {
            page.held = room(page.message.len())?;
            Some(page)
        });
        // Who waited may have given up.
        let _ = waiter.page.send(page);
        true
    }

    fn find(&self, message: &[u8]) -> Option<(String, PageWaiter)> {
        let mut expected = lock(&self.0);
        if expected.is_empty() || memchr::memmem::find(message, OWN.as_bytes()).is_none() {
            return None;
        }
        let id = match message_id(message) {
            Ok(id) => id?.string().ok()??.into_owned(),
            // It cannot be read, but it is the answer.
            Err(_) => expected.keys().find(|id| memchr::memmem::find(message, id.as_bytes()).is_some())?.clone(),
        };
        expected.remove_entry(&id)
    }

    /// No answer comes any more.
    pub fn close(&self) {
        lock(&self.0).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
