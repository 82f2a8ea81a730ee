//! What became of the parts of a definition.

use serde_json::{Map, Value};
use toolweir_crds::{
    PinnedPart, PinnedTool, ToolPart,
    seen::{ChangeKind, PartChange},
};

use crate::{
    containment::{Unnamed, contains},
    keywords::{Content, content},
    references::refers_into,
    strict::read_json,
};

/// Compares what was pinned with what is there now: a change for each part whose digest is another, in the order of parts.
///
/// Of what kind it is, the texts say. A schema is [`ChangeKind::Text`] where only titles, descriptions, examples, comments, defaults and
/// deprecations differ. It is [`ChangeKind::Narrower`] where it is certain that it accepts nothing that the pinned one refuses, and
/// [`ChangeKind::Wider`] the other way round, whatever became of its texts. [`ChangeKind::Changed`] is everything else, and every schema
/// whose text is cut or was not kept.
///
/// What a schema accepts is judged by the arguments that it names, since a model sends those of which it has read: where an object names
/// properties and does not speak of others, others are refused. So an optional property makes a schema wider, although JSON Schema would
/// accept anything under that name before; without the property it is narrower; and one that is required from now on is a change, since old
/// calls fail and new ones were not possible. What is equal in this respect is judged as JSON Schema has it: to refuse others expressly
/// (`additionalProperties: false`) is narrower than not to speak of them.
pub fn changes(before: &PinnedTool, now: &PinnedTool) -> Vec<PartChange> {
    let change = |part| {
        let change = match (of(before, part), of(now, part)) {
            (None, None) => return None,
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            (Some(before), Some(now)) if before.sha256 == now.sha256 => return None,
            (Some(before), Some(now)) => kind(before, now),
        };
        Some(PartChange { part, change })
    };
    ToolPart::ALL.into_iter().filter_map(change).collect()
}

fn of(tool: &PinnedTool, part: ToolPart) -> Option<&PinnedPart> {
    tool.parts.iter().find(|pinned| pinned.part == part)
}

fn kind(before: &PinnedPart, now: &PinnedPart) -> ChangeKind {
    match before.part {
        ToolPart::Title | ToolPart::Description => ChangeKind::Text,
        ToolPart::Annotations => ChangeKind::Annotation,
        ToolPart::InputSchema | ToolPart::OutputSchema => {
            schema(before).zip(schema(now)).map_or(ChangeKind::Changed, |(before, now)| kind_of_schema(&before, &now))
        }
        ToolPart::Icons | ToolPart::Execution | ToolPart::Meta | ToolPart::Other => ChangeKind::Changed,
    }
}

/// The schema, where its text is whole.
fn schema(part: &PinnedPart) -> Option<Value> {
    read_json(part.text.as_bytes()).ok().filter(|_| !part.cut)
}

fn kind_of_schema(before: &Value, now: &Value) -> ChangeKind {
    // A default to which a reference leads is a schema.
    if refers_into(before, Content::Text) || refers_into(now, Content::Text) {
        return ChangeKind::Changed;
    }
    let (before, now) = (without_text(before), without_text(now));
    if before == now {
        return ChangeKind::Text;
    }
    for unnamed in [Unnamed::Refused, Unnamed::Accepted] {
        match (contains(&before, &now, unnamed), contains(&now, &before, unnamed)) {
            (true, false) => return ChangeKind::Narrower,
            (false, true) => return ChangeKind::Wider,
            (false, false) => return ChangeKind::Changed,
            (true, true) => {}
        }
    }
    ChangeKind::Changed
}

/// The schema without what it says to people and models alone.
fn without_text(schema: &Value) -> Value {
    let Value::Object(keywords) = schema else { return schema.clone() };
    let said = |(name, _): &(&String, &Value)| content(name) != Content::Text;
    let keyword = |(name, value): (&String, &Value)| {
        let value = match (content(name), value) {
            (Content::Schema, Value::Object(_)) => without_text(value),
            (Content::Schema | Content::Schemas, Value::Array(schemas)) => schemas.iter().map(without_text).collect(),
            (Content::Named, Value::Object(named)) => {
                Value::Object(named.iter().map(|(name, schema)| (name.clone(), without_text(schema))).collect())
            }
            _ => value.clone(),
        };
        (name.clone(), value)
    };
    Value::Object(keywords.iter().filter(said).map(keyword).collect::<Map<_, _>>())
}
