//! What the lists of one server said of its tools: pure, times are arguments.
//!
//! A listing is all pages until one without a cursor passes. Within it, different definitions of one tool add up, since the client has them
//! all; the first page of the next replaces them. A listing that nobody ends is over after a minute.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use toolweir_crds::bounds;
use toolweir_engine::SeenTool;
use toolweir_pins::sha256;

use super::definition::{EntryDigest, KeptDefinition};
use crate::mcp::list::ListEntry;

/// The most tools of one server.
pub const MOST_TOOLS: usize = 1024;
/// The most different definitions of one tool. Where a listing has more, the tool can be anything.
const MOST_DEFINITIONS: usize = 4;
/// The most bytes of texts that are kept of one server's tools, as JSON writes them.
pub const MOST_TEXTS: usize = 512 * 1024;
/// The time that a listing may take, from its first page to its last.
const LISTING: Duration = Duration::from_secs(60);
/// The time for which a tool is remembered that listings leave out. Servers may show different clients different tools.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The tools that decisions read, by name.
pub type ToolsByName = HashMap<Box<str>, Arc<SeenTool>>;

/// A tool that a list had.
#[derive(Clone, Debug)]
pub struct KnownTool {
    /// Its definitions, each with the number of the listing that had it last.
    definitions: SmallVec<[(KeptDefinition, u64); 1]>,
    listed_at: Instant,
    knowledge: Knowledge,
    seen: Arc<SeenTool>,
}

/// How much what is known of a tool is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// A list of this run had it, and the server has not said since that its list changed. Decisions read it.
    Listed,
    /// A list of an earlier run had it. No drift is forgotten; but the server may have changed while nobody looked, so that what allows a call
    /// has to be listed again.
    Kept,
    /// The server has said that its list changed.
    Outdated,
}

impl KnownTool {
    fn new(definition: KeptDefinition, listing: u64, now: Instant) -> Self {
        let seen = Arc::new(SeenTool::new(definition.class, definition.digests));
        Self { definitions: SmallVec::from_iter([(definition, listing)]), listed_at: now, knowledge: Knowledge::Listed, seen }
    }

    /// A tool with the definitions that were kept; none where there are none.
    pub fn restored(definitions: Vec<KeptDefinition>, knowledge: Knowledge, now: Instant) -> Option<Self> {
        let mut definitions = definitions.into_iter().take(MOST_DEFINITIONS);
        let mut tool = Self::new(definitions.next()?, 0, now);
        tool.definitions.extend(definitions.map(|definition| (definition, 0)));
        tool.knowledge = knowledge;
        tool.refresh();
        Some(tool)
    }

    /// Returns its definitions.
    pub fn definitions(&self) -> impl Iterator<Item = &KeptDefinition> {
        self.definitions.iter().map(|(definition, _)| definition)
    }

    /// Returns true where it is what its server listed last, in this run or in an earlier one.
    pub fn is_last(&self) -> bool {
        self.knowledge != Knowledge::Outdated
    }

    fn is_known(&self) -> bool {
        self.knowledge == Knowledge::Listed
    }

    /// Returns what decisions read.
    pub fn seen(&self) -> &Arc<SeenTool> {
        &self.seen
    }

    /// Makes `seen` of the definitions. Returns true where it is another.
    fn refresh(&mut self) -> bool {
        let mut seen: Option<SeenTool> = None;
        for (KeptDefinition { class, digests, .. }, _) in &self.definitions {
            match &mut seen {
                None => seen = Some(SeenTool::new(*class, *digests)),
                Some(seen) => seen.add(*class, *digests),
            }
        }
        let Some(seen) = seen.filter(|seen| *seen != *self.seen) else { return false };
        self.seen = Arc::new(seen);
        true
    }

    /// Returns true where a listing had it.
    fn is_of(&self, listing: u64) -> bool {
        self.definitions.iter().any(|(_, listed)| *listed == listing)
    }

    /// Returns true where the listing before had it in several ways. Whoever asks for its first page alone must not choose one of them, so
    /// all count until the next listing has ended.
    fn is_ambiguous(&self) -> bool {
        self.definitions.len() > 1
    }

