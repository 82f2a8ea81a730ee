//! Texts of servers on a terminal, so that no two look alike that differ.

use toolweir_crds::text::push_exact;

/// Shows a text on one line: a line break as `\n`, and what cannot be seen, or would be obeyed, as its code.
pub fn exact(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        push(&mut shown, c);
    }
    shown
}

/// Adds a character as it is shown. Returns how many characters that takes.
pub fn push(shown: &mut String, c: char) -> usize {
    let before = shown.chars().count();
    push_exact(shown, c);
    shown.chars().count() - before
}

/// The beginning of a text that takes at most so many columns where it is shown.
pub fn start_of(text: &str, columns: usize) -> &str {
    let (mut shown, mut taken) = (String::new(), 0);
    let start = text.char_indices().take_while(|(_, c)| {
        taken += push(&mut shown, *c);
        taken <= columns
    });
    let end = start.last().map_or(0, |(at, c)| at + c.len_utf8());
    text.get(..end).unwrap_or_default()
}

/// Shows the beginning of a text in at most so many columns, and says how much there is beyond it.
pub fn beginning(text: &str, columns: usize) -> String {
    let start = start_of(text, columns);
    let more = text.len() - start.len();
    let shown = exact(start);
    if more == 0 { shown } else { format!("{shown}… ({more} more bytes)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_looks_different() {
        assert_eq!(exact("a\n\tb\u{1b}[2J\u{200b}\u{200c}é\u{202e}"), "a\\n\\tb\\u{1b}[2J\\u{200b}\\u{200c}é\\u{202e}");
        assert_eq!(
            (start_of("a\u{1b}b", 6), start_of("a\u{1b}b", 7), start_of("é", 1), start_of("", 1)),
            ("a", "a\u{1b}", "é", "")
        );
        assert_eq!((beginning("abc", 3), beginning("éabc", 2)), ("abc".to_owned(), "éa… (2 more bytes)".to_owned()));
    }
}
