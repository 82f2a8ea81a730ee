//! Patterns of `matches`, with bounds on the cost of compiling them and of searching with them. [`re2`] gives their meaning.
//!
//! A pattern whose automaton is small is compiled to it, and a search costs the same for every byte of any text. Any
//! other is searched for with the states of its program, and each byte is charged with all of them.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, PoisonError, RwLock, Weak},
};

use regex_automata::{
    Input,
    dfa::{Automaton, StartKind, dense},
    meta,
    nfa::thompson::{self, NFA, WhichCaptures},
};
use regex_syntax::{
    ast::{self, Ast, ClassSetItem},
    hir::{self, translate::Translator},
};

use super::{
    error::one_line,
    re2::{self, REPEATS},
    work::units,
};

/// Bytes of one pattern's program.
const PROGRAM: usize = 256 << 10;
/// The work for reading one pattern's classes, in bytes of a program that take as long.
const READ: usize = 2 << 20;
/// Bytes of one pattern's automaton.
const AUTOMATON: usize = 256 << 10;
/// The depth to which a pattern may nest.
const NEST: u32 = 50;
/// The bytes of the cache that a search fills, for each thread.
const CACHE: usize = 64 << 10;

/// Bytes of the programs and automata that all patterns of a policy may take together to compile.
pub const POLICY: usize = 8 << 20;

/// The patterns of all expressions that are kept, by their text: functions of the library are given that alone.
static PATTERNS: LazyLock<RwLock<HashMap<String, Weak<Pattern>>>> = LazyLock::new(RwLock::default);

/// A compiled pattern.
#[derive(Debug)]
pub struct Pattern {
    search: Search,
    /// The units of work for each byte of a text.
    rate: u64,
    /// The bytes that it took to compile it.
    work: usize,
}

#[derive(Debug)]
enum Search {
    Automaton(Box<dense::DFA<Vec<u32>>>),
    Program(Box<meta::Regex>),
}

impl Pattern {
    /// Finds a pattern among those that are kept, or compiles it. It takes its work from `budget`, the bytes that are left for a
    /// policy's patterns.
    ///
    /// # Errors
    /// A description of the fault, in one line.
    pub fn get_or_compile(text: &str, budget: &mut usize) -> Result<Arc<Self>, String> {
        let pattern = if let Some(pattern) = Self::find(text) {
            pattern
        } else {
            // What is refused took its work as well: a policy of nothing else ends as soon.
            let compiled = Self::compile(text, *budget).inspect_err(|_| *budget = budget.saturating_sub(PROGRAM));
            let pattern = Arc::new(compiled?);
            let mut patterns = PATTERNS.write().unwrap_or_else(PoisonError::into_inner);
            patterns.retain(|_, pattern| pattern.strong_count() > 0);
            patterns.insert(text.to_owned(), Arc::downgrade(&pattern));
            pattern
        };
        *budget = budget.checked_sub(pattern.work).ok_or_else(over_budget)?;
        Ok(pattern)
    }

    /// Returns a pattern that some expression keeps.
    pub fn find(text: &str) -> Option<Arc<Self>> {
        PATTERNS.read().unwrap_or_else(PoisonError::into_inner).get(text).and_then(Weak::upgrade)
    }

    fn compile(text: &str, budget: usize) -> Result<Self, String> {
        let wrong = |error: &dyn std::error::Error| format!("does not compile: {}", one_line(&error.to_string()));
        let text = &*re2::translated(text).map_err(|why| format!("does not compile: {}", one_line(&why)))?;
        let tree = ast::parse::ParserBuilder::new().nest_limit(NEST).build().parse(text).map_err(|error| wrong(&error))?;
        if !re2::repeats_at_most(&tree, REPEATS) {
            return Err(format!(
                "repeats something over {REPEATS} times, with one repetition inside another; write `+` for one of them"
            ));
        }
        // To read its classes is work that no limit of the library bounds.
        let Ok(read) = ast::visit(&tree, Weight::default());
        if read > READ {
            return Err(too_large());
        }
        let left = budget.checked_sub(read).ok_or_else(over_budget)?;
        let tree = Translator::new().translate(text, &tree).map_err(|error| match error.kind() {
            hir::ErrorKind::UnicodePropertyValueNotFound => format!("does not compile: {}", re2::NO_PROPERTY),
            _ => wrong(&error),
        })?;
        let limits = thompson::Config::new().nfa_size_limit(Some(PROGRAM.min(left))).which_captures(WhichCaptures::None);
        let program =
            thompson::Compiler::new().configure(limits).build_from_hir(&tree).map_err(|error| match error.size_limit() {
                Some(limit) if limit < PROGRAM => over_budget(),
                Some(_) => too_large(),
                None => wrong(&error),
            })?;
        let work = read + program.memory_usage();
        if let Some(automaton) = Self::automaton(&program) {
            let work = work + automaton.memory_usage();
            return Ok(Self { search: Search::Automaton(Box::new(automaton)), rate: 2, work });
        }
        let config = meta::Config::new()
            .nfa_size_limit(Some(2 * PROGRAM))
            .hybrid_cache_capacity(CACHE)
            .dfa(false)
            .onepass(false)
            .backtrack(false)
            .which_captures(WhichCaptures::None);
        let regex = meta::Regex::builder().configure(config).build_from_hir(&tree).map_err(|error| wrong(&error))?;
        // Three programs are made of one, and it was tried to make the automaton.
        let work = work + AUTOMATON + regex.memory_usage();
        Ok(Self { search: Search::Program(Box::new(regex)), rate: 32 + 2 * units(program.states().len()), work })
    }

