//! What the description of a tool says: the verbs of its first sentence, and what later sentences say of the tool.
//!
//! Later sentences mostly advise ("use `delete_thing` to remove it"), so only those count that have the tool as their subject, and words
//! that leave no doubt ("permanently deletes", "cannot be undone").

use toolweir_crds::ToolClass::{Destructive, Execute, Read, Write};

use crate::{
    effects,
    lexicon::{self, Form, Use, among},
    name::Action,
    words::{self, Before, Word},
};

/// What may stand before the verb of a sentence.
const PREAMBLE: &str = "this the a an tool tools function api endpoint command operation method action will can is are be used use uses to \
    for allow allows let lets you user users agent agents model models llm llms ai that which and it also deprecated beta experimental \
    simply your ability way capability interface clients client assistant them \
    please dangerous danger destructive bulk batch mass caution";
/// What may stand above a description.
const NOTICES: &str = "deprecated deprecation important note warning beta experimental preview internal new";
/// How many such words.
const PREAMBLE_WORDS: usize = 14;
/// Behind these, `post`, `comment` and `schedule` are verbs.
const DETERMINERS: &str = "a an the to on new multiple one your this all as up any each it";
/// Where the object of a verb ends.
const PREPOSITIONS: &str = "to in for of from with by on at via using when if whether that which into against";
/// After `and`, these are rather adjectives and nouns.
const DOUBTFUL: &str = "open complete clear close block change share store ship launch setup stage swap handle start stop finish apply \
    extend follow react respond join mark pin";
/// Verbs that change something in every sentence about the tool.
const HARD: &str = "create write modify insert replace send publish upsert patch edit update";
/// Words that deny.
pub const NEGATIONS: &str =
    "no not never non without nothing neither nor cannot can't doesn't don't isn't won't avoid avoids prevent prevents";
/// Before these, what looks like a verb is a noun: `Updates are shown`.
const PREDICATES: &str = "are is were was have has";
/// How much of a property's description is read, in bytes.
pub const PROPERTY_BYTES: usize = 2 * 1024;

/// The sentences of a property's description.
pub fn sentences_of(text: &str) -> Vec<Vec<Word>> {
    words::sentences(words::beginning(text, PROPERTY_BYTES))
}

/// The word at this place, or nothing.
pub fn lower(words: &[Word], at: usize) -> &str {
    words.get(at).map_or("", |word| word.lower.as_str())
}

/// The verbs of a description's first sentence that has one, of the first three.
pub fn lead(sentences: &[Vec<Word>]) -> Vec<Action> {
    for (at, sentence) in sentences.iter().take(3).enumerate() {
        let found = leading(sentence);
        // What a tool returns says what it does only where nothing else does; what its user does, says nothing.
        let of_user = |action: &Action| {
            let before = sentence.iter().take_while(|word| word.span.start < action.span.start);
            before.into_iter().any(|word| among("user users you agent agents model when", &word.lower))
        };
        // After a first sentence without a verb that is known, an imperative may be advice: it counts only for what changes something, or
        // behind a notice.
        let advice = |action: &Action| {
            let third = sentence.iter().any(|word| word.span == action.span && word.lower != action.verb);
            action.class == Read && !third && !sentences.first().is_some_and(|first| among(NOTICES, lower(first, 0)))
        };
        if found.first().is_some_and(|action| at == 0 || action.verb != "return" && !of_user(action) && !advice(action)) {
            return found;
        }
    }
    Vec::new()
}

/// Whether an action stands behind the first sentence, and that is no notice.
pub fn is_later(sentences: &[Vec<Word>], action: &Action) -> bool {
    let Some(first) = sentences.first().filter(|first| !among(NOTICES, lower(first, 0))) else { return false };
    first.last().is_some_and(|last| last.span.end <= action.span.start)
}

/// The first word of a description, if it is a verb that is not known. `name` has it too.
pub fn unknown_verb(sentences: &[Vec<Word>], name: &str) -> bool {
    let Some(first) = sentences.first() else { return false };
    let word = lower(first, 0);
    let of_a_verb = |form| form != Form::Base || among(DETERMINERS, lower(first, 1));
    lexicon::inflected(word).is_none() && lexicon::stems(word).iter().any(|(stem, form)| stem == name && of_a_verb(*form))
}

