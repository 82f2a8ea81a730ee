//! The promise that a query only reads. It counts only as a plain attribute of what the tool runs, and if nothing speaks against it.

use std::ops::Range;

use crate::{
    lexicon::{self, among},
    prose::{self, NEGATIONS},
    schema::Property,
    words::{self, Word},
};

/// Words of contrast and of alternatives.
const CONTRASTS: &str = "unlike prefer preferred preferably whether instead others other any also too except admins admin administrator administrators \
    primary unless optional optionally configured configurable although besides additionally plus both either anything everything arbitrary";
/// Words of contrast that also tell of the course of a query.
const CONDITIONS: &str = "default but however otherwise";
/// What such a word must stand beside to speak of what may run.
const KINDS: &str = "statement statements sql select cypher read-only readonly";
/// After a negation, these open what seemed to be closed.
const LIMITS: &str = "limited restricted only just confined";
/// Words of contrast that count in every sentence.
const EVERYWHERE: &str = "unlike instead others also too except admins administrators";
/// Kinds of statements, and verbs that change something.
const CHANGES: &str = "insert inserts inserting update updates updating delete deletes deleting ddl dml write writes writing modify modifies \
    modifying modified drop drops dropping alter alters altering truncate truncates mutate mutates mutation mutations change changes changing \
    commit commits create creates creating remove removes removing merge merges upsert upserts replace replaces grant revoke";
/// What sentences about queries have.
const STATEMENTS: &str = "query queries statement statements sql select cypher read-only readonly";
/// With these, a text turns something away.
const REFUSALS: &str =
    "reject rejects rejected block blocks blocked forbidden disallowed prohibited prevented denied refused disabled";
/// After a negation, these turn away what stands before.
const PERMITTED: &str = "allowed permitted supported possible accepted";
/// Arguments with which a caller lifts the promise.
const TOGGLES: &str = "write writes writable commit autocommit readonly force unsafe mutable";
/// Arguments in another language than that of the query.
const OTHER_LANGUAGES: &str = "python bash shell code command commands cmd script powershell javascript js exec eval";

