//! The tools of one server, for those who list them and for those who decide on calls.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use toolweir_crds::seen::ToolDrift;
use toolweir_engine::SeenTool;

use super::book::{Knowledge, KnownTool, PageChanges, ToolBook, ToolsByName};
use crate::mcp::list::ListEntry;

/// The most tools of all servers together, beyond those for which each has room.
pub const MOST_IN_ALL: usize = 4096;
/// The tools for which each server has room, however many others list.
pub const OWN_ROOM: usize = 64;

/// The most pieces of drift of a server that are remembered as logged.
const MOST_TOLD: usize = 2048;

/// The most bytes of texts of all servers together, but for the page that passes.
pub const MOST_TEXTS_IN_ALL: usize = 2 * 1024 * 1024;

/// The most lines of the log on a server's drift in a minute.
const LINES_A_MINUTE: u32 = 64;
const LOG_MINUTE: Duration = Duration::from_secs(60);

/// How much of all servers is kept.
#[derive(Debug, Default)]
pub struct ToolCount {
    /// Tools beyond those for which each server has room.
    tools: AtomicUsize,
    /// Bytes of texts.
    texts: AtomicUsize,
}

impl ToolCount {
    /// Takes room for a tool. Returns false where there is none.
    pub fn take(&self) -> bool {
        let one_more = |count: usize| (count < MOST_IN_ALL).then_some(count + 1);
        self.tools.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn give_back(&self, tools: usize) {
        self.tools.fetch_sub(tools, Ordering::Relaxed);
    }

    fn has_room_for_texts(&self) -> bool {
        self.texts.load(Ordering::Relaxed) < MOST_TEXTS_IN_ALL
    }
}

/// The tools of one server, as its lists said last.
#[derive(Debug)]
pub struct ToolsOfServer {
    /// Read by every call, without a lock.
    seen: ArcSwap<ToolsByName>,
    /// What an earlier run saw and this one did not yet. No drift of it is forgotten.
    kept: ArcSwap<ToolsByName>,
    /// Locked while a page of a list is read.
    book: Mutex<ToolBook>,
    count: Arc<ToolCount>,
    /// How often the server has said that its list has changed.
    list_changes: AtomicU64,
    /// What is kept on disk is not this.
    is_unsaved: AtomicBool,
    /// The drift that was logged.
    told: Mutex<HashSet<String>>,
    /// When the present minute of the log began, and the lines of drift in it.
    logged: Mutex<Option<(Instant, u32)>>,
    /// The bytes of texts that are counted.
    texts: AtomicUsize,
}

impl ToolsOfServer {
    /// Makes a server of which nothing is known.
    pub fn new(count: &Arc<ToolCount>) -> Self {
        Self {
            seen: ArcSwap::default(),
            kept: ArcSwap::default(),
            book: Mutex::default(),
            count: Arc::clone(count),
            list_changes: AtomicU64::new(0),
            is_unsaved: AtomicBool::new(false),
            told: Mutex::default(),
            logged: Mutex::default(),
            texts: AtomicUsize::new(0),
        }
    }

    /// Returns what is known of a tool.
    pub fn get(&self, tool: &str) -> Option<Arc<SeenTool>> {
        self.seen.load().get(tool).cloned()
    }

    /// Returns what an earlier run saw last of a tool that no list of this one had.
    pub fn kept(&self, tool: &str) -> Option<Arc<SeenTool>> {
        self.kept.load().get(tool).cloned()
    }

    /// Publishes what the book has for those who decide on calls.
    fn publish(&self, book: &ToolBook) {
        self.seen.store(Arc::new(book.seen(Knowledge::Listed)));
        self.kept.store(Arc::new(book.seen(Knowledge::Kept)));
    }

    /// Begins a page of a list. Others wait until it is read.
    pub fn begin_page(&self, with_texts: bool, now: Instant) -> ListedPage<'_> {
        let mut book = self.book();
        book.begin_page(now);
        let with_texts = with_texts && self.count.has_room_for_texts();
        ListedPage { tools: self, book, with_texts, now }
    }

