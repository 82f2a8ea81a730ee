//! Texts as words: names in any case, and sentences of a description.

use std::ops::Range;

/// How much of a name or a title is read, in bytes.
pub const NAME_BYTES: usize = 512;
/// How much of a description is read, in bytes.
pub const PROSE_BYTES: usize = 16 * 1024;
/// Longer words are no words of a language.
const WORD_BYTES: usize = 32;

/// What stands between a word and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// White space alone, or the beginning.
    Space,
    /// A comma or a slash: the words are peers.
    Comma,
    /// A colon, a bar or a dash: what came before was a label.
    Label,
}

/// A word of a text.
#[derive(Clone, Debug)]
pub struct Word {
    /// In lower case. Empty for what is no word of a language: identifiers, numbers, compounds.
    pub lower: String,
    /// Where it stands in its text.
    pub span: Range<usize>,
    /// What stands before it.
    pub before: Before,
}

impl Word {
    fn new(text: &str, start: usize, before: Before) -> Self {
        let lower = if text.len() <= WORD_BYTES { text.to_lowercase() } else { String::new() };
        Self { lower, span: start..start + text.len(), before }
    }
}

/// The longest beginning of a text that has at most so many bytes.
pub fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The words of a name: `snake_case`, `kebab-case`, `camelCase`, `HTTPServer`, words.
pub fn of_name(name: &str) -> Vec<Word> {
    let name = beginning(name, NAME_BYTES);
    let mut words = Vec::new();
    let mut start = None;
    let mut chars = name.char_indices().peekable();
    let mut last = ' ';
    let mut finish = |start: &mut Option<usize>, end: usize| {
        if let Some(text) = start.and_then(|start| name.get(start..end)) {
            words.push(Word::new(text, start.unwrap_or_default(), Before::Space));
        }
        *start = None;
    };
    while let Some((at, c)) = chars.next() {
        if c.is_alphanumeric() {
            let next_is_lower = chars.peek().is_some_and(|(_, next)| next.is_lowercase());
            if c.is_uppercase() && (last.is_lowercase() || last.is_numeric() || last.is_uppercase() && next_is_lower) {
                finish(&mut start, at);
            }
            start.get_or_insert(at);
        } else {
            finish(&mut start, at);
        }
        last = c;
    }
    finish(&mut start, name.len());
    words
}

/// The sentences of a description, as far as it is read. A list's item and a paragraph end a sentence too.
pub fn sentences(prose: &str) -> Vec<Vec<Word>> {
    let prose = beginning(prose, PROSE_BYTES);
    let mut sentences = vec![Vec::new()];
    let mut before = Before::Space;
    let mut rest = 0;
    for chunk in prose.split_inclusive(char::is_whitespace) {
        let start = rest;
        rest += chunk.len();
        let text = chunk.trim_end();
        let after = prose.get(rest..).unwrap_or_default();
        if !text.is_empty() {
            let Some(sentence) = sentences.last_mut() else { break };
            before = push_words(sentence, text, start, before);
        }
        if ends_sentence(text, chunk, after) && sentences.last().is_some_and(|sentence| !sentence.is_empty()) {
            sentences.push(Vec::new());
            before = Before::Space;
        }
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

fn ends_sentence(text: &str, chunk: &str, after: &str) -> bool {
    // Only a few characters are looked at, or a text of white space alone would take quadratic time.
    let next = after.chars().take(80).find(|c| *c != ' ' && *c != '\t');
    let goes_on = next.is_some_and(char::is_lowercase);
    let closed = text.trim_end_matches(['"', '\'', ')', '*', '`', ']']);
    closed.ends_with(['!', '?']) || closed.ends_with(['.', ';']) && !goes_on || chunk.ends_with('\n') && !goes_on
}

/// Adds the words of a piece of text without white space; gives what stands before the next.
fn push_words(sentence: &mut Vec<Word>, text: &str, start: usize, before: Before) -> Before {
    let inner = text.trim_matches(|c: char| !c.is_alphanumeric());
    if text == "&" {
        sentence.push(Word { lower: "and".to_owned(), span: start..start + 1, before });
        return Before::Space;
    }
    if inner.is_empty() {
        return if text.contains(['|', ':', '-', '–', '—']) { Before::Label } else { before };
    }
    let lead = text.len() - text.trim_start_matches(|c: char| !c.is_alphanumeric()).len();
    let tail = text.get(lead + inner.len()..).unwrap_or_default();
    let mut at = start + lead;
    let mut before = before;
    for part in inner.split('/') {
        let plain = part.chars().all(|c| c.is_alphabetic() || c == '\'' || c == '’');
        let mut word = Word::new(part, at, before);
        // `delete_thing`, `delete-thing` and `delete(` name other tools; `read-only` and `non-destructive` are words.
        let call = tail.starts_with('(') || tail.starts_with("`(");
        if call || !plain && !matches!(word.lower.as_str(), "read-only" | "write-only" | "non-destructive") {
            word.lower.clear();
        }
        sentence.push(word);
        at += part.len() + 1;
        before = Before::Comma;
    }
    match tail.chars().find(|c| matches!(c, ',' | ':' | '|' | '—')) {
        Some(',') => Before::Comma,
        Some(_) => Before::Label,
        None => Before::Space,
    }
}
