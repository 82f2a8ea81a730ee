//! Names of tools, prompts and resources that servers list, for the labels of metrics and for what is observed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use toolweir_crds::OperationKind;

/// The most names of a kind that are kept for a server.
const MOST_LEARNED: usize = 512;
/// The longest name that is kept, in bytes.
const LONGEST_LEARNED: usize = 128;

/// The names of each kind that each server has listed.
#[derive(Debug, Default)]
pub struct ListedNames(Mutex<HashMap<String, NamesByKind>>);

/// The names of each kind.
type NamesByKind = HashMap<OperationKind, HashSet<Box<str>>>;

impl ListedNames {
    /// Remembers a name that a server lists, if there is room for it.
    pub fn learn(&self, server: &str, kind: OperationKind, name: &str) {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.contains_key(server) {
            servers.insert(server.to_owned(), HashMap::new());
        }
        let Some(kinds) = servers.get_mut(server) else { return };
        let names = kinds.entry(kind).or_default();
        if names.len() < MOST_LEARNED && name.len() <= LONGEST_LEARNED && !names.contains(name) {
            names.insert(name.into());
        }
    }

    /// Returns true if the server has listed this name and there was room for it.
    pub fn contains(&self, server: &str, kind: OperationKind, name: &str) -> bool {
        let servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        servers.get(server).and_then(|kinds| kinds.get(&kind)).is_some_and(|names| names.contains(name))
    }
}
