//! The lists that servers give in pages.

use toolweir_engine::json::{JsonError, Raw};

use super::members::is_key;

/// A list that servers give in pages (MCP 2025-11-25, "Pagination", and Tasks, "Listing Tasks").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// Of tools.
    Tools,
    /// Of prompts.
    Prompts,
    /// Of resources.
    Resources,
    /// Of resource templates.
    Templates,
    /// Of tasks.
    Tasks,
}

impl ListKind {
    /// All kinds, in order.
    pub const ALL: [Self; 5] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates, Self::Tasks];

    /// The key of the list in a result, which is the metrics' label `list`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
            Self::Tasks => "tasks",
        }
    }

    /// The member of an entry that says which one it is.
    pub const fn member(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
            Self::Tasks => "taskId",
        }
    }

    /// The method that asks for the list.
    pub const fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
            Self::Tasks => "tasks/list",
        }
    }

    /// The list that a method asks for, if it asks for one.
    pub fn of_method(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|list| list.method() == method)
    }

    /// The list that stands under a key in a result, in whatever case that is written; none under another.
    ///
    /// # Errors
    /// The key has half of a surrogate pair.
    pub fn of_key(key: Raw<'_>) -> Result<Option<Self>, JsonError> {
        for list in Self::ALL {
            if is_key(key, list.key())? {
                return Ok(Some(list));
            }
        }
        Ok(None)
    }
}
