//! Whether the texts of pins are those that were pinned.

use serde_json::Value;
use toolweir_crds::{FieldError, PinnedPart, ToolPins};

use crate::canonical::{digest_of, hex, of_value};

/// Returns an error for each text of pins that is whole and has another digest than the one beside it. Who reviews pins reads the texts,
/// and the sidecar compares the digests: both must mean the same. Paths start at the document.
pub fn check_texts(pins: &ToolPins) -> Vec<FieldError> {
    let of_part = |tool: usize, part: usize| FieldError {
        path: format!("spec.tools[{tool}].parts[{part}].text"),
        message:
            "is not the text of the digest beside it, so that somebody may read one thing and pin another; pin the tool anew"
                .to_owned(),
    };
    let tools = pins.spec.tools.iter().enumerate();
    let wrong = tools.flat_map(|(tool, pinned)| {
        let parts = pinned.parts.iter().enumerate().filter(|(_, part)| !is_own_text(part));
        parts.map(move |(part, _)| of_part(tool, part))
    });
    wrong.collect()
}

/// Returns true where a part's text is that of its digest, or is not whole, so that nobody can say.
fn is_own_text(part: &PinnedPart) -> bool {
    if part.cut || part.text.is_empty() {
        return true;
    }
    // A text stands there as it is, everything else in its canonical form.
    let has = |canonical: &str| hex(&digest_of(canonical)) == part.sha256;
    has(&part.text) || has(&of_value(&Value::String(part.text.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use toolweir_crds::ToolPins;

    use super::*;
    use crate::{Definition, document};

    #[test]
    fn texts_are_those_of_their_digests() {
        let definition = json!({"name": "t", "title": "T", "description": "a \"b\"\n", "inputSchema": {"type": "object", "required": ["b", "a"]},
            "annotations": {"readOnlyHint": true}, "x": 1.0});
        let definition = Definition::of(&definition).unwrap();
        let mut pins = ToolPins { spec: document("s", &[definition]), ..ToolPins::default() };
        assert_eq!(check_texts(&pins), []);
        for part in 0..5 {
            let kept = pins.spec.tools[0].parts[part].clone();
            pins.spec.tools[0].parts[part].text.push('.');
            let paths: Vec<String> = check_texts(&pins).into_iter().map(|error| error.path).collect();
            assert_eq!(paths, [format!("spec.tools[0].parts[{part}].text")]);
            pins.spec.tools[0].parts[part].cut = true;
            assert_eq!(check_texts(&pins), [], "of what is cut nobody can say");
            pins.spec.tools[0].parts[part] = PinnedPart { text: String::new(), ..kept.clone() };
            assert_eq!(check_texts(&pins), [], "there is no text");
            pins.spec.tools[0].parts[part] = kept;
        }
    }
}
