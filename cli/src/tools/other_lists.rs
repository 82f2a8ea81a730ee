//! What a server lists beside tools: the names of prompts, and the URIs of resources and of their templates.

use std::collections::HashSet;

use serde_json::Value;

/// What a server lists beside tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherLists {
    /// The names of prompts.
    pub prompts: OtherList,
    /// The URIs of resources.
    pub resources: OtherList,
    /// The URI templates of resources (RFC 6570).
    pub templates: OtherList,
}

/// One of these lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OtherList {
    /// The server does not have it.
    #[default]
    None,
    /// What it lists, each once, in its order.
    Names(Vec<String>),
    /// It could not be read, and why.
    Unread(String),
}

/// Collects the names of one list, each once and within a bound.
#[derive(Debug)]
pub struct NameCollector {
    key: &'static str,
    most: usize,
    seen: HashSet<String>,
    names: Vec<String>,
}

impl NameCollector {
    /// Begins with a list whose items have their name at a key; it has room for `most`.
    pub fn new(key: &'static str, most: usize) -> Self {
        Self { key, most, seen: HashSet::new(), names: Vec::new() }
    }

    /// Adds a page.
    ///
    /// # Errors
    /// There are too many names, or an item has none.
    pub fn add(&mut self, items: &[Value]) -> anyhow::Result<()> {
        for item in items {
            let Some(name) = item.get(self.key).and_then(Value::as_str).filter(|name| !name.is_empty()) else {
                anyhow::bail!("an item has no `{}`", self.key);
            };
            if self.names.len() >= self.most {
                anyhow::bail!("there are more than {}, and no agent can use so many", self.most);
            }
            if self.seen.insert(name.to_owned()) {
                self.names.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// Returns the names.
    pub fn finish(self) -> Vec<String> {
        self.names
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_kept_once_and_within_the_bound() {
        let mut names = NameCollector::new("uri", 2);
        names.add(&[json!({"uri": "b:"}), json!({"uri": "a:"}), json!({"uri": "b:"})]).unwrap_err();
        let mut names = NameCollector::new("uri", 3);
        names.add(&[json!({"uri": "b:"}), json!({"uri": "a:"})]).unwrap();
        names.add(&[json!({"uri": "b:"})]).unwrap();
        assert_eq!(names.add(&[json!({"uri": 7})]).unwrap_err().to_string(), "an item has no `uri`");
        assert_eq!(names.finish(), ["b:", "a:"]);
    }
}
