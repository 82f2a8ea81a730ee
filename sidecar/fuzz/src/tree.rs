//! JSON as `serde_json` reads it, with every member kept, and the readers that people write on top of such a tree.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A string.
    String(String),
    /// An array.
    List(Vec<Tree>),
    /// An object: its members in order, those with the same key too.
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// Reads a text; nothing where parsers differ in whether they can: half of a surrogate pair, a number past a double,
    /// more levels than `serde_json` goes down.
    pub fn read(text: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        match serde_json::from_slice(text) {
            Ok(tree) => Ok(Some(tree)),
            Err(error) => {
                let why = error.to_string();
                let differs = ["surrogate", "unexpected end of hex escape", "number out of range", "recursion limit"];
                if differs.iter().any(|known| why.contains(known)) { Ok(None) } else { Err(error) }
            }
        }
    }

    /// The text of a string.
    pub fn string(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Tree::Null, Tree::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Tree::Object(object))
    }
}

/// One way to find a member by its key.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// Of several, the last; else the first.
    pub last: bool,
    /// A key ends at a NUL.
    pub cut: bool,
    /// Keys are the same but for case, as Go's older parser has it.
    pub fold: bool,
}

impl Reader {
    /// Every way.
    pub fn all() -> impl Iterator<Item = Self> {
        let ways = [false, true];
        ways.into_iter().flat_map(move |last| {
            ways.into_iter().flat_map(move |cut| ways.into_iter().map(move |fold| Self { last, cut, fold }))
        })
    }

    fn same(self, key: &str, known: &str) -> bool {
        let key = if self.cut { key.split('\0').next().unwrap_or_default() } else { key };
        if !self.fold {
            return key == known;
        }
        // The simple case folding of Unicode, as far as it leads to ASCII.
        let fold = |c: char| match c {
            'ſ' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        };
        key.chars().map(fold).eq(known.chars().map(fold))
    }

    /// A member.
    pub fn get<'t>(self, tree: &'t Tree, key: &str) -> Option<&'t Tree> {
        let Tree::Object(members) = tree else { return None };
        let mut found = members.iter().filter(|(name, _)| self.same(name, key)).map(|(_, value)| value);
        if self.last { found.next_back() } else { found.next() }
    }
}
