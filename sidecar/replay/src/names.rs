//! The servers and tools that calls name, each once.

use std::collections::HashMap;

/// The most pairs of server and tool that are told apart. Agents choose names as they like.
pub const MOST_NAMES: usize = 20_000;

/// Pairs of server and tool, by number.
#[derive(Debug, Default)]
pub struct CallNames {
    by_name: HashMap<Box<str>, HashMap<Box<str>, u32>>,
    all: Vec<(Box<str>, Box<str>)>,
}

impl CallNames {
    /// Returns the number of a pair. `None` if it is new, and there are [`MOST_NAMES`].
    pub fn number(&mut self, server: &str, tool: &str) -> Option<u32> {
        if let Some(number) = self.by_name.get(server).and_then(|tools| tools.get(tool)) {
            return Some(*number);
        }
        if self.all.len() >= MOST_NAMES {
            return None;
        }
        let number = u32::try_from(self.all.len()).ok()?;
        self.all.push((server.into(), tool.into()));
        self.by_name.entry(server.into()).or_default().insert(tool.into(), number);
        Some(number)
    }

    /// Returns the tools of all pairs.
    pub fn tools(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|(_, tool)| &**tool)
    }

    /// Returns server and tool of a number.
    pub fn get(&self, number: u32) -> (&str, &str) {
        self.all.get(number as usize).map_or(("", ""), |(server, tool)| (server, tool))
    }
}
