//! Tools that stand in a file: a result of tools/list, alone or in its response, a bare list, or what a registry says of a server.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

use super::{
    definition::{ServerTools, ToolCollector, server_name},
    limits::ReadLimits,
    strict_json,
};
use crate::table::shown;

/// What may stand in a file, for errors.
const FORMS: &str = "give a saved result of tools/list, a list of tools, or a server.json of a registry with tool definitions";

/// Reads the tools of a file; `-` is the standard input.
///
/// # Errors
/// The file cannot be read, is too large, or holds no definitions of tools.
pub fn read(path: &Path, limits: &ReadLimits) -> anyhow::Result<ServerTools> {
    let shown_path = path.display().to_string();
    let bytes = bytes(path, limits).with_context(|| shown(&shown_path).into_owned())?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    parse(&bytes, &stem, limits).with_context(|| shown(&shown_path).into_owned())
}

fn bytes(path: &Path, limits: &ReadLimits) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limits.bytes).unwrap_or(u64::MAX);
    let read = |from: &mut dyn Read, bytes: &mut Vec<u8>| from.take(most.saturating_add(1)).read_to_end(bytes);
    if path.as_os_str() == "-" {
        read(&mut io::stdin().lock(), &mut bytes)?;
    } else {
        let opened = File::open(path).and_then(|mut file| read(&mut file, &mut bytes));
        opened.map_err(|error| {
            anyhow!("cannot be read: {error}; {FORMS}, a URL with http:// or https://, or a command after --")
        })?;
    }
    if bytes.len() > limits.bytes {
        bail!("has more than {} bytes, which no list of tools needs; {FORMS}", limits.bytes);
    }
    Ok(bytes)
}

/// Reads the tools of a file's content. `stem` names the server where the content does not.
fn parse(bytes: &[u8], stem: &str, limits: &ReadLimits) -> anyhow::Result<ServerTools> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let file = strict_json::parse(bytes).map_err(|error| {
        let why =
            if is_yaml(bytes) { "this is YAML, not a list of tools".to_owned() } else { format!("is not sound JSON: {error}") };
        anyhow!("{why}; {FORMS}")
    })?;
    let definitions = definitions(&file)?;
    let mut tools = ToolCollector::default();
    tools.add(definitions.clone(), limits)?;
    let of = |name: &str| file.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = of("name");
    Ok(ServerTools {
        name: server_name(name.unwrap_or(stem)),
        says_name: name.is_some(),
        url: remote(&file),
        tools: tools.finish(),
        others: None,
    })
}

/// Returns true of what is no JSON and begins as YAML does, such as a manifest.
fn is_yaml(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let first = text.lines().map(str::trim_end).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    let key = first.split_once(':').filter(|(key, value)| {
        key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) && (value.is_empty() || value.starts_with(' '))
    });
    first == "---" || first.starts_with("- ") || key.is_some_and(|(key, _)| !key.is_empty())
}

/// Finds the definitions: where a result of tools/list has them, or anywhere in what a registry writes.
fn definitions(file: &Value) -> anyhow::Result<&Vec<Value>> {
    if let Value::Array(list) = file {
        return Ok(list);
    }
    let result = file.get("result").unwrap_or(file);
    if let Some(list) = result.get("tools").and_then(Value::as_array) {
        if result.get("nextCursor").and_then(Value::as_str).is_some() {
            bail!("is one page of a list that goes on (nextCursor); save all pages, or give the server's URL or command");
        }
        if !named_only(list) {
            return Ok(list);
        }
    }
    if let Some(error) = file.get("error") {
        bail!("is the error of a server: {}; {FORMS}", shown(&error.to_string()));
    }
    for key in ["tool_definitions", "tools"] {
        let mut found = Vec::new();
        collect(file, key, &mut found);
        let mut full = found.iter().filter(|list| !named_only(list));
        if let Some(first) = full.next() {
            if full.any(|other| other != first) {
                bail!("has several lists of tools (`{key}`) that differ; keep the one that you want");
            }
            return Ok(first);
        }
    }
    let mut names = Vec::new();
    collect(file, "tools", &mut names);
    if names.is_empty() {
        bail!("has no definitions of tools; {FORMS}");
    }
    bail!("has only the names of tools, which do not say enough; give the server's URL or command, or a file with definitions")
}

/// Returns true of a list that names tools without defining them.
fn named_only(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(Value::is_string)
}

