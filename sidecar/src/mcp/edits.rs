//! Edits of a message where it stands: every byte that is not replaced stays.

/// A message after its edits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// The message stays as it is.
    Same,
    /// This takes its place.
    Edited(Vec<u8>),
}

/// Edits of a text, from its start to its end. Whatever is not replaced stays as it is.
pub struct Edits<'a> {
    body: &'a [u8],
    edited: Option<Vec<u8>>,
    /// Up to where the body was taken over.
    done: usize,
}

impl<'a> Edits<'a> {
    /// No edits yet of this text.
    pub fn of(body: &'a [u8]) -> Self {
        Self { body, edited: None, done: 0 }
    }

    /// Replaces what stands from `start` to `end`, behind what was replaced before.
    pub fn replace(&mut self, start: usize, end: usize, with: &str) {
        let edited = self.edited.get_or_insert_with(|| Vec::with_capacity(self.body.len()));
        edited.extend_from_slice(self.body.get(self.done..start).unwrap_or_default());
        edited.extend_from_slice(with.as_bytes());
        self.done = end;
    }

    /// The text with its edits.
    pub fn finish(mut self) -> Filtered {
        let rest = self.body.get(self.done..).unwrap_or_default();
        match &mut self.edited {
            None => return Filtered::Same,
            Some(edited) => edited.extend_from_slice(rest),
        }
        self.edited.map_or(Filtered::Same, Filtered::Edited)
    }
}
