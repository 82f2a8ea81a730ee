//! Why a tool has its class, in one line.

use toolweir_crds::{ToolClass, text};

use crate::{Classification, Evidence, words};

/// How many pieces of evidence the line has.
const PIECES: usize = 3;
/// How many characters the line has at most.
const CHARACTERS: usize = 100;
/// How many characters of a text of the server.
const QUOTED: usize = 28;

pub fn line(classification: &Classification) -> String {
    if let Some(reason) = classification.unread {
        return reason.to_owned();
    }
    let mut line = String::new();
    let strongest = classification.evidence.iter().filter(|piece| piece.class == classification.class);
    for piece in strongest.take(PIECES).map(piece) {
        let comma = if line.is_empty() { "" } else { ", " };
        if line.contains(&piece) || line.chars().count() + comma.len() + piece.chars().count() > CHARACTERS {
            continue;
        }
        line = line + comma + &piece;
    }
    if classification.class == ToolClass::Unknown || line.is_empty() {
        return "nothing says what it does".to_owned();
    }
    line
}

fn piece(evidence: &Evidence) -> String {
    let text = shown(&evidence.text, QUOTED);
    let part = evidence.part.as_str();
    if let Some(hint) = part.strip_prefix("annotations.") {
        return format!("{hint} is {text}");
    }
    let Some(property) = part.rsplit_once("roperties.").map(|(_, property)| property) else {
        return format!("\"{text}\" in the {}", shown(part, QUOTED));
    };
    // Of a name that the server chose, only the word that counts is shown.
    let value = property.ends_with(']') || matches!(property.rsplit_once('.'), Some((_, "description" | "const")));
    let name = property.strip_suffix(".description").or_else(|| Some(property.rsplit_once('.')?.0));
    match name {
        _ if property == evidence.text => format!("the argument \"{text}\""),
        Some(name) if value => {
            let words = words::of_name(name);
            let word = words.last().and_then(|word| name.get(word.span.clone())).unwrap_or_default();
            format!("\"{text}\" of the argument \"{}\"", shown(word, QUOTED))
        }
        _ => format!("\"{text}\" in the name of an argument"),
    }
}

/// A stranger's text, without what could move the terminal's cursor or turn the line around.
fn shown(text: &str, characters: usize) -> String {
    let start: String = text.chars().take(characters).collect();
    let mut shown = text::shown(&start).into_owned();
    if text.chars().nth(characters).is_some() {
        shown.push('…');
    }
    shown
}