/// Collects every list under a key.
fn collect<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Vec<Value>>) {
    match value {
        Value::Object(members) => {
            for (name, inner) in members {
                match inner {
                    Value::Array(list) if name == key => found.push(list),
                    other => collect(other, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
        _ => {}
    }
}

/// Returns the URL of a server that a registry lists with exactly one, and without variables.
fn remote(file: &Value) -> Option<String> {
    let [remote] = file.get("remotes")?.as_array()?.as_slice() else { return None };
    let url = remote.get("url")?.as_str()?;
    let plain = (url.starts_with("https://") || url.starts_with("http://"))
        && !url.contains(['{', '}'])
        && !url.contains(char::is_control);
    plain.then(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(file: &Value) -> Result<ServerTools, String> {
        parse(file.to_string().as_bytes(), "saved", &ReadLimits::default()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_form_of_a_list_is_read() {
        let list = json!([{"name": "a"}, {"name": "b", "icons": []}]);
        for file in [
            list.clone(),
            json!({"tools": list}),
            json!({"tools": list, "ttlMs": 1, "nextCursor": null}),
            json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": list}}),
        ] {
            let found = read(&file).unwrap();
            assert_eq!((found.name.as_str(), &found.url), ("saved", &None));
            assert_eq!(found.tools.iter().map(|tool| tool.definition().clone()).collect::<Vec<_>>(), *list.as_array().unwrap());
        }
        let marked = [b"\xef\xbb\xbf".as_slice(), list.to_string().as_bytes()].concat();
        assert_eq!(parse(&marked, "x", &ReadLimits::default()).unwrap().tools.len(), 2);
        assert_eq!(read(&json!({"tools": []})).unwrap().tools, []);
    }

    #[test]
    fn a_registry_has_definitions_deep_inside() {
        let of = |extra: Value| {
            json!({"name": "io.github.acme/pay", "remotes": [{"type": "streamable-http", "url": "https://pay.example/mcp"}],
                "_meta": {"publisher": {"x": [{"tools": ["a"], "tool_definitions": [{"name": "a"}]}, extra]}}})
        };
        let found = read(&of(json!({"tool_definitions": [{"name": "a"}]}))).unwrap();
        assert_eq!((found.name.as_str(), found.url.as_deref()), ("pay", Some("https://pay.example/mcp")));
        assert_eq!(found.tools.len(), 1);
        assert!(read(&of(json!({"tool_definitions": [{"name": "b"}]}))).unwrap_err().contains("several lists"));
        let names = json!({"_meta": {"tools": ["a"]}, "remotes": [{"url": "https://{host}/mcp"}]});
        assert!(read(&names).unwrap_err().starts_with("has only the names of tools"));
        assert_eq!(remote(&names), None);
    }

    #[test]
    fn what_is_no_list_is_told_with_what_to_give() {
        for (file, why) in [
            (json!({}), "has no definitions of tools; give a saved result"),
            (json!("x"), "has no definitions of tools"),
            (json!({"tools": [{"name": "a"}], "nextCursor": "2"}), "is one page of a list that goes on"),
            (json!({"jsonrpc": "2.0", "id": 1, "error": {"code": 1}}), "is the error of a server: {\"code\":1}"),
            (json!([{"name": "a"}, {"name": "a"}]), "two tools are named `a`"),
        ] {
            let error = read(&file).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
        let parsed = |bytes: &[u8]| parse(bytes, "x", &ReadLimits::default()).unwrap_err().to_string();
        assert!(parsed(b"true or not").starts_with("is not sound JSON: trailing characters at line 1 column 6; give"));
        for yaml in ["tools:\n- a", "# Pinned\n\n---\nkind: MCPToolPins", "apiVersion: x", "- a"] {
            let error = parsed(yaml.as_bytes());
            assert!(error.starts_with("this is YAML, not a list of tools; give a saved result"), "{error}");
        }
        assert!(parsed(br#"[{"name": "a", "name": "b"}]"#).contains("`name` stands twice in one object"));
        let small = ReadLimits { bytes: 10, ..ReadLimits::default() };
        let error = format!("{:#}", super::read(Path::new("Cargo.toml"), &small).unwrap_err());
        assert!(error.starts_with("Cargo.toml: has more than 10 bytes"), "{error}");
        let error = format!("{:#}", super::read(Path::new("/nowhere"), &small).unwrap_err());
        assert!(error.starts_with("/nowhere: cannot be read: No such file"), "{error}");
    }
}
