//! A policy's YAML as a tree. What readers of YAML take differently is an error here: Go's, which the original has, lies between YAML
//! 1.1 and 1.2.

use std::borrow::Cow;

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError};
use serde_yaml::Value;
use toolweir_crds::quoting::kubectl_reads;

use super::{
    errors::{Errors, ImportError},
    read::{Json, member, shown},
};

/// The most levels of a policy.
const DEPTH: usize = 128;

/// The most digits of a number that readers agree on.
const DIGITS: usize = 18;

/// Reads a policy's text, which is one document.
pub(super) fn parse(text: &str) -> Result<Json<'_>, ImportError> {
    // YAML lets a byte-order mark begin a file.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = tree(text)?;
    let mut repeated = Errors::default();
    root.repeated_keys(&mut repeated);
    // Other readers stop at a key that stands twice, which is told of better later.
    if repeated.into_distinct().is_empty() {
        agree(text, &root)?;
    }
    Ok(root)
}

fn tree(text: &str) -> Result<Json<'_>, ImportError> {
    let mut builder = TreeBuilder::default();
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error: ScanError| fault(error.marker(), &format!("is not YAML: {}", error.info())))?;
        builder.event(event).map_err(|message| fault(&span.start, &message))?;
    }
    builder.root.ok_or_else(|| whole("holds no policy; write one that begins with `version: \"1\"`"))
}

/// The text comes from the parser, which quotes what it read.
fn fault(at: &Marker, message: &str) -> ImportError {
    let message = message.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect();
    ImportError { path: format!("line {}, column {}", at.line(), at.col() + 1), message }
}

fn whole(message: impl Into<String>) -> ImportError {
    ImportError { path: "policy".to_owned(), message: message.into() }
}

/// A list or an object in the making.
enum OpenNode<'a> {
    List(Vec<Json<'a>>),
    /// The members, and the key whose value is next.
    Object(Vec<(String, Json<'a>)>, Option<String>),
}

#[derive(Default)]
struct TreeBuilder<'a> {
    root: Option<Json<'a>>,
    open: Vec<OpenNode<'a>>,
    documents: usize,
}

impl<'a> TreeBuilder<'a> {
    fn event(&mut self, event: Event<'a>) -> Result<(), String> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("begins a second document; write each policy to a file of its own".to_owned());
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err("is an alias (`*name`); write out what it stands for, or put a name with `*` in quotes".to_owned());
            }
            Event::Scalar(_, _, anchor, tag) if anchor != 0 || tag.is_some() => return Err(marked(anchor)),
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) if anchor != 0 || tag.is_some() => {
                return Err(marked(anchor));
            }
            Event::Scalar(text, style, ..) => {
                let value = if style == ScalarStyle::Plain { plain(text)? } else { Json::String(text.into_owned()) };
                self.add(value)?;
            }
            Event::SequenceStart(..) => self.open(OpenNode::List(Vec::new()))?,
            Event::MappingStart(..) => self.open(OpenNode::Object(Vec::new(), None))?,
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(OpenNode::List(items)) => self.add(Json::List(items))?,
                Some(OpenNode::Object(members, _)) => self.add(Json::Object(members))?,
                None => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, node: OpenNode<'a>) -> Result<(), String> {
        if self.open.len() >= DEPTH {
            return Err(format!("has more than {DEPTH} levels"));
        }
        if matches!(self.open.last(), Some(OpenNode::Object(_, None))) {
            return Err("is a list or an object as a key; write a text".to_owned());
        }
        self.open.push(node);
        Ok(())
    }

    fn add(&mut self, value: Json<'a>) -> Result<(), String> {
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(OpenNode::List(items)) => items.push(value),
            Some(OpenNode::Object(members, key)) => match (key.take(), value) {
                (Some(key), value) => members.push((key, value)),
                (None, Json::String(text)) => *key = Some(text),
                (None, other) => return Err(format!("is {} as a key; put it in quotes", other.kind())),
            },
        }
        Ok(())
    }
}

fn marked(anchor: usize) -> String {
    match anchor {
        0 => "has a tag (`!...`); remove it, and put a text in quotes".to_owned(),
        _ => "has an anchor (`&name`); remove it, and write out what its aliases stand for".to_owned(),
    }
}