fn leading(sentence: &[Word]) -> Vec<Action> {
    let label = sentence.iter().take(9).position(|word| word.before == Before::Label);
    // "Use Search to find": what it is used for.
    let purpose = among("use uses using", lower(sentence, 0))
        .then(|| sentence.iter().take(6).position(|word| word.lower == "to"))
        .flatten();
    let mut found = [Some(0), label, purpose].into_iter().flatten().find_map(|from| verb(sentence, from));
    if found.is_none() && among("provide provides", lower(sentence, 0)) {
        found = sentence.first().map(|word| (0, Form::Third, action(word, "provide", Read, false)));
    }
    let Some((at, form, first)) = found else { return Vec::new() };
    let mut actions = vec![first];
    actions.extend(coordinated(sentence, at, form));
    actions
}

/// What a verb says.
pub fn action(word: &Word, verb: &str, class: toolweir_crds::ToolClass, firm: bool) -> Action {
    Action { verb: verb.to_owned(), class, firm, span: word.span.clone() }
}

/// The verb at the beginning of a sentence.
fn verb(sentence: &[Word], from: usize) -> Option<(usize, Form, Action)> {
    let at = (from..from + PREAMBLE_WORDS).find(|at| !is_preamble(sentence, *at))?;
    let word = sentence.get(at)?;
    let (verb, form, entry) = lexicon::inflected(&word.lower)?;
    let next = lower(sentence, at + 1);
    let class = lexicon::with_object(&verb, &object(sentence, at).iter().map(String::as_str));
    let is_verb = match entry.usage {
        Use::Noun => false,
        Use::Light => class.is_some(),
        Use::Loose => among(DETERMINERS, next),
        Use::Firm => next != "of",
        Use::Verb | Use::Mild => true,
    };
    let beyond_doubt = class.is_some() || matches!(entry.usage, Use::Verb | Use::Firm);
    is_verb.then(|| (at, form, action(word, &verb, class.unwrap_or(entry.class), beyond_doubt)))
}

/// The words that a verb governs.
pub fn object(sentence: &[Word], verb: usize) -> Vec<String> {
    let behind = sentence.iter().skip(verb + 1).take(8).map(|word| word.lower.clone());
    behind
        .enumerate()
        .take_while(|(at, word)| *at == 0 && word != "to" || !among(PREPOSITIONS, word))
        .map(|(_, word)| word)
        .collect()
}

fn is_preamble(sentence: &[Word], at: usize) -> bool {
    let word = lower(sentence, at);
    let next = lower(sentence, at + 1);
    match word {
        "enable" | "enables" => among("you users user agents agent ai llms clients the", next),
        "help" | "helps" => next == "you" || next == "to" || next == "users" || lexicon::entry(next).is_some(),
        "provide" | "provides" => among("ability way capability interface", lower(sentence, at + 2)),
        _ if word.ends_with("ly") => lexicon::entry(word).is_none(),
        _ => among(PREAMBLE, word),
    }
}

/// `Creates, updates and deletes`: the verbs that stand in one row with the first.
fn coordinated(sentence: &[Word], first: usize, form: Form) -> Vec<Action> {
    let mut found = Vec::new();
    let mut row = first;
    for at in first + 1..sentence.len().min(first + 40) {
        let Some(word) = sentence.get(at) else { break };
        let adverb = at > first + 1 && lower(sentence, at - 1).ends_with("ly");
        let and = at - 1 - usize::from(adverb);
        // `Get name, state, and pause status`: the last of a list of things is one too.
        let listed = sentence.get(and).is_some_and(|word| word.before == Before::Comma);
        let things = listed && sentence.iter().take(and).skip(row + 1).any(|word| word.before == Before::Comma);
        let joined = among("and or then", lower(sentence, and)) && !things;
        let next_in_row = word.before == Before::Comma && row + 1 == at || joined && row + 2 == at;
        let Some((verb, _, entry)) = stem_of_form(&word.lower, form) else { continue };
        // `Get view and edit permissions`, `counts them and changes nothing`
        let kinds = joined && and == first + 2 && among("view read", lower(sentence, first + 1));
        if kinds || of_nothing(sentence, at) {
            continue;
        }
        let is_verb = match entry.usage {
            Use::Verb => next_in_row || joined && !among(DOUBTFUL, &verb),
            Use::Firm => next_in_row || joined && among(DETERMINERS, lower(sentence, at + 1)),
            Use::Loose => joined && among("it them the a an this", lower(sentence, at + 1)),
            Use::Mild | Use::Light | Use::Noun => false,
        };
        if is_verb {
            row = at;
            let class = lexicon::with_object(&verb, &object(sentence, at).iter().map(String::as_str));
            found.push(action(word, &verb, class.unwrap_or(entry.class), true));
        }
    }
    found
}