    /// Takes the text of an entry that was read before. Returns false for any other; else whether it changes what is known.
    fn meet(&mut self, entry: EntryDigest, with_texts: bool, listing: u64) -> Option<bool> {
        let was_known = self.is_known();
        let goes_on = was_known && (self.is_of(listing) || self.is_ambiguous());
        let met = self.definitions.iter_mut().find(|(definition, _)| definition.entry == Some(entry))?;
        if with_texts && !met.0.has_texts {
            return None;
        }
        met.1 = listing;
        if goes_on {
            return Some(false);
        }
        // What earlier listings had is gone.
        self.knowledge = Knowledge::Listed;
        self.definitions.retain(|(_, listed)| *listed == listing);
        Some(self.refresh() || !was_known)
    }

    /// Takes a definition that another text had.
    fn add(&mut self, definition: KeptDefinition, listing: u64) {
        if !(self.is_known() && (self.is_of(listing) || self.is_ambiguous())) {
            self.definitions = SmallVec::from_iter([(definition, listing)]);
            self.knowledge = Knowledge::Listed;
            return;
        }
        let same = |(known, _): &(KeptDefinition, u64)| known.digests == definition.digests && known.class == definition.class;
        let full = self.definitions.len() >= MOST_DEFINITIONS;
        if let Some(known) = self.definitions.iter().position(same).and_then(|at| self.definitions.get_mut(at)) {
            *known = (definition, listing);
        } else if !full {
            self.definitions.push((definition, listing));
        } else if let Some(last) = self.definitions.last_mut() {
            *last = (KeptDefinition::unreadable(None), listing);
        }
    }
}

/// What a page has changed.
#[derive(Debug, Default)]
pub struct PageChanges {
    /// The tools with a definition that was not seen before, other notations aside.
    pub new: BTreeSet<Box<str>>,
    /// Decisions read something else than before.
    pub seen: bool,
    /// Something else is to be kept than before.
    pub kept: bool,
    /// There was no room for a tool, for the first time since a listing fitted.
    pub is_full: bool,
}

/// The tools of one server.
#[derive(Debug, Default)]
pub struct ToolBook {
    tools: HashMap<Box<str>, KnownTool>,
    /// The number of the listing that goes on, or went on last.
    listing: u64,
    /// When the listing began that goes on.
    began: Option<Instant>,
    /// There was no room for a tool of the listing that goes on.
    refused: bool,
    /// There was no room in the listing before, or in this one.
    is_full: bool,
    /// The bytes of texts that are kept.
    texts: usize,
    changes: PageChanges,
}

impl ToolBook {
    /// Begins a page.
    pub fn begin_page(&mut self, now: Instant) {
        if self.began.is_some_and(|began| now.saturating_duration_since(began) > LISTING) {
            self.end_listing(now);
        }
        if self.began.is_none() {
            self.listing += 1;
            self.began = Some(now);
        }
    }

    /// Ends a page; `more` is true where another follows. Returns what it has changed.
    pub fn end_page(&mut self, more: bool, now: Instant) -> PageChanges {
        if !more {
            self.end_listing(now);
        }
        if self.changes.kept {
            self.texts = self.tools.values().flat_map(KnownTool::definitions).map(KeptDefinition::text_bytes).sum();
        }
        std::mem::take(&mut self.changes)
    }

    /// Learns an entry of a page. `take_room` gives room for another tool beside so many, if there is some.
    pub fn learn(&mut self, entry: &ListEntry<'_>, with_texts: bool, take_room: &dyn Fn(usize) -> bool, now: Instant) {
        let text = sha256(entry.text);
        let mut definition = None;
        for name in entry.names.iter().filter(|name| (1..=bounds::TOOL_NAME).contains(&name.len())) {
            if let Some(tool) = self.tools.get_mut(&**name)
                && let Some(changed) = tool.meet(text, with_texts, self.listing)
            {
                tool.listed_at = now;
                self.changes.seen |= changed;
                self.changes.kept |= changed;
                continue;
            }
            let read = || {
                if entry.is_plain {
                    KeptDefinition::read(entry.text, text, with_texts)
                } else {
                    KeptDefinition::unreadable(Some(text))
                }
            };
            let definition = definition.get_or_insert_with(read).clone();
            self.add(name, definition, take_room, now);
        }
    }

