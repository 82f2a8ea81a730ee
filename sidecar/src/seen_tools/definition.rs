//! One definition of a tool, as far as it is kept.

use serde_json::Value;
use toolweir_classes::{ToolAnnotations, ToolDefinition, classify};
use toolweir_crds::{PartDigests, PinnedTool, ToolClass, ToolPart, bounds};
use toolweir_engine::json::same_but_for_case;
use toolweir_pins::{Definition, sha256};

/// The SHA-256 of the text of a list's entry.
pub type EntryDigest = [u8; 32];

/// A definition of a tool, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDefinition {
    /// The digest of the text that it was read from; none where another version of the sidecar read it.
    pub entry: Option<EntryDigest>,
    /// What the tool can do, as the definition says.
    pub class: ToolClass,
    /// The digests of its parts. Those of a definition that cannot be read are no tool's.
    pub digests: PartDigests,
    /// Its parts in the form of pins; none where it cannot be read.
    pub record: Option<PinnedTool>,
    /// True where texts were kept in `record`, as far as there was room.
    pub has_texts: bool,
}

impl KeptDefinition {
    /// Reads the entry of a list, whose text has this digest. `with_texts` keeps the beginnings of its parts.
    pub fn read(text: &[u8], digest: EntryDigest, with_texts: bool) -> Self {
        let entry = Some(digest);
        let Ok(definition) = Definition::read(text) else { return Self::unreadable(entry) };
        let record = definition.pinned(if with_texts { bounds::PINNED_TEXT } else { 0 });
        let class = class_of(&definition);
        Self { entry, class, digests: definition.digests(), record: Some(record), has_texts: with_texts }
    }

    /// A definition that cannot be read, or that clients read in different ways. It can be anything, and is as no pins have it.
    pub fn unreadable(entry: Option<EntryDigest>) -> Self {
        let mut digests = PartDigests::default();
        // Canonical forms are JSON, which this is not.
        digests.set(ToolPart::Other, sha256(b"unreadable"));
        Self { entry, class: ToolClass::Unknown, digests, record: None, has_texts: true }
    }

    /// The bytes that its texts have as JSON writes them.
    pub fn text_bytes(&self) -> usize {
        let written = |byte: u8| match byte {
            b'"' | b'\\' => 2,
            ..b' ' => 6,
            _ => 1,
        };
        self.record.iter().flat_map(|record| &record.parts).flat_map(|part| part.text.bytes()).map(written).sum()
    }

    /// Drops the texts.
    pub fn drop_texts(&mut self) {
        self.record.iter_mut().for_each(PinnedTool::drop_texts);
    }
}

/// What a tool can do. Where a client that reads keys in any case finds another definition than the classifier does, that is not known.
fn class_of(definition: &Definition) -> ToolClass {
    let value = definition.value();
    let is_twin = |key: &String| ToolPart::ALL.iter().any(|part| key != part.as_str() && same_but_for_case(key, part.as_str()));
    if value.as_object().is_some_and(|members| members.keys().any(is_twin)) {
        return ToolClass::Unknown;
    }
    // Clients differ in what they make of a hint that is no boolean, or that stands there in another case.
    let is_odd = |(key, value): (&String, &Value)| {
        let hints = ["readOnlyHint", "destructiveHint"];
        let is_hint = hints.contains(&key.as_str());
        !is_hint && hints.iter().any(|hint| same_but_for_case(key, hint)) || is_hint && !value.is_boolean() && !value.is_null()
    };
    if value.get("annotations").and_then(Value::as_object).is_some_and(|hints| hints.iter().any(is_odd)) {
        return ToolClass::Unknown;
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let annotation = |name: &str| value.get("annotations").and_then(|annotations| annotations.get(name));
    let hint = |name: &str| annotation(name).and_then(Value::as_bool);
    // Older servers write the title among the annotations.
    let title = text(value.get("title")).or_else(|| text(annotation("title")));
    let description = text(value.get("description"));
    let annotations = ToolAnnotations { read_only: hint("readOnlyHint"), destructive: hint("destructiveHint") };
    classify(&ToolDefinition {
        name: definition.name(),
        title: title.as_deref(),
        description: description.as_deref(),
        input_schema: value.get("inputSchema"),
        annotations,
    })
    .class
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_has_the_class_that_its_words_say() {
        let class = |text: &str| KeptDefinition::read(text.as_bytes(), [0; 32], false).class;
        assert_eq!(class(r#"{"name":"delete_repo","description":"Deletes a repository for ever."}"#), ToolClass::Destructive);
        assert_eq!(class(r#"{"name":"get_repo","description":"Gets a repository."}"#), ToolClass::Read);
        assert_eq!(class(r#"{"name":"x","annotations":{"title":"Delete a repository"}}"#), ToolClass::Destructive);
    }

    #[test]
    fn what_clients_read_in_different_ways_can_be_anything() {
        for text in [
            r#"{"name":"get_repo","description":"Gets a repository.","Description":"Deletes it."}"#,
            r#"{"name":"get_repo","INPUTSCHEMA":{}}"#,
            r#"{"name":"get_repo","x":1,"annotations":{"readOnlyHint":true,"ReadOnlyHint":false}}"#,
            r#"{"name":"get_repo","x":1,"annotations":{"destructiveHint":"true"}}"#,
        ] {
            let read = KeptDefinition::read(text.as_bytes(), [0; 32], true);
            assert_eq!(read.class, ToolClass::Unknown, "{text}");
            assert!(read.digests.get(ToolPart::Other).is_some(), "{text}");
        }
        for text in ["", "{}", r#"{"name":"get_repo","description":"a","description":"b"}"#, r#"{"name":"a","x":1e999}"#, "[]"] {
            let read = KeptDefinition::read(text.as_bytes(), [0; 32], true);
            assert_eq!((read.class, &read.record), (ToolClass::Unknown, &None), "{text}");
            let plain = KeptDefinition::read(br#"{"name":"a"}"#, [0; 32], true);
            assert!(!read.digests.changed(&plain.digests).is_empty(), "{text}");
        }
    }
}
