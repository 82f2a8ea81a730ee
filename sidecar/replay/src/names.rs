//! What calls and other operations name, each once.

use std::collections::HashMap;

use toolweir_crds::OperationKind;
use toolweir_engine::Operation;

/// The most names that are told apart, of all servers and methods. Agents choose names as they like.
pub const MOST_NAMES: usize = 20_000;

/// What is named, with its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedOperation {
    /// The server.
    pub server: Box<str>,
    /// The kind of what is asked for.
    pub kind: OperationKind,
    /// The method.
    pub method: Box<str>,
    /// The name.
    pub name: Box<str>,
}

impl NamedOperation {
    /// Returns the operation as policies decide on it.
    pub fn operation(&self) -> Operation<'_> {
        Operation { kind: self.kind, name: &self.name, method: &self.method }
    }

    /// Returns true if it only refers to what it names: whether it may be used at all is decided on, and nothing is taken.
    pub fn is_reference(&self) -> bool {
        let refers = matches!(&*self.method, "completion/complete" | "resources/unsubscribe" | "subscriptions/listen");
        refers && self.kind != OperationKind::Other
    }
}

/// The numbers of names, by server, method and name.
type Numbers = HashMap<Box<str>, HashMap<Box<str>, HashMap<Box<str>, u32>>>;

/// What is named, by number.
#[derive(Debug, Default)]
pub struct CallNames {
    by_kind: [Numbers; OperationKind::ALL.len()],
    all: Vec<NamedOperation>,
}

impl CallNames {
    /// Returns the number of what is named on a server. `None` if it is new, and there are [`MOST_NAMES`].
    pub fn number(&mut self, server: &str, operation: Operation<'_>) -> Option<u32> {
        let Operation { kind, name, method } = operation;
        let numbers = self.by_kind.get_mut(kind as usize)?;
        let known = numbers.get(server).and_then(|methods| methods.get(method)).and_then(|names| names.get(name));
        if let Some(number) = known {
            return Some(*number);
        }
        if self.all.len() >= MOST_NAMES {
            return None;
        }
        let number = u32::try_from(self.all.len()).ok()?;
        self.all.push(NamedOperation { server: server.into(), kind, method: method.into(), name: name.into() });
        numbers.entry(server.into()).or_default().entry(method.into()).or_default().insert(name.into(), number);
        Some(number)
    }

    /// Returns the names of all tools.
    pub fn tools(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter(|named| named.kind == OperationKind::Tool).map(|named| &*named.name)
    }

    /// Returns what has a number.
    pub fn get(&self, number: u32) -> Option<&NamedOperation> {
        self.all.get(number as usize)
    }
}