    fn add(&mut self, name: &str, mut definition: KeptDefinition, take_room: &dyn Fn(usize) -> bool, now: Instant) {
        if self.texts + definition.text_bytes() > MOST_TEXTS {
            definition.drop_texts();
        }
        let texts_of = |tool: &KnownTool| tool.definitions().map(KeptDefinition::text_bytes).sum::<usize>();
        if let Some(tool) = self.tools.get_mut(name) {
            let before = texts_of(tool);
            let is_new = !tool.definitions().any(|known| known.digests == definition.digests);
            let was_known = tool.is_known();
            tool.add(definition, self.listing);
            tool.listed_at = now;
            self.texts = self.texts.saturating_sub(before) + texts_of(tool);
            self.changes.seen |= tool.refresh() || !was_known;
            if is_new {
                self.changes.new.insert(name.into());
            }
        } else if self.tools.len() < MOST_TOOLS && take_room(self.tools.len()) {
            let tool = KnownTool::new(definition, self.listing, now);
            self.texts += texts_of(&tool);
            self.tools.insert(name.into(), tool);
            self.changes.new.insert(name.into());
            self.changes.seen = true;
        } else {
            self.changes.is_full |= !std::mem::replace(&mut self.is_full, true);
            self.refused = true;
            return;
        }
        self.changes.kept = true;
    }

    /// Ends the listing: what it left out of the tools that it had is gone.
    fn end_listing(&mut self, now: Instant) {
        if self.began.take().is_none() {
            return;
        }
        self.is_full = std::mem::take(&mut self.refused);
        let (listing, before) = (self.listing, self.tools.len());
        for tool in self.tools.values_mut().filter(|tool| tool.definitions.len() > 1) {
            if tool.definitions.iter().any(|(_, listed)| *listed == listing) {
                tool.definitions.retain(|(_, listed)| *listed == listing);
                self.changes.seen |= tool.refresh();
            }
        }
        self.tools.retain(|_, tool| now.saturating_duration_since(tool.listed_at) <= REMEMBERED);
        self.changes.seen |= self.tools.len() < before;
        self.changes.kept |= self.changes.seen;
    }

    /// The server's list has changed: nothing is known until it is listed again. Returns true where something was known.
    pub fn list_changed(&mut self) -> bool {
        self.began = None;
        let mut changed = false;
        for tool in self.tools.values_mut() {
            changed |= std::mem::replace(&mut tool.knowledge, Knowledge::Outdated) != Knowledge::Outdated;
        }
        changed
    }

    /// Takes a tool that was kept by an earlier run, unless a list had it in this one.
    pub fn restore(&mut self, name: &str, tool: KnownTool, take_room: &dyn Fn(usize) -> bool) {
        if !self.tools.contains_key(name) && self.tools.len() < MOST_TOOLS && take_room(self.tools.len()) {
            self.texts += tool.definitions().map(KeptDefinition::text_bytes).sum::<usize>();
            self.tools.insert(name.into(), tool);
        }
    }

    /// Returns how many tools it has.
    pub fn count(&self) -> usize {
        self.tools.len()
    }

    /// Returns the bytes of texts that are kept.
    pub fn texts(&self) -> usize {
        self.texts
    }

    /// Forgets all tools.
    pub fn forget(&mut self) {
        *self = Self { listing: self.listing, ..Self::default() };
    }

    /// Returns a tool that a list of this run had, and that is known since.
    pub fn known(&self, name: &str) -> Option<&KnownTool> {
        self.tools.get(name).filter(|tool| tool.is_known())
    }

    /// Returns all tools, by name, also those whose list has changed since.
    pub fn tools(&self) -> Vec<(&str, &KnownTool)> {
        let mut tools: Vec<(&str, &KnownTool)> = self.tools.iter().map(|(name, tool)| (&**name, tool)).collect();
        tools.sort_unstable_by_key(|(name, _)| *name);
        tools
    }

    /// Returns the tools of which so much is known.
    pub fn seen(&self, knowledge: Knowledge) -> ToolsByName {
        let of = self.tools.iter().filter(|(_, tool)| tool.knowledge == knowledge);
        of.map(|(name, tool)| (name.clone(), Arc::clone(&tool.seen))).collect()
    }
}

#[cfg(test)]
mod tests;
