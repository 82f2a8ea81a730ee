//! What a tool looks like, and how that changed.
//!
//! A [`Definition`] is what a server's list says of one tool. Each of its parts (title, description, schemas, ...) has a digest over its
//! canonical form, so that two definitions have the same digests where they differ in notation alone (`canonical.rs`). [`changes()`] compares
//! a definition that was pinned with another, and says of each part what became of it (`changes.rs`, `containment.rs`).
//!
//! Everything here is a pure function, and takes time in proportion to its input. [`changes()`] reads the texts of pins, which are bounded.

mod assertions;
mod canonical;
mod changes;
mod containment;
mod definition;
mod keywords;
mod members;
mod number;
mod references;
mod strict;
mod texts;

pub use crate::{
    canonical::{sha256, write_string},
    changes::changes,
    definition::{Definition, DefinitionError, document},
    strict::{read_json, read_tree},
    texts::check_texts,
};
