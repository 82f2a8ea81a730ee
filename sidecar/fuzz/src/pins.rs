//! Definitions of a tool, one after the other on lines: notation changes no digest, and a change is told the same from both sides.

use serde_json::Value;
use toolweir_crds::{PinnedTool, seen::ChangeKind};
use toolweir_pins::{Definition, changes, document};

/// Bytes of text that pins keep, in turn.
const TEXTS: [usize; 3] = [usize::MAX, 40, 0];

/// The same value with the members of each object in reverse, each number with an exponent, and each letter escaped.
fn rewritten(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => {
            out.push('"');
            text.encode_utf16().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            out.push('"');
        }
        // Of one that is no integer, an exponent more could be one too many.
        Value::Number(number) if number.is_f64() => out.push_str(&format!("{:e}", number.as_f64().expect("an f64"))),
        Value::Number(number) => out.push_str(&format!("{number}.00e+0")),
        Value::Array(items) => {
            let items = items.iter().map(of).collect::<Vec<_>>();
            out.push_str(&format!("[ {} ]", items.join(" ,\n")));
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| format!("{}\t: {}", of(&Value::from(name.as_str())), of(value));
            let members = members.iter().rev().map(member).collect::<Vec<_>>();
            out.push_str(&format!("{{ {} }}", members.join(" , ")));
        }
        other => out.push_str(&other.to_string()),
    }
}

fn of(value: &Value) -> String {
    let mut out = String::new();
    rewritten(value, &mut out);
    out
}

fn told(before: &PinnedTool, now: &PinnedTool) {
    let (there, back) = (changes(before, now), changes(now, before));
    assert_eq!(there.len(), back.len());
    for (one, other) in there.iter().zip(&back) {
        let expected = match one.change {
            ChangeKind::Narrower => ChangeKind::Wider,
            ChangeKind::Wider => ChangeKind::Narrower,
            ChangeKind::Added => ChangeKind::Removed,
            ChangeKind::Removed => ChangeKind::Added,
            other => other,
        };
        assert_eq!((other.part, other.change), (one.part, expected), "{before:?} and {now:?}");
    }
}

/// The check.
pub fn check(bytes: &[u8]) {
    let mut definitions = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').take(4) {
        match Definition::read(line) {
            Ok(definition) => definitions.push(definition),
            Err(error) => super::assert_one_line(&error.to_string()),
        }
    }
    for definition in &definitions {
        let digests = definition.digests();
        let again = Definition::read(of(definition.value()).as_bytes()).expect("a definition that was written anew");
        assert_eq!((again.digests(), again.name()), (digests, definition.name()), "{:?}", definition.value());
        assert_eq!(Definition::of(definition.value()).expect("a definition that was read").digests(), digests);
        for bytes in TEXTS {
            let pinned = definition.pinned(bytes);
            assert_eq!(pinned.digests().expect("digests of pins"), digests);
            assert_eq!(changes(&pinned, &again.pinned(bytes)), vec![]);
        }
    }
    for (at, before) in definitions.iter().enumerate() {
        for now in definitions.iter().skip(at + 1) {
            let changed: Vec<_> = before.digests().changed(&now.digests()).iter().collect();
            for bytes in TEXTS {
                let (before, now) = (before.pinned(bytes), now.pinned(bytes));
                assert!(changes(&before, &now).iter().map(|change| change.part).eq(changed.iter().copied()));
                told(&before, &now);
            }
        }
    }
    let spec = document("server", &definitions);
    assert!(spec.tools.len() <= definitions.len() && spec.tools.is_sorted_by_key(|tool| tool.name.clone()));
}