/// `Changes nothing`, `creates no files`: the verb at this place has no object.
pub fn of_nothing(sentence: &[Word], verb: usize) -> bool {
    among("no nothing", lower(sentence, verb + 1))
}

fn stem_of_form(word: &str, form: Form) -> Option<(String, Form, lexicon::Entry)> {
    let stems = lexicon::stems(word).into_iter().filter(|(_, found)| *found == form);
    stems.into_iter().find_map(|(stem, form)| lexicon::entry(&stem).map(|entry| (stem, form, entry)))
}

/// What the sentences say of the tool beyond the first: only what changes something.
pub fn statements(sentences: &[Vec<Word>]) -> Vec<Action> {
    let mut found = Vec::new();
    for (at, sentence) in sentences.iter().enumerate() {
        if at > 0 {
            found.extend(says_of_tool(sentence));
        }
        found.extend(effects::of(sentence, at == 0));
        found.extend((0..sentence.len()).filter_map(|at| no_doubt(sentence, at)));
    }
    found
}

/// `This will delete it`, `It also creates one`, `Removes the rest.`
fn says_of_tool(sentence: &[Word]) -> Option<Action> {
    let subject = match lower(sentence, 0) {
        "calling" | "running" | "using" | "invoking" if among("this it", lower(sentence, 1)) => {
            2 + usize::from(among("tool operation action command function endpoint method", lower(sentence, 2)))
        }
        "this" | "the" => {
            1 + usize::from(among("tool operation action command function endpoint method call", lower(sentence, 1)))
        }
        "it" | "also" | "can" | "will" => 1,
        _ => 0,
    };
    if lower(sentence, 0) == "the" && subject < 2 {
        return None;
    }
    let skipped = |at: &usize| !among("will can may also then automatically permanently immediately", lower(sentence, *at));
    let at = (subject..subject + 5).find(skipped)?;
    let auxiliary = (0..at).any(|at| among("will can may", lower(sentence, at)));
    let form = if auxiliary { Form::Base } else { Form::Third };
    let word = sentence.get(at)?;
    if of_nothing(sentence, at) || among(PREDICATES, lower(sentence, at + 1)) {
        return None;
    }
    let (verb, _, entry) = stem_of_form(&word.lower, form)?;
    let certain =
        entry.class == Destructive || among(HARD, &verb) || subject > 0 && entry.usage == Use::Verb && !among(DOUBTFUL, &verb);
    (certain && entry.class > Read && !matches!(entry.usage, Use::Loose | Use::Light))
        .then(|| action(word, &verb, entry.class, true))
}

/// Words that leave no doubt, wherever they stand.
fn no_doubt(sentence: &[Word], at: usize) -> Option<Action> {
    let word = sentence.get(at)?;
    let (last, next) = (if at > 0 { lower(sentence, at - 1) } else { "" }, lower(sentence, at + 1));
    let found = match word.lower.as_str() {
        "permanently" | "irreversibly" => deletes(next) || deletes(last),
        "irreversible" | "unrecoverable" | "overwrites" => true,
        "destructive" => among("a is highly potentially", last) && among("operation action change tool command", next),
        "overwritten" => last == "be",
        "overwrite" => among("will may can completely", last),
        "undone" | "recovered" | "reversed" => {
            let denied = at > 1 && (among("cannot can't not", lower(sentence, at - 2)));
            return (last == "be" && denied).then(|| action(word, &word.lower, Destructive, true));
        }
        "replaces" | "deletes" | "removes" if last == "this" => {
            let class = if word.lower == "replaces" { Write } else { Destructive };
            return Some(action(word, &word.lower, class, true));
        }
        _ => false,
    };
    let negated = (at.saturating_sub(3)..at).any(|at| among(NEGATIONS, lower(sentence, at)));
    (found && !negated).then(|| action(word, &word.lower, Destructive, true))
}

fn deletes(word: &str) -> bool {
    let stem = word.strip_suffix('d').or_else(|| word.strip_suffix("ed")).unwrap_or(word);
    [word, stem].into_iter().filter_map(lexicon::inflected).any(|(_, _, entry)| entry.class == Destructive)
}

/// Whether a description names a language whose queries may change something.
pub fn language(sentences: &[Vec<Word>]) -> Option<&Word> {
    sentences.iter().flatten().find(|word| among("sql cypher postgresql mysql sparql surrealql mutation mutations", &word.lower))
}

/// Whether the verb runs a query that some language words.
pub fn runs(action: &Action) -> bool {
    action.class == Execute && among("run execute", &action.verb)
}
