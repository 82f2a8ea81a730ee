//! Tool names that servers list, for the label `tool` and for what is observed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

/// The most names that are kept for a server.
const MOST_LEARNED: usize = 512;
/// The longest name that is kept, in bytes.
const LONGEST_LEARNED: usize = 128;

/// The tool names that each server has listed.
#[derive(Debug, Default)]
pub struct ListedToolNames(Mutex<HashMap<String, HashSet<Box<str>>>>);

impl ListedToolNames {
    /// Remembers the name of a tool that a server lists, if there is room for it.
    pub fn learn(&self, server: &str, tool: &str) {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.contains_key(server) {
            servers.insert(server.to_owned(), HashSet::new());
        }
        let fits = |names: &HashSet<_>| names.len() < MOST_LEARNED && tool.len() <= LONGEST_LEARNED;
        if let Some(names) = servers.get_mut(server).filter(|names| fits(names) && !names.contains(tool)) {
            names.insert(tool.into());
        }
    }

    /// Returns true if the server has listed a tool of this name and there was room for it.
    pub fn contains(&self, server: &str, tool: &str) -> bool {
        let servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        servers.get(server).is_some_and(|names| names.contains(tool))
    }
}
