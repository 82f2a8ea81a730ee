//! Reads and changes fields of objects that may not be there, and shows them.

use serde_json::{Map, Value};

/// Returns the name of a container, volume, mount or variable.
pub(crate) fn name(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}

/// Returns the items of a list; none where there is no list.
pub(crate) fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn list<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut [Value] {
    object.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

pub(super) trait Fields {
    fn field(&mut self, name: &str) -> Option<&mut Value>;
}

impl Fields for Value {
    fn field(&mut self, name: &str) -> Option<&mut Value> {
        self.get_mut(name)
    }
}

impl Fields for Map<String, Value> {
    fn field(&mut self, name: &str) -> Option<&mut Value> {
        self.get_mut(name)
    }
}

pub(super) fn object<'a>(parent: &'a mut impl Fields, field: &str) -> Option<&'a mut Map<String, Value>> {
    parent.field(field)?.as_object_mut()
}

/// Returns the object at a field, and creates it where there is none.
pub(super) fn entry_object<'a>(parent: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    if !parent.get(field).is_some_and(Value::is_object) {
        parent.insert(field.to_owned(), Value::Object(Map::new()));
    }
    parent.get_mut(field)?.as_object_mut()
}

pub(super) fn retain(object: &mut Map<String, Value>, field: &str, keep: impl Fn(&Value) -> bool) {
    if let Some(list) = object.get_mut(field).and_then(Value::as_array_mut) {
        list.retain(keep);
    }
    tidy(object, field);
}

/// Removes a field that is null or empty.
pub(super) fn tidy(object: &mut Map<String, Value>, field: &str) {
    let empty = object.get(field).is_some_and(|value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    });
    if empty {
        object.remove(field);
    }
}

pub(super) fn prepend(object: &mut Map<String, Value>, field: &str, items: &[Value]) {
    let mut all = items.to_vec();
    if let Some(Value::Array(list)) = object.remove(field) {
        all.extend(list);
    }
    object.insert(field.to_owned(), Value::Array(all));
}

/// Returns the annotations of a pod.
pub(super) fn annotations(pod: &Value) -> Option<&Map<String, Value>> {
    pod.get("metadata")?.get("annotations")?.as_object()
}

/// Returns the value of an annotation of a pod.
pub(super) fn annotation<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    annotations(pod)?.get(key)?.as_str()
}

/// Returns the path of an annotation in its object.
pub(super) fn path(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// Returns a text of the pod, which is not checked yet, as one line of at most 63 characters.
pub(crate) fn shown(text: &str) -> String {
    toolweir_crds::text::escaped(text, 63)
}
