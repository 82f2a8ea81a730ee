#!/usr/bin/env bash
# yaml_serde 0.10.7 (the maintained fork of serde_yaml), and the ways to write one null: nothing, `~` and `null`.
#
# YAML's core schema gives all three the same value, and yaml_serde::Value has Null for each. Read into a type, the notation decides. Nothing
# behind the colon is whatever is empty of the type: a struct whose fields may be left out (with all of them left out), the empty String, the
# empty Vec. `~` and `null` are refused for the struct and the Vec, and for a String they are their own letters. By way of Value it is neither:
# the struct and the Vec are read from each notation, and the String from none. Only Option reads them alike. serde_json refuses a null for the
# same struct.
#
# So whoever validates a file as a Value, or converts it to JSON, and then reads it into a type has looked at another document than the one that
# is used. And a key that was left behind when the lines below it were commented out is a struct of defaults, not an error.
#
# Output seen:
#   struct  rule:          from_str: Rule { when: None }      from_value: Rule { when: None }
#   struct  rule: ~        from_str: refused                  from_value: Rule { when: None }
#   struct  rule: null     from_str: refused                  from_value: Rule { when: None }
#   String  rule:          from_str: ""                       from_value: refused
#   String  rule: ~        from_str: "~"                      from_value: refused
#   String  rule: null     from_str: "null"                   from_value: refused
#   Vec     rule:          from_str: []                       from_value: []
#   Vec     rule: ~        from_str: refused                  from_value: []
#   Vec     rule: null     from_str: refused                  from_value: []
#   Option  rule:          from_str: None                     from_value: None
#   Option  rule: ~        from_str: None                     from_value: None
#   Option  rule: null     from_str: None                     from_value: None
#   serde_json: refused
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cat >"$work/Cargo.toml" <<'END'
[package]
name = "nulls"
version = "0.0.0"
edition = "2024"

[dependencies]
serde = { version = "=1.0.229", features = ["derive"] }
serde_json = "=1.0.154"
yaml_serde = "=0.10.7"

[profile.dev]
debug = false
END
cat >"$work/src/main.rs" <<'END'
use std::fmt::Debug;

use serde::{Deserialize, de::DeserializeOwned};

#[derive(Debug, Deserialize)]
struct Rule {
    #[allow(dead_code)]
    when: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Entry<T> {
    rule: T,
}

fn told<T: Debug, E>(read: Result<Entry<T>, E>) -> String {
    read.map_or_else(|_| "refused".to_owned(), |entry| format!("{:?}", entry.rule))
}

fn read<T: DeserializeOwned + Debug>(kind: &str) {
    for text in ["rule:", "rule: ~", "rule: null"] {
        let typed = told(yaml_serde::from_str::<Entry<T>>(text));
        let value: yaml_serde::Value = yaml_serde::from_str(text).unwrap();
        assert!(value["rule"].is_null());
        let by_value = told(yaml_serde::from_value::<Entry<T>>(value));
        println!("{kind:<7} {text:<14} from_str: {typed:<24} from_value: {by_value}");
    }
}

fn main() {
    read::<Rule>("struct");
    read::<String>("String");
    read::<Vec<u8>>("Vec");
    read::<Option<Rule>>("Option");
    println!("serde_json: {}", told(serde_json::from_str::<Entry<Rule>>(r#"{"rule": null}"#)));
}
END
seen=$(CARGO_TARGET_DIR=$work/target cargo run --quiet --manifest-path "$work/Cargo.toml")
echo "$seen"
promised=$(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$0")
[ "$seen" = "$promised" ] || { echo "this has changed; it was:" >&2; echo "$promised" >&2; exit 1; }
