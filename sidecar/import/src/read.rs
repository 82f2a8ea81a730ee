//! A policy as a tree, with the places of what is wrong in it; and its reader for JSON.

use std::{borrow::Cow, collections::HashSet};

use toolweir_engine::json::{JsonError, JsonKind, Reader};

use super::errors::{Errors, ImportError};

/// From here on numbers of JSON are rounded, each parser in its way.
pub(super) const EXACT: f64 = 9_007_199_254_740_992.0;

/// A value of a policy.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// A number as it stands in the text.
    Number(Cow<'a, str>),
    String(String),
    List(Vec<Json<'a>>),
    /// The members in order, repeated keys and all.
    Object(Vec<(String, Json<'a>)>),
}

/// Reads a policy's text in JSON.
pub(super) fn parse(text: &str) -> Result<Json<'_>, ImportError> {
    let read = || {
        let mut reader = Reader::new(text.as_bytes())?;
        let root = value(&mut reader)?;
        reader.finish()?;
        Ok(root)
    };
    read().map_err(|error: JsonError| {
        let (at, what) = match error {
            JsonError::Syntax(at) => (Some(at), "is not JSON"),
            JsonError::Trailing(at) => (Some(at), "goes on after the policy"),
            JsonError::LoneSurrogate(at) => (Some(at), "has half of a surrogate pair"),
            _ => (None, ""),
        };
        match at {
            Some(at) => ImportError { path: line_and_column(text, at), message: what.to_owned() },
            None => ImportError { path: "policy".to_owned(), message: error.to_string() },
        }
    })
}

fn line_and_column(text: &str, at: usize) -> String {
    let before: String = text.char_indices().take_while(|(index, _)| *index < at).map(|(_, c)| c).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}")
}

/// Reads a value. The reader bounds how deep this goes.
fn value<'a>(reader: &mut Reader<'a>) -> Result<Json<'a>, JsonError> {
    Ok(match reader.peek()? {
        JsonKind::Object => {
            let mut members = Vec::new();
            reader.object::<JsonError>(|reader, key| {
                let key = key.string()?.unwrap_or_default().into_owned();
                members.push((key, value(reader)?));
                Ok(())
            })?;
            Json::Object(members)
        }
        JsonKind::Array => {
            let mut items = Vec::new();
            reader.array::<JsonError>(|reader| {
                items.push(value(reader)?);
                Ok(())
            })?;
            Json::List(items)
        }
        JsonKind::String => Json::String(reader.value()?.string()?.unwrap_or_default().into_owned()),
        JsonKind::Number => Json::Number(Cow::Borrowed(reader.value()?.as_str())),
        JsonKind::Bool => Json::Bool(reader.value()?.as_str() == "true"),
        JsonKind::Null => reader.value().map(|_| Json::Null)?,
    })
}

/// The path of a member of what stands at `path`.
pub(super) fn member(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (path, plain) {
        (_, false) => format!("{path}[\"{}\"]", shown(key)),
        ("", true) => key.to_owned(),
        (_, true) => format!("{path}.{key}"),
    }
}

/// A text of the policy as a message shows it.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.escape_debug().collect()
}

impl<'a> Json<'a> {
    /// Returns the value's kind, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// Reports every key that stands twice in one object: which of its values holds depends on the parser.
    pub(super) fn repeated_keys(&self, errors: &mut Errors) {
        fn walk(value: &Json<'_>, path: &str, errors: &mut Errors) {
            match value {
                Json::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        if matches!(item, Json::List(_) | Json::Object(_)) {
                            walk(item, &format!("{path}[{index}]"), errors);
                        }
                    }
                }
                Json::Object(members) => {
                    let mut seen = HashSet::new();
                    for (key, value) in members {
                        let path = member(path, key);
                        if !seen.insert(key) {
                            errors.at(path.clone(), "stands twice in one object; remove one");
                        }
                        walk(value, &path, errors);
                    }
                }
                _ => {}
            }
        }
        walk(self, "", errors);
    }

    /// The members of an object that may have the `known` ones.
    pub(super) fn object<'v>(&'v self, path: &str, known: &[&'static str], errors: &mut Errors) -> Option<Object<'v, 'a>> {
        let members = self.members(path, errors)?;
        for (key, _) in members {
            if !known.contains(&key.as_str()) {
                errors.at(member(path, key), format!("is not known here; there is {}", known.join(", ")));
            }
        }
        Some(Object { path: path.to_owned(), members })
    }

    /// The members of an object that may have any.
    pub(super) fn members<'v>(&'v self, path: &str, errors: &mut Errors) -> Option<&'v [(String, Json<'a>)]> {
        match self {
            Json::Object(members) => Some(members),
            other => {
                let path = if path.is_empty() { "policy" } else { path };
                errors.at(path, format!("is {}; write an object", other.kind()));
                None
            }
        }
    }

    pub(super) fn list<'v>(&'v self, path: &str, errors: &mut Errors) -> Option<&'v [Json<'a>]> {
        match self {
            Json::List(items) => Some(items),
            other => {
                errors.at(path, format!("is {}; write a list", other.kind()));
                None
            }
        }
    }

    pub(super) fn string(&self, path: &str, errors: &mut Errors) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            other => {
                errors.at(path, format!("is {}; write a string", other.kind()));
                None
            }
        }
    }

    /// A whole number. JSON does not tell 30 from 30.0.
    pub(super) fn whole(&self, path: &str, errors: &mut Errors) -> Option<i64> {
        let Json::Number(text) = self else {
            errors.at(path, format!("is {}; write a whole number", self.kind()));
            return None;
        };
        let whole = text.parse().ok().or_else(|| {
            let number: f64 = text.parse().ok()?;
            let exact = number.fract() == 0.0 && number.abs() < EXACT;
            exact.then(|| format!("{number:.0}").parse().ok()).flatten()
        });
        if whole.is_none() {
            errors.at(path, format!("is {}; write a whole number", shown(text)));
        }
        whole
    }
}

/// An object with its place.
#[derive(Debug)]
pub(super) struct Object<'v, 'a> {
    path: String,
    members: &'v [(String, Json<'a>)],
}

impl<'v, 'a> Object<'v, 'a> {
    /// Returns the path of a member.
    pub(super) fn path(&self, key: &str) -> String {
        member(&self.path, key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'v Json<'a>> {
        self.members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A member that must be there.
    pub(super) fn need(&self, key: &str, errors: &mut Errors) -> Option<&'v Json<'a>> {
        let value = self.get(key);
        if value.is_none() {
            errors.at(self.path(key), "is missing");
        }
        value
    }
}
