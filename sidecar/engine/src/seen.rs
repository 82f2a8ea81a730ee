//! What is known of a tool when a call of it is decided.

use smallvec::SmallVec;
use toolweir_crds::{PartDigests, ToolClass};

/// A tool, as far as decisions read what its server listed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenTool {
    /// The class of its definition; of several at once, the worst.
    pub class: ToolClass,
    /// The digests of its definition; several where its server listed it more than once, and not alike.
    pub definitions: SmallVec<[PartDigests; 1]>,
}

impl SeenTool {
    /// Makes a tool with a single definition.
    pub fn new(class: ToolClass, digests: PartDigests) -> Self {
        Self { class, definitions: SmallVec::from_buf([digests]) }
    }

    /// Adds another definition of the same tool.
    pub fn add(&mut self, class: ToolClass, digests: PartDigests) {
        self.class = self.class.max(class);
        if !self.definitions.contains(&digests) {
            self.definitions.push(digests);
        }
    }
}
