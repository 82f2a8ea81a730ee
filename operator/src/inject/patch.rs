//! The difference between two documents as a JSON Patch (RFC 6902).

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf};
use serde_json::{Map, Value};

/// Returns a patch that turns `from` into `to`.
///
/// Items of a list that have the same name stay where they are. By index alone, as `json_patch::diff` compares, a container
/// that comes first would rewrite every other one.
pub fn patch(from: &Value, to: &Value) -> Patch {
    let mut patch = Vec::new();
    values(from, to, &mut PointerBuf::new(), &mut patch);
    Patch(patch)
}

fn values(from: &Value, to: &Value, at: &mut PointerBuf, patch: &mut Vec<PatchOperation>) {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => objects(from, to, at, patch),
        (Value::Array(from), Value::Array(to)) => arrays(from, to, at, patch),
        _ if from == to => {}
        _ => patch.push(PatchOperation::Replace(ReplaceOperation { path: at.clone(), value: to.clone() })),
    }
}

fn objects(from: &Map<String, Value>, to: &Map<String, Value>, at: &mut PointerBuf, patch: &mut Vec<PatchOperation>) {
    for field in from.keys().filter(|field| !to.contains_key(*field)) {
        at.push_back(field);
        remove(at, patch);
        at.pop_back();
    }
    for (field, value) in to {
        at.push_back(field);
        match from.get(field) {
            Some(from) => values(from, value, at, patch),
            None => add(value, at, patch),
        }
        at.pop_back();
    }
}

/// Keeps the items at the beginning and at the end that both lists have, removes those between of `from`, and adds those of `to`.
fn arrays(from: &[Value], to: &[Value], at: &mut PointerBuf, patch: &mut Vec<PatchOperation>) {
    let head = from.iter().zip(to).take_while(|(from, to)| same(from, to)).count();
    let (from_rest, to_rest) = (from.get(head..).unwrap_or_default(), to.get(head..).unwrap_or_default());
    let tail = from_rest.iter().rev().zip(to_rest.iter().rev()).take_while(|(from, to)| same(from, to)).count();
    let (from_tail, to_tail) = (from.len() - tail, to.len() - tail);
    let each = |from: &[Value], to: &[Value], first: usize, at: &mut PointerBuf, patch: &mut Vec<PatchOperation>| {
        for (index, (from, to)) in from.iter().zip(to).enumerate() {
            at.push_back(first + index);
            values(from, to, at, patch);
            at.pop_back();
        }
    };
    each(from, to.get(..head).unwrap_or_default(), 0, at, patch);
    for index in (head..from_tail).rev() {
        at.push_back(index);
        remove(at, patch);
        at.pop_back();
    }
    for (index, value) in to.iter().enumerate().take(to_tail).skip(head) {
        at.push_back(index);
        add(value, at, patch);
        at.pop_back();
    }
    each(from.get(from_tail..).unwrap_or_default(), to.get(to_tail..).unwrap_or_default(), to_tail, at, patch);
}

/// Returns whether two items stand for the same object: they are equal, or have the same name or, of mounts, the same path.
fn same(from: &Value, to: &Value) -> bool {
    let key = |value: &Value| value.get("mountPath").or_else(|| value.get("name")).and_then(Value::as_str).map(str::to_owned);
    from == to || key(from).is_some_and(|name| Some(name) == key(to))
}

fn add(value: &Value, at: &PointerBuf, patch: &mut Vec<PatchOperation>) {
    patch.push(PatchOperation::Add(AddOperation { path: at.clone(), value: value.clone() }));
}

fn remove(at: &PointerBuf, patch: &mut Vec<PatchOperation>) {
    patch.push(PatchOperation::Remove(RemoveOperation { path: at.clone() }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_comes_first_leaves_the_rest_alone() {
        let from = json!({"containers": [{"name": "a", "image": "x"}, {"name": "b"}], "restartPolicy": "Always"});
        let to = json!({"containers": [{"name": "ours"}, {"name": "a", "image": "x"}, {"name": "b", "env": [1]}]});
        let expected = json!([
            {"op": "remove", "path": "/restartPolicy"},
            {"op": "add", "path": "/containers/0", "value": {"name": "ours"}},
            {"op": "add", "path": "/containers/2/env", "value": [1]},
        ]);
        assert_eq!(serde_json::to_value(patch(&from, &to)).unwrap(), expected);
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<u8>().prop_map(|number| json!(number)),
            "[a-b~/ü]{0,3}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::btree_map("[a-b~/]{0,2}|name|mountPath", inner.clone(), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
                // Lists of things with names, some of them twice.
                prop::collection::vec(("[a-d]", inner), 0..6).prop_map(|items| {
                    Value::Array(items.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_one_document_of_the_other(from in document(), to in document()) {
            let mut patched = from.clone();
            json_patch::patch(&mut patched, &patch(&from, &to)).unwrap();
            prop_assert_eq!(patched, to);
        }

        #[test]
        fn nothing_is_patched_where_nothing_differs(document in document()) {
            prop_assert_eq!(patch(&document, &document), Patch(Vec::new()));
        }
    }
}
