//! What differs between two texts, by words.

use std::ops::Range;

/// The most pairs of words that are compared: beyond that, what lies between the common beginning and end counts as one difference.
const MOST_PAIRS: usize = 1_000_000;

/// The most bytes between differences that are joined.
const NO_WORD: usize = 3;

/// A difference: the words of one text that stand in place of those of the other, in bytes. One of them may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextChange {
    /// In the text before.
    pub before: Range<usize>,
    /// In the text after.
    pub after: Range<usize>,
}

/// Finds the differences, in order. They do not touch.
pub fn differences(before: &str, after: &str) -> Vec<TextChange> {
    let (old, new) = (words(before), words(after));
    let text = |of: &'_ str, word: &Range<usize>| of.get(word.clone()).unwrap_or_default().to_owned();
    let same = |(a, b): &(&Range<usize>, &Range<usize>)| before.get((*a).clone()) == after.get((*b).clone());
    let start = old.iter().zip(&new).take_while(same).count();
    let most = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(most).take_while(same).count();
    let (old_end, new_end) = (old.len() - end, new.len() - end);
    let old_words: Vec<String> = old.get(start..old_end).unwrap_or_default().iter().map(|word| text(before, word)).collect();
    let new_words: Vec<String> = new.get(start..new_end).unwrap_or_default().iter().map(|word| text(after, word)).collect();
    let at = |words: &[Range<usize>], whole: &str, index: usize| words.get(index).map_or(whole.len(), |word| word.start);
    let range = |words: &[Range<usize>], whole: &str, found: &Range<usize>| {
        at(words, whole, start + found.start)..at(words, whole, start + found.end)
    };
    let found = unmatched(&old_words, &new_words).into_iter();
    let found = found.map(|(a, b)| TextChange { before: range(&old, before, &a), after: range(&new, after, &b) });
    joined(found, before)
}

/// Joins differences between which no word stands, such as those of neighbouring words.
fn joined(found: impl Iterator<Item = TextChange>, before: &str) -> Vec<TextChange> {
    let mut joined: Vec<TextChange> = Vec::new();
    for change in found {
        let no_word = |last: &&mut TextChange| {
            let between = before.get(last.before.end..change.before.start).unwrap_or_default();
            between.len() <= NO_WORD && !between.contains(char::is_alphanumeric)
        };
        match joined.last_mut().filter(no_word) {
            Some(last) => (last.before.end, last.after.end) = (change.before.end, change.after.end),
            None => joined.push(change),
        }
    }
    joined
}

/// Splits a text into words, and what stands between them, character by character.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut in_word = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        match words.last_mut() {
            Some(last) if in_word && c.is_alphanumeric() => last.end = end,
            _ => words.push(at..end),
        }
        in_word = c.is_alphanumeric();
    }
    words
}

/// The ranges of words of two lists between those that both have in the same order (a longest common subsequence).
fn unmatched(old: &[String], new: &[String]) -> Vec<(Range<usize>, Range<usize>)> {
    if old.is_empty() && new.is_empty() {
        return Vec::new();
    }
    let width = new.len() + 1;
    if old.len().saturating_mul(new.len()) > MOST_PAIRS {
        return vec![(0..old.len(), 0..new.len())];
    }
    // The length of what the rests from here have in common.
    let mut common = vec![0_u32; (old.len() + 1) * width];
    let get = |common: &[u32], a: usize, b: usize| common.get(a * width + b).copied().unwrap_or(0);
    for (a, word) in old.iter().enumerate().rev() {
        for (b, other) in new.iter().enumerate().rev() {
            let length =
                if word == other { get(&common, a + 1, b + 1) + 1 } else { get(&common, a + 1, b).max(get(&common, a, b + 1)) };
            if let Some(slot) = common.get_mut(a * width + b) {
                *slot = length;
            }
        }
    }
    let mut found: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    let (mut a, mut b) = (0, 0);
    while a < old.len() || b < new.len() {
        if a < old.len() && b < new.len() && old.get(a) == new.get(b) {
            (a, b) = (a + 1, b + 1);
            continue;
        }
        let from = (a, b);
        if b >= new.len() || a < old.len() && get(&common, a + 1, b) >= get(&common, a, b + 1) {
            a += 1;
        } else {
            b += 1;
        }
        match found.last_mut() {
            Some((old, new)) if (old.end, new.end) == from => (old.end, new.end) = (a, b),
            _ => found.push((from.0..a, from.1..b)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found<'a>(before: &'a str, after: &'a str) -> Vec<(&'a str, &'a str)> {
        differences(before, after).into_iter().map(|change| (&before[change.before], &after[change.after])).collect()
    }

    #[test]
    fn the_words_that_changed_are_found() {
        assert_eq!(found("same", "same"), []);
        assert_eq!(found("Sends a mail to you.", "Sends a letter to me."), [("mail", "letter"), ("you", "me")]);
        assert_eq!(found("to one person now", "to all people now"), [("one person", "all people")]);
        assert_eq!(found("a b", "a b c"), [("", " c")]);
        assert_eq!(found(r#"{"type":"string"}"#, r#"{"type":"number"}"#), [("string", "number")]);
        assert_eq!(found("", "x"), [("", "x")]);
        assert_eq!(found("pay\u{200b}", "pay"), [("\u{200b}", "")]);
        // A word in 8 KiB.
        let long = "read the file ".repeat(600);
        let other = format!("{}write{}", &long[..7009], &long[7013..]);
        assert_eq!(found(&long, &other), [("file", "write")]);
    }

    #[test]
    fn what_is_wholly_other_is_one_difference() {
        let text = |word: &str| (0..3000).map(|number| format!("{word}{number} ")).collect::<String>();
        assert_eq!(differences(&text("a"), &text("b")).len(), 1);
    }

    proptest! {
        #[test]
        fn the_texts_are_what_they_share_and_what_differs(before in "[ab ]{0,30}", after in "[ab é]{0,30}") {
            let (mut old, mut new, mut rebuilt) = (0, 0, String::new());
            for change in differences(&before, &after) {
                prop_assert_eq!(&before[old..change.before.start], &after[new..change.after.start]);
                rebuilt.push_str(&before[old..change.before.start]);
                rebuilt.push_str(&after[change.after.clone()]);
                (old, new) = (change.before.end, change.after.end);
            }
            rebuilt.push_str(&before[old..]);
            prop_assert_eq!(rebuilt, after);
        }
    }
}
