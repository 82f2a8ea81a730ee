//! Effects that a description mentions by the way: "WARNING: deletes ...", ", wiping the rest", "everything is deleted".

use toolweir_crds::ToolClass::Destructive;

use crate::{
    lexicon::{self, Form, Use, among},
    name::Action,
    prose::{NEGATIONS, action, lower, of_nothing},
    words::{Before, Word},
};

/// Above an effect.
const LABELS: &str = "warning caution danger dangerous side effect effects attention important beware careful async note";
/// Before a passive, these make it one of a subordinate clause, a condition or a denial.
const SUBORDINATE: &str = "that which who what whether if when where until unless how cannot can't can why before since because was were \
    has have been whose nothing none while recently already soft may might as example";
/// Text whose removal deletes nothing.
const TEXTUAL: &str = "duplicate duplicates tags html whitespace formatting result results output value values null characters images \
    scripts styles elements noise text line lines response comments markup field fields blank spaces column columns default filter filters \
    parameter parameters content row rows";
/// Participles that leave no doubt. Only formatting is `lost` without harm.
const GONE: &str = "deleted erased wiped destroyed purged lost killed terminated revoked uninstalled shredded nuked expunged";
/// Participles that can also be said of a text.
const TAKEN: &str = "removed dropped discarded cleared flushed truncated evicted";
/// Sentences that begin so advise.
const ADVICE: &str = "use call if when run try see before after once for to consider you";
/// Nouns for what is done.
const NOUNS: &str = "deletion removal erasure destruction termination";

/// The effects of a sentence; `first` is the first one.
pub fn of(sentence: &[Word], first: bool) -> Vec<Action> {
    let mut found = Vec::new();
    found.extend(labelled(sentence));
    found.extend(first.then(|| noun(sentence)).flatten());
    for at in 1..sentence.len() {
        found.extend(passive(sentence, at).or_else(|| by_the_way(sentence, at, first)));
    }
    found
}

fn destroying(word: &str, wanted: Form) -> Option<String> {
    let (stem, form, entry) = lexicon::stems(word)
        .into_iter()
        .filter(|(_, form)| *form == wanted)
        .find_map(|(stem, form)| lexicon::entry(&stem).map(|entry| (stem, form, entry)))?;
    (form == wanted && entry.class == Destructive && entry.usage == Use::Verb).then_some(stem)
}

/// `WARNING: deletes all`, `Side effects: removes some`
fn labelled(sentence: &[Word]) -> Option<Action> {
    let at = sentence.iter().take(4).position(|word| word.before == Before::Label)?;
    let label = at > 0 && sentence.iter().take(at).all(|word| among(LABELS, &word.lower));
    let word = sentence.get(at).filter(|_| label && !of_nothing(sentence, at))?;
    let note = among("note important", lower(sentence, at - 1));
    let verb = destroying(&word.lower, Form::Third).or_else(|| destroying(&word.lower, Form::Base).filter(|_| !note))?;
    Some(action(word, &verb, Destructive, true))
}

/// `Permanent deletion of a thing`
fn noun(sentence: &[Word]) -> Option<Action> {
    let at = sentence.iter().take(3).position(|word| among(NOUNS, &word.lower))?;
    let word = sentence.get(at)?;
    (lower(sentence, at + 1) == "of").then(|| action(word, &word.lower, Destructive, true))
}

/// `Everything is deleted`, `data will be lost`
fn passive(sentence: &[Word], at: usize) -> Option<Action> {
    let word = sentence.get(at)?;
    let gone = among(GONE, &word.lower);
    if !gone && !among(TAKEN, &word.lower) {
        return None;
    }
    let adverb = usize::from(at > 1 && (lower(sentence, at - 1).ends_with("ly") || lower(sentence, at - 1) == "then"));
    let before = at.checked_sub(1 + adverb)?;
    // "closed and removed"
    let joined = lower(sentence, before) == "and" && lower(sentence, before.saturating_sub(1)).ends_with("ed");
    let auxiliary = if joined { before.checked_sub(2)? } else { before };
    let states = among("is are be gets get", lower(sentence, auxiliary)) && auxiliary > 0;
    let clause = sentence.get(..at).unwrap_or_default();
    let other = clause.iter().any(|word| among(SUBORDINATE, &word.lower) || among(NEGATIONS, &word.lower));
    let textual = sentence.iter().any(|word| among(TEXTUAL, &word.lower));
    let advice = among(ADVICE, lower(sentence, 0));
    let of_text = textual && (!gone || word.lower == "lost");
    (states && !other && !advice && !of_text).then(|| action(word, &word.lower, Destructive, true))
}

/// `Lists users, wiping the inactive ones`; `... after shutting down the server`; `in one step, deletes all`
fn by_the_way(sentence: &[Word], at: usize, first: bool) -> Option<Action> {
    let word = sentence.get(at)?;
    let (last, next) = (lower(sentence, at - 1), lower(sentence, at + 1));
    let denied = sentence.iter().take(at).any(|word| among(NEGATIONS, &word.lower) || among("before instead for", &word.lower));
    let row =
        last.ends_with("ing") || sentence.get(at + 1).is_none_or(|next| next.before == Before::Comma) || among("and or", next);
    // "removing duplicates": of the text that it gives.
    let row = row || (at + 1..at + 3).any(|at| among(TEXTUAL, lower(sentence, at)));
    if denied || among(ADVICE, lower(sentence, 0)) || row {
        return None;
    }
    let shuts = among("shutting", &word.lower) && next == "down";
    let gerund = destroying(&word.lower, Form::Gerund).or_else(|| shuts.then(|| "shut".to_owned()));
    let comma = word.before == Before::Comma;
    if let Some(verb) = gerund.filter(|_| comma || first && among("by after while", last)) {
        return Some(action(word, &verb, Destructive, true));
    }
    let object = among("the all a any its every everything them it each inactive", next);
    let verb = destroying(&word.lower, Form::Third).filter(|_| first && comma && object)?;
    let told = sentence.iter().take(at).any(|word| among("that which who what how whether", &word.lower));
    (!told).then(|| action(word, &verb, Destructive, true))
}