/// Where a description says that its queries only read, if nothing in the definition speaks against that.
pub fn only_reads(name: &[Word], text: &str, sentences: &[Vec<Word>], properties: &[Property<'_>]) -> Option<Range<usize>> {
    let claim = sentences.iter().find_map(|sentence| claim(sentence))?;
    let kept = !runs_anything(name) && !speaks_against(text, sentences) && !properties.iter().any(lifts);
    kept.then_some(claim)
}

/// Whether a text speaks against its own promise.
pub fn speaks_against(text: &str, sentences: &[Vec<Word>]) -> bool {
    let lower = text.to_lowercase();
    let non = ["non-select", "non-read", "non-query", "non select", "non read"].iter().any(|non| lower.contains(non));
    let asks = sentences.iter().any(|sentence| {
        let end = sentence.last().map_or(0, |word| word.span.end);
        text.get(end..).is_some_and(|rest| rest.trim_start_matches(['"', ')', '`']).starts_with('?'))
    });
    non || asks || sentences.iter().any(|sentence| doubts(sentence) || conditional(sentence))
}

/// `execute_command`, `run`: the name is not one of a query.
fn runs_anything(name: &[Word]) -> bool {
    let runs = name.iter().any(|word| among("execute run exec eval", &word.lower));
    let query = name.iter().any(|word| among("query queries select read readonly promql logql kql esql", &word.lower));
    runs && !query
}

/// Whether an argument can lift the promise, or is itself more than a query.
fn lifts(property: &Property<'_>) -> bool {
    let words: Vec<_> = property.words.iter().map(|word| word.lower.as_str()).collect();
    let toggle = matches!(words.as_slice(), ["read", "only"]) || property.has(TOGGLES) || property.begins_with("allow enable");
    let text = words::beginning(property.description.unwrap_or_default(), prose::PROPERTY_BYTES);
    let sentences = words::sentences(text);
    let query = property.has("sql cypher query queries statement statements q");
    let other = sentences.iter().flatten().any(|word| among("bash shell python powershell javascript", &word.lower));
    toggle
        || !property.boolean && property.has(OTHER_LANGUAGES)
        || query && (other || sentences.iter().any(|sentence| doubts(sentence)))
}

/// Whether a sentence leaves a doubt that only reading is possible.
fn doubts(sentence: &[Word]) -> bool {
    let has = |words: &str| sentence.iter().any(|word| among(words, &word.lower));
    let changes = has(CHANGES);
    if changes && (turns_away(sentence) || denies(sentence)) && !has("unless except unlike default but instead") {
        return false;
    }
    let refused = has(REFUSALS) && !has(NEGATIONS) && !has("unless except default but instead");
    if refused {
        return false;
    }
    changes || has(EVERYWHERE) || opens(sentence) || has(STATEMENTS) && (has(CONTRASTS) || alternative(sentence))
}

/// `By default`, `not`: of statements, they speak of what may run.
fn conditional(sentence: &[Word]) -> bool {
    let has = |words: &str| sentence.iter().any(|word| among(words, &word.lower));
    let denied = turns_away(sentence) || has(CHANGES) && denies(sentence);
    has(KINDS) && (has(CONDITIONS) || has(NEGATIONS) && !denied)
}

/// `Not limited to`
fn opens(sentence: &[Word]) -> bool {
    let at = sentence.iter().position(|word| among(NEGATIONS, &word.lower));
    at.is_some_and(|at| sentence.iter().skip(at + 1).take(2).any(|word| among(LIMITS, &word.lower)))
}

/// `A SELECT query or a procedure`, but not `for counting or joining`
fn alternative(sentence: &[Word]) -> bool {
    let reads = |word: &Word| {
        let known = lexicon::inflected(&word.lower);
        among("joining sorting ordering formatting", &word.lower)
            || word.lower.ends_with("ing") && known.is_none_or(|(_, _, entry)| entry.class == toolweir_crds::ToolClass::Read)
    };
    let pairs = sentence.iter().zip(sentence.iter().skip(1));
    pairs.into_iter().any(|(or, next)| or.lower == "or" && !reads(next))
}

/// `INSERT is rejected`, `INSERT and DDL are not allowed`
fn turns_away(sentence: &[Word]) -> bool {
    let negated = sentence.iter().position(|word| among(NEGATIONS, &word.lower));
    let behind = |at: usize| sentence.iter().skip(at).take(3).any(|word| among(PERMITTED, &word.lower));
    match negated {
        Some(at) => behind(at) && !sentence.iter().skip(at).any(|word| among(CHANGES, &word.lower)),
        None => sentence.iter().any(|word| among(REFUSALS, &word.lower)),
    }
}

/// `Does not modify data`, `cannot insert or delete`: a negation governs all the changes.
fn denies(sentence: &[Word]) -> bool {
    let Some(first) = sentence.iter().position(|word| among(CHANGES, &word.lower)) else { return false };
    (first.saturating_sub(2)..first).any(|at| sentence.get(at).is_some_and(|word| among(NEGATIONS, &word.lower)))
        && !sentence.iter().any(|word| among("also too only", &word.lower))
}

fn claim(sentence: &[Word]) -> Option<Range<usize>> {
    (0..sentence.len()).find(|at| claims(sentence, *at)).and_then(|at| sentence.get(at)).map(|word| word.span.clone())
}

/// Whether something is said to read only, at this word.
pub fn claims(sentence: &[Word], at: usize) -> bool {
    let lower = |at: usize| sentence.get(at).map_or("", |word| word.lower.as_str());
    let next = lower(at + 1);
    let negated = (at.saturating_sub(2)..at).any(|at| among("no not non isn't without", lower(at)));
    let found = match lower(at) {
        "read" => next == "only" || among("query queries", next) || among("query queries", lower(at + 2)) && at > 0,
        "select" => among("query queries statement statements sql", next) || among("query queries", lower(at + 2)),
        "read-only" | "readonly" | "promql" | "logql" | "traceql" | "kql" | "nrql" | "jql" | "esql" => true,
        _ => false,
    };
    found && !negated
}

/// Whether a description calls the whole tool read-only, and says nothing against that.
pub fn calls_itself_read_only(text: &str, sentences: &[Vec<Word>]) -> Option<Range<usize>> {
    let at_once = |sentence: &Vec<Word>| {
        let at = sentence.iter().position(|word| word.lower == "read-only")?;
        let next = sentence.get(at + 1).map_or("", |word| word.lower.as_str());
        let tool = among("operation tool access call endpoint request query", next);
        (tool && claims(sentence, at)).then(|| sentence.get(at).map(|word| word.span.clone()))?
    };
    let changes = |word: &Word| {
        lexicon::inflected(&word.lower).is_some_and(|(_, _, entry)| entry.class > toolweir_crds::ToolClass::Execute)
    };
    let kept = !speaks_against(text, sentences) && !sentences.iter().flatten().any(changes);
    sentences.iter().find_map(at_once).filter(|_| kept)
}
