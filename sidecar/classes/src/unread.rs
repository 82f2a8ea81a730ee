//! What of a definition is not read, or not read as a model would read it.

use toolweir_crds::text::is_unseen;

use crate::{
    ToolDefinition, prose,
    schema::Arguments,
    words::{NAME_BYTES, PROSE_BYTES, beginning},
};

/// Greek letters that look like no Latin one: `Δt` is a word.
const GREEK_SIGNS: &str = "ΔδΣλπμθΩφψ";

/// Why a definition is not read whole.
pub fn reason(definition: &ToolDefinition<'_>, arguments: &Arguments<'_>) -> Option<&'static str> {
    let longer = |text: Option<&str>, bytes: usize| text.is_some_and(|text| text.len() > bytes);
    if longer(Some(definition.name), NAME_BYTES) {
        return Some("its name is longer than what is read");
    }
    if longer(definition.title, NAME_BYTES) {
        return Some("its title is longer than what is read");
    }
    if longer(definition.description, PROSE_BYTES) {
        return Some("its description is longer than what is read");
    }
    if arguments.cut {
        return Some("its schema is larger or deeper than what is read");
    }
    let of_arguments = arguments.properties.iter().flat_map(|property| {
        let described = property.description.map(|text| beginning(text, prose::PROPERTY_BYTES));
        [Some(property.name), described]
    });
    let texts: Vec<_> =
        [Some(definition.name), definition.title, definition.description].into_iter().chain(of_arguments).flatten().collect();
    if texts.iter().any(|text| has_unseen(text)) {
        return Some("its text has invisible characters within words");
    }
    let names = std::iter::once(definition.name).chain(arguments.properties.iter().map(|property| property.name));
    let mixed = names.into_iter().any(mixes) || texts.iter().any(|text| has_mixed_words(text));
    mixed.then_some("its text mixes letters of several alphabets within words")
}

/// Whether a text has characters that cannot be seen in or beside a Latin word, or that hide text from people. Emoji and other scripts need
/// some of them.
fn has_unseen(text: &str) -> bool {
    let mut last = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied().unwrap_or(' ');
        let within = is_latin(last) && is_latin(next);
        let beside = is_latin(last) || is_latin(next);
        let hides = matches!(c, '\u{e0000}'..='\u{e007f}');
        let narrow = matches!(c, '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}');
        let joins =
            is_unseen(c) && !c.is_whitespace() || matches!(c, '\u{34f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}');

        if hides || narrow && within || joins && beside {
            return true;
        }
        last = c;
    }
    false
}

/// Whether a word has letters of two alphabets, in a text that is otherwise Latin.
fn has_mixed_words(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let count = |is: fn(char) -> bool| text.chars().filter(|c| is(*c)).count();
    let mathematical = text.chars().any(|c| matches!(c, '\u{1d400}'..='\u{1d7ff}'));
    let wide = count(is_wide) > 0 && !text.chars().any(|c| matches!(c, '\u{3040}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}'));
    let latin = count(is_latin) > count(is_other);
    mathematical || wide || latin && text.split(|c: char| !c.is_alphabetic()).any(mixes)
}

fn mixes(word: &str) -> bool {
    word.contains(is_latin) && word.contains(is_other)
}

fn is_latin(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '\u{c0}'..='\u{24f}') && c.is_alphabetic()
}

/// A letter that can look like a Latin one: Greek, Cyrillic, Armenian, Cherokee.
fn is_other(c: char) -> bool {
    let block = matches!(c, '\u{370}'..='\u{3ff}' | '\u{400}'..='\u{52f}' | '\u{530}'..='\u{58f}' | '\u{13a0}'..='\u{13ff}');
    block && c.is_alphabetic() && !GREEK_SIGNS.contains(c)
}

/// A Latin letter as wide as a Chinese one.
fn is_wide(c: char) -> bool {
    matches!(c, '\u{ff21}'..='\u{ff3a}' | '\u{ff41}'..='\u{ff5a}')
}