    fn automaton(program: &NFA) -> Option<dense::DFA<Vec<u32>>> {
        let limits = dense::Config::new()
            .dfa_size_limit(Some(AUTOMATON))
            .determinize_size_limit(Some(AUTOMATON))
            .start_kind(StartKind::Unanchored);
        dense::Builder::new().configure(limits).build_from_nfa(program).ok()
    }

    /// Returns the units of work for searching a text of so many bytes.
    pub fn cost(&self, bytes: usize) -> u64 {
        self.rate.saturating_mul(units(bytes)).saturating_add(50)
    }

    /// Returns true if a text contains a match.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.search {
            // It gives up on nothing: one that could was not built.
            Search::Automaton(automaton) => {
                automaton.try_search_fwd(&Input::new(text).earliest(true)).is_ok_and(|found| found.is_some())
            }
            Search::Program(regex) => regex.is_match(text),
        }
    }
}

fn too_large() -> String {
    format!(
        "is too large: compiled it has more than {} KiB; write a smaller class than \\p{{...}}, or `+` for a repetition that `size` bounds",
        PROGRAM >> 10
    )
}

fn over_budget() -> String {
    format!(
        "is too much: compiled, the patterns of a policy have at most {} MiB together; write fewer or smaller ones, or split the policy",
        POLICY >> 20
    )
}

/// About how many bytes of a program take as long to compile as a pattern's classes to read.
#[derive(Default)]
struct Weight {
    bytes: usize,
    /// True if some part ignores case: classes are then gone through character by character, once at each level.
    folds: bool,
    level: usize,
}

impl Weight {
    /// A class of so many characters.
    fn class(&mut self, characters: usize) {
        let folded = if self.folds { characters / 4 * (self.level + 1) } else { 0 };
        self.bytes = self.bytes.saturating_add(1 << 10).saturating_add(folded);
    }

    fn named(&mut self, negated: bool) {
        self.class(if negated { EVERY } else { NAMED });
    }

    fn flags(&mut self, flags: &ast::Flags) {
        self.folds |= flags.flag_state(ast::Flag::CaseInsensitive) == Some(true);
    }
}

/// Characters of all of Unicode, and of a large class in it.
const EVERY: usize = 0x11_0000;
const NAMED: usize = 150_000;

impl ast::Visitor for Weight {
    type Output = usize;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<usize, Self::Err> {
        Ok(self.bytes)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        self.bytes += 64;
        match ast {
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Group(group) => {
                if let Some(flags) = group.flags() {
                    self.flags(flags);
                }
            }
            Ast::ClassUnicode(class) => self.named(class.is_negated()),
            Ast::ClassBracketed(class) if class.negated => self.class(EVERY),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        self.bytes += 64;
        match item {
            ClassSetItem::Unicode(class) => self.named(class.is_negated()),
            ClassSetItem::Range(range) if !range.end.c.is_ascii() => {
                self.class((u32::from(range.end.c) - u32::from(range.start.c)) as usize);
            }
            ClassSetItem::Bracketed(class) => {
                self.level += 1;
                if class.negated {
                    self.class(EVERY);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_post(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        if matches!(item, ClassSetItem::Bracketed(_)) {
            self.level -= 1;
        }
        Ok(())
    }
}