    /// The server says that its list has changed: nothing is known of its tools until they are listed again. Returns true where something
    /// was known.
    pub fn list_changed(&self) -> bool {
        self.list_changes.fetch_add(1, Ordering::AcqRel);
        let mut book = self.book();
        let changed = book.list_changed();
        if changed {
            self.is_unsaved.store(true, Ordering::Relaxed);
            self.publish(&book);
        }
        changed
    }

    /// Returns how often the server has said so.
    pub fn list_changes(&self) -> u64 {
        self.list_changes.load(Ordering::Acquire)
    }

    /// Takes tools that an earlier run kept.
    pub fn restore(&self, tools: impl IntoIterator<Item = (String, KnownTool)>) {
        let mut book = self.book();
        for (name, tool) in tools {
            book.restore(&name, tool, &|count| self.take_room(count));
        }
        let count = book.count();
        self.settle(&book, count);
        self.publish(&book);
    }

    /// Counts what the book holds now; `before` is how many tools it had when room was last taken.
    fn settle(&self, book: &ToolBook, before: usize) {
        let beyond = |count: usize| count.saturating_sub(OWN_ROOM);
        self.count.give_back(beyond(before).saturating_sub(beyond(book.count())));
        let texts = book.texts();
        let before = self.texts.swap(texts, Ordering::Relaxed);
        self.count.texts.fetch_add(texts, Ordering::Relaxed);
        self.count.texts.fetch_sub(before, Ordering::Relaxed);
    }

    /// Takes room for another tool beside so many of the server. Returns false where there is none.
    fn take_room(&self, count: usize) -> bool {
        count < OWN_ROOM || self.count.take()
    }

    /// Forgets all tools, since no policy in force names the server, and gives their room to others. What is kept on disk stays there.
    pub fn forget(&self) {
        let mut book = self.book();
        let before = book.count();
        book.forget();
        self.settle(&book, before);
        self.publish(&book);
    }

    /// Returns true where it has changed since it was last kept on disk, and counts it as kept.
    pub fn take_unsaved(&self) -> bool {
        self.is_unsaved.swap(false, Ordering::Relaxed)
    }

    /// It could not be kept.
    pub fn set_unsaved(&self) {
        self.is_unsaved.store(true, Ordering::Relaxed);
    }

    /// Takes note of drift that is to be logged. Returns true where it was not logged before.
    pub fn tell(&self, drift: &ToolDrift, denies: bool) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST_TOLD {
            told.clear();
        }
        told.insert(format!("{denies} {} {:?} {:?}", drift.pins, drift.tool, drift.changes))
    }

    /// Returns true where another line on the server's drift may be written: a server that changes all the time does not fill the log.
    pub fn may_log(&self, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, lines) = logged.get_or_insert((now, 0));
        if now.saturating_duration_since(*began) >= LOG_MINUTE {
            (*began, *lines) = (now, 0);
        }
        *lines += 1;
        *lines <= LINES_A_MINUTE
    }

    /// Locks the book.
    pub fn book(&self) -> MutexGuard<'_, ToolBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of a list that is being read.
#[derive(Debug)]
pub struct ListedPage<'a> {
    tools: &'a ToolsOfServer,
    book: MutexGuard<'a, ToolBook>,
    with_texts: bool,
    now: Instant,
}

impl ListedPage<'_> {
    /// Learns an entry, before it is decided whether it is shown.
    pub fn learn(&mut self, entry: &ListEntry<'_>) {
        self.book.learn(entry, self.with_texts, &|count| self.tools.take_room(count), self.now);
    }

    /// Returns what is known of a tool, this page included.
    pub fn seen(&self, tool: &str) -> Option<&SeenTool> {
        self.book.known(tool).map(|tool| &**tool.seen())
    }

    /// Ends the page; `more` is true where another follows. From now on calls are decided by it.
    pub fn finish(mut self, more: bool) -> PageChanges {
        let before = self.book.count();
        let changes = self.book.end_page(more, self.now);
        self.tools.settle(&self.book, before);
        if changes.seen {
            self.tools.publish(&self.book);
        }
        if changes.kept {
            self.tools.set_unsaved();
        }
        changes
    }
}