/// A scalar without quotes. Only what every reader takes for the same is one.
fn plain(text: Cow<'_, str>) -> Result<Json<'_>, String> {
    match &*text {
        "true" => return Ok(Json::Bool(true)),
        "false" => return Ok(Json::Bool(false)),
        "null" | "~" | "" => return Ok(Json::Null),
        _ => {}
    }
    if is_decimal(&text) {
        if text.bytes().filter(u8::is_ascii_digit).count() > DIGITS {
            return Err(format!("`{}` has more digits than every reader of YAML keeps; put a text in quotes", shown(&text)));
        }
        return Ok(Json::Number(text));
    }
    // A date and a number to the base of 60 are none to kubectl, but to others; `<<` and `=` have a meaning in YAML 1.1.
    if kubectl_reads(&text).is_some() || is_date(&text) || is_sexagesimal(&text) || ["<<", "="].contains(&&*text) {
        return Err(format!(
            "`{}` is not the same to every reader of YAML; put a text in quotes, and write other values as true, false, null or a \
             decimal number such as 10 or 0.5",
            shown(&text)
        ));
    }
    Ok(Json::String(text.into_owned()))
}

/// A number of JSON without an exponent, such as `-10.5`.
fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (before, after) = text
        .strip_prefix('-')
        .unwrap_or(text)
        .split_once('.')
        .map_or_else(|| (text.strip_prefix('-').unwrap_or(text), None), |(before, after)| (before, Some(after)));
    digits(before) && (before == "0" || !before.starts_with('0')) && after.is_none_or(digits)
}

/// What begins as `2026-7` does.
fn is_date(text: &str) -> bool {
    let mut bytes = text.bytes();
    (0..4).all(|_| bytes.next().is_some_and(|byte| byte.is_ascii_digit()))
        && bytes.next() == Some(b'-')
        && bytes.next().is_some_and(|byte| byte.is_ascii_digit())
}

/// Digits parted by colons, such as `12:30`.
fn is_sexagesimal(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.contains(':') && digits.bytes().all(|byte| byte.is_ascii_digit() || b":_.".contains(&byte))
}

/// Holds the tree against that of the reader of our own policies, which descends from the same one as Go's.
fn agree(text: &str, root: &Json<'_>) -> Result<(), ImportError> {
    let other: Value = serde_yaml::from_str(text).map_err(|error| {
        let message = format!("is not YAML to every reader: {}", shown(&error.to_string()));
        match error.location() {
            Some(at) => ImportError { path: format!("line {}, column {}", at.line(), at.column()), message },
            None => whole(message),
        }
    })?;
    match difference(root, &other, "") {
        None => Ok(()),
        Some(path) => Err(ImportError {
            path: if path.is_empty() { "policy".to_owned() } else { path },
            message: "is not the same to every reader of YAML; write it in a plainer way, texts in quotes on one line".to_owned(),
        }),
    }
}

/// The first place in which the readers differ.
fn difference(ours: &Json<'_>, other: &Value, path: &str) -> Option<String> {
    let here = |same: bool| (!same).then(|| path.to_owned());
    match (ours, other) {
        (Json::Null, Value::Null) => None,
        (Json::Bool(ours), Value::Bool(other)) => here(ours == other),
        (Json::String(ours), Value::String(other)) => here(ours == other),
        (Json::Number(ours), Value::Number(other)) => here(ours.parse().ok() == other.as_f64()),
        (Json::List(ours), Value::Sequence(other)) if ours.len() == other.len() => {
            let mut both = ours.iter().zip(other).enumerate();
            both.find_map(|(index, (ours, other))| difference(ours, other, &format!("{path}[{index}]")))
        }
        (Json::Object(ours), Value::Mapping(other)) if ours.len() == other.len() => {
            let mut both = ours.iter().zip(other);
            both.find_map(|((key, ours), (other_key, other))| {
                let path = member(path, key);
                if other_key.as_str() == Some(key) { difference(ours, other, &path) } else { Some(path) }
            })
        }
        _ => here(false),
    }
}
