//! JSON whose objects say each thing once. Of two members with one name, some parsers take the first and some the last, so that a server
//! could show one definition here and another to the agent. Numbers are read as the sidecar reads them, so that definitions have the same
//! digests.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use toolweir_pins::read_json;

use crate::table::shown;

/// Parses a text.
///
/// # Errors
/// It is not JSON, an object repeats a name, or it nests deeper than 128 levels.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    // This error says where it is.
    serde_json::from_slice::<Unrepeated>(text)?;
    read_json(text).map_err(serde_json::Error::custom)
}

/// Any value of which no object repeats a name.
struct Unrepeated;

impl<'de> Deserialize<'de> for Unrepeated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Unrepeated;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_unit<E>(self) -> Result<Unrepeated, E> {
        Ok(Unrepeated)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unrepeated, A::Error> {
        while items.next_element::<Unrepeated>()?.is_some() {}
        Ok(Unrepeated)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unrepeated, A::Error> {
        let mut names = HashSet::new();
        while let Some((name, Unrepeated)) = members.next_entry::<String, Unrepeated>()? {
            if names.contains(&name) {
                let name: String = shown(&name).chars().take(80).collect();
                return Err(A::Error::custom(format!("`{name}` stands twice in one object")));
            }
            names.insert(name);
        }
        Ok(Unrepeated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_once_in_an_object() {
        let text = br#"{"a": [1, -2, 2.5, true, null, "x\u0041"], "b": {"a": {}}}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_slice::<Value>(text).unwrap());
        // The nearest number, which the parser alone does not give.
        assert_eq!(parse(b"[9.5367431640625001e-7, 1e2]").unwrap().to_string(), "[9.5367431640625e-7,100]");
        for (text, why) in [
            (r#"{"a": {"b": 1, "b": 1}}"#, "`b` stands twice in one object at line 1 column"),
            ("{\"a\": 1, \"\\u0061\": 2}", "`a` stands twice"),
            ("{} {}", "trailing characters"),
            ("", "EOF"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
