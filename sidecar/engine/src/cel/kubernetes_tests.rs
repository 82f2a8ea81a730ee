//! Expressions mean here what they mean in Kubernetes: `tests/cel/expressions.json` against what cel-go gave for each, which is
//! in `tests/cel/cel-go.json`. Where it is otherwise, docs/policies.md says so, and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::LazyLock};

use cel::common::{
    types::{CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelType, CelUInt},
    value::Val,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Expression, Inputs,
    arguments::{arguments, pod},
    work::Meter,
};
use crate::json::Reader;

#[derive(Deserialize)]
struct Row {
    expression: String,
    arguments: Option<Box<RawValue>>,
    /// The name of the difference in docs/policies.md.
    differs: Option<String>,
}

#[derive(Deserialize)]
struct CelGoAnswer {
    expression: String,
    value: String,
}

fn file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each row with what cel-go gives and what the engine gives.
static ROWS: LazyLock<Vec<(Row, String, String)>> = LazyLock::new(|| {
    let rows: Vec<Row> = serde_json::from_str(&file("tests/cel/expressions.json")).unwrap();
    let answers = file("tests/cel/cel-go.json");
    let answers: Vec<CelGoAnswer> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), answers.len(), "tests/cel/run.sh --write writes cel-go's answers anew");
    let with_ours = |(row, answer): (Row, CelGoAnswer)| {
        assert_eq!(row.expression, answer.expression, "tests/cel/run.sh --write writes cel-go's answers anew");
        let ours = value(&row).unwrap_or_else(|_| "error".to_owned());
        (row, answer.value, ours)
    };
    rows.into_iter().zip(answers).map(with_ours).collect()
});

fn value(row: &Row) -> Result<String, String> {
    let expression = Expression::compile(&row.expression)?;
    let (meter, pod) = (Meter::default(), pod("p", "agents", "default"));
    let raw = row.arguments.as_ref().map(|text| Reader::new(text.get().as_bytes()).unwrap().value().unwrap());
    let args = arguments(raw, &meter).unwrap();
    let inputs = Inputs { args: Some(&args), name: "pay", server: "bank", session: "s", pod: &pod };
    expression.evaluate(&inputs, &meter, |value| Ok(show(value))).map_err(|why| why.to_string())
}

/// A value as a text from which its type and itself can be told; tests/cel/go/main.go writes the same.
fn show(value: &dyn Val) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    if value.downcast_ref::<CelNull>().is_some() {
        "null".to_owned()
    } else if let Some(value) = value.downcast_ref::<CelBool>() {
        value.inner().to_string()
    } else if let Some(value) = value.downcast_ref::<CelInt>() {
        value.inner().to_string()
    } else if let Some(value) = value.downcast_ref::<CelUInt>() {
        format!("{}u", value.inner())
    } else if let Some(value) = value.downcast_ref::<CelDouble>() {
        show_double(*value.inner())
    } else if let Some(value) = value.downcast_ref::<CelString>() {
        quoted(value.inner())
    } else if let Some(value) = value.downcast_ref::<CelBytes>() {
        format!("b{}", quoted(&value.inner().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    } else if let Some(value) = value.downcast_ref::<CelType>() {
        format!("type {}", value.name())
    } else if let Some(value) = value.downcast_ref::<CelList>() {
        format!("[{}]", value.inner().iter().map(|item| show(item.as_ref())).collect::<Vec<_>>().join(", "))
    } else if let Some(value) = value.downcast_ref::<CelMap>() {
        let key = |key: &CelMapKey<'_>| match key {
            CelMapKey::Bool(key) => key.inner().to_string(),
            CelMapKey::Int(key) => key.inner().to_string(),
            CelMapKey::UInt(key) => format!("{}u", key.inner()),
            CelMapKey::String(key) => quoted(key.inner()),
        };
        let entries = value.inner().iter().map(|(of, value)| format!("{}: {}", key(of), show(value.as_ref())));
        let mut entries: Vec<String> = entries.collect();
        entries.sort();
        format!("{{{}}}", entries.join(", "))
    } else {
        value.get_type().name().to_owned()
    }
}

fn show_double(value: f64) -> String {
    if value.is_finite() {
        format!("{value:e}")
    } else if value.is_nan() {
        "double NaN".to_owned()
    } else {
        format!("double {}Inf", if value > 0.0 { '+' } else { '-' })
    }
}

#[test]
fn an_expression_gives_what_it_gives_in_kubernetes_or_stands_among_the_differences() {
    assert!(ROWS.len() > 1000, "the docs promise over a thousand");
    let mut wrong = Vec::new();
    for (row, theirs, ours) in &*ROWS {
        if (theirs != ours) != row.differs.is_some() {
            let why = if ours == "error" { value(row).unwrap_err() } else { String::new() };
            wrong.push(format!("{}   cel-go: {theirs}   here: {ours} {why}", row.expression));
        }
    }
    assert!(wrong.is_empty(), "{} expressions:\n{}", wrong.len(), wrong.join("\n"));
}

/// The rows of the table of differences: what, example, in Kubernetes, here.
fn documented() -> BTreeMap<String, [String; 3]> {
    let policies = file("docs/policies.md");
    let (_, section) = policies.split_once("### Where it differs from Kubernetes' engine\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, what, example, theirs, ours, why, _] = *cells else { panic!("{line}") };
        assert!(!why.is_empty(), "{line}");
        (what.to_owned(), [example, theirs, ours].map(|cell| cell.trim_matches('`').to_owned()))
    };
    section.lines().filter(|line| line.starts_with('|')).skip(2).map(row).collect()
}

#[test]
fn every_kind_of_difference_stands_in_the_docs_with_an_example_that_shows_it() {
    let documented = documented();
    for (row, ..) in &*ROWS {
        assert!(
            row.differs.iter().all(|what| documented.contains_key(what)),
            "docs/policies.md does not tell of {:?}",
            row.differs
        );
    }
    for (what, [example, theirs, ours]) in documented {
        let shows = |(row, cel_go, here): &&(Row, String, String)| {
            row.differs.as_deref() == Some(&*what) && row.expression == example && *cel_go == theirs && *here == ours
        };
        assert!(ROWS.iter().any(|row| shows(&row)), "docs/policies.md tells of a difference that is none: {what}: {example}");
    }
}
