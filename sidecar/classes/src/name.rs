//! What the name of a tool says: its first verb, and what `and` and `or` add to it.

use std::ops::Range;

use toolweir_crds::ToolClass::{self, Read};

use crate::{
    lexicon::{self, Entry, Use},
    words::Word,
};

/// A verb that says what a tool does.
#[derive(Clone, Debug)]
pub struct Action {
    /// The verb's base form.
    pub verb: String,
    /// The class for which it speaks.
    pub class: ToolClass,
    /// Whether it says so beyond doubt. Where it does not, what else is said of the tool counts more.
    pub firm: bool,
    /// Where it stands in its text.
    pub span: Range<usize>,
}

/// Verbs that are no nouns, and change something.
const CHANGING: &str = "write modify insert upsert create rename append send publish deploy overwrite execute";

/// In names, a return is a thing that is sent back.
fn entry(word: &Word) -> Option<Entry> {
    lexicon::entry(&word.lower).filter(|_| word.lower != "return")
}

/// The actions of a name or a title. The first is the one that counts.
pub fn actions(words: &[Word]) -> Vec<Action> {
    let known = || words.iter().enumerate().filter_map(|(at, word)| Some((at, entry(word)?)));
    let Some((at, found)) = known().find(|(at, entry)| is_verb(words, *at, *entry)).map(|first| main_verb(first, known())) else {
        let noun = known().next_back().and_then(|(at, _)| words.get(at));
        return noun.map(|word| action(word, Read, false)).into_iter().collect();
    };
    let Some(word) = words.get(at) else { return Vec::new() };
    let behind = words.get(at + 1..).unwrap_or_default();
    let class = with_object(word, behind);
    let firm = matches!(found.usage, Use::Verb | Use::Firm) || class.is_some();
    let mut actions = vec![action(word, class.unwrap_or(found.class), firm)];
    actions.extend(more(word, found, behind));
    actions
}

fn is_verb(words: &[Word], at: usize, entry: Entry) -> bool {
    match entry.usage {
        Use::Noun => false,
        Use::Light => words.get(at).is_some_and(|word| with_object(word, words.get(at + 1..).unwrap_or_default()).is_some()),
        Use::Verb | Use::Firm | Use::Loose | Use::Mild => true,
    }
}

/// The class of a verb with its object: `by`, `in` and the like end that.
fn with_object(verb: &Word, behind: &[Word]) -> Option<ToolClass> {
    let words = behind.iter().map(|word| word.lower.as_str());
    let object = words.enumerate().take_while(|(at, word)| *at == 0 || !lexicon::among("by for from in on to with", word));
    lexicon::with_object(&verb.lower, &object.map(|(_, word)| word))
}

fn action(word: &Word, class: ToolClass, firm: bool) -> Action {
    Action { verb: word.lower.clone(), class, firm, span: word.span.clone() }
}

/// `issue_write` writes and `post_search` searches: a noun gives way to a verb behind it.
fn main_verb(first: (usize, Entry), mut known: impl Iterator<Item = (usize, Entry)>) -> (usize, Entry) {
    if first.1.usage != Use::Loose {
        return first;
    }
    let verb = known.find(|(at, entry)| *at > first.0 && matches!(entry.usage, Use::Verb | Use::Firm));
    verb.unwrap_or(first)
}

/// `read_and_delete` deletes; `run_cancel` cancels, whatever `run` is there.
fn more(main: &Word, found: Entry, behind: &[Word]) -> Vec<Action> {
    let mut more = Vec::new();
    let pairs = behind.iter().zip(behind.iter().skip(1));
    for (_, word) in pairs.filter(|(and, _)| lexicon::among("and or then", &and.lower)) {
        let noun = !lexicon::among("store post forward log record", &word.lower);
        let verb = entry(word).filter(|entry| matches!(entry.usage, Use::Verb | Use::Firm) || !noun);
        let dropped = main.lower == "drag" && word.lower == "drop";
        more.extend(verb.filter(|_| !dropped).map(|entry| action(word, entry.class, true)));
    }
    if let Some(last) = behind.last().filter(|_| found.usage == Use::Loose) {
        // `order_history`
        let thing = entry(last).filter(|entry| entry.usage == Use::Noun);
        more.extend(thing.map(|entry| action(last, entry.class, false)));
    }
    if found.class == Read {
        more.extend(
            behind
                .iter()
                .enumerate()
                .filter(|(at, _)| does(main, behind, *at))
                .filter_map(|(_, word)| entry(word).map(|entry| action(word, entry.class, true))),
        );
    }
    let noun = found.usage == Use::Firm || lexicon::among("list view display", &main.lower);
    if let Some(last) = behind.last().filter(|_| noun) {
        let verb = entry(last).filter(|entry| entry.usage == Use::Verb && entry.class > found.class);
        more.extend(verb.map(|entry| action(last, entry.class, true)));
    }
    more
}

/// Whether a word of a reading name is a verb of its own: `get_delete`, `read_write_file`; in `get_delete_markers` it tells which markers.
fn does(main: &Word, behind: &[Word], at: usize) -> bool {
    let word = |at: usize| behind.get(at).map_or("", |word| word.lower.as_str());
    let next = word(at + 1);
    let Some(entry) = lexicon::entry(word(at)).filter(|entry| entry.usage == Use::Verb) else { return false };
    let changes = entry.class == ToolClass::Destructive || entry.class > Read && lexicon::among(CHANGING, word(at));
    let alone = next.is_empty() || lexicon::among("all it them everything file files and or then", next);
    let pair = main.lower == "read" && at == 0 && word(at) == "write" && !lexicon::among("access permission permissions", next);
    changes && (alone || pair)
}

/// Whether a name may be one of things: `commit_details`, `edit_history`. Its first verb is a noun too, and its last word something that is
/// read.
pub fn is_of_things(words: &[Word]) -> bool {
    let [first, .., last] = words else { return false };
    let noun = entry(first).is_some_and(|entry| entry.usage == Use::Firm && entry.class > Read)
        || lexicon::among("edit change hover merge", &first.lower);
    noun && entry(last).is_some_and(|entry| entry.usage == Use::Noun)
}
