//! Definitions that were called Read, though a model would read them as changing something; and those that only look so.

use serde_json::{Map, Value, json};
use toolweir_classes::{ToolDefinition, classify};
use toolweir_crds::ToolClass::{self, Destructive, Execute, Read, Unknown, Write};

fn class(name: &str, description: &str, arguments: &Value) -> ToolClass {
    let schema = json!({"type": "object", "properties": arguments});
    classify(&ToolDefinition { name, description: Some(description), input_schema: Some(&schema), ..ToolDefinition::default() })
        .class
}

fn of_schema(schema: &Value) -> ToolClass {
    classify(&ToolDefinition { name: "list_bees", input_schema: Some(schema), ..ToolDefinition::default() }).class
}

fn all(wanted: ToolClass, descriptions: &[&str], of: impl Fn(&str) -> ToolClass) {
    let wrong: Vec<_> = descriptions.iter().map(|text| (*text, of(text))).filter(|(_, class)| *class != wanted).collect();
    assert!(wrong.is_empty(), "not {wanted:?}: {wrong:#?}");
}

#[test]
fn a_promise_with_a_doubt_is_no_promise() {
    let query = |text: &str| class("query_hives", text, &json!({"sql": {"type": "string"}}));
    let plain = [
        "Runs read-only SQL queries.",
        "Runs a SELECT query.",
        "Only SELECT statements are allowed.",
        "Run a read-only SQL query. \
         INSERT and UPDATE are rejected.",
        "Runs a read-only SQL query on the hives. Does not modify data.",
    ];
    all(Read, &plain, query);
    let course = "A read-only SQL query for counting, or joining, bees. Give a time, otherwise the query reads the last day.";
    let listed = json!({"sql": {"description": "A read-only SQL query. Tables include bees, but this list is not complete: run `select 1`."}});
    assert_eq!(class("query_hives", course, &listed), Read);
    let open = json!({"sql": {"description": "SQL, not limited to SELECT"}});
    assert_eq!(class("query_hives", "A read-only SQL query", &open), Execute);
    let doubtful = [
        "Run a SELECT query or a procedure.",
        "Runs SELECT queries and DDL.",
        "Runs read-only queries and writes.",
        "Runs a SELECT query. Non-SELECT statements are executed too.",
        "Run a read-only query, or delete rows.",
        "Runs SQL, whether read-only or not.",
        "Runs SQL queries (read-only queries and others).",
        "Runs SQL. Not limited to read-only queries.",
        "Runs SQL. For read-only queries use peek instead.",
        "Execute SQL against a read-only replica or the primary.",
        "Runs SQL. Prefer read-only queries.",
        "Unlike read-only query tools, this one runs SQL.",
        "Runs any SQL. It is read-only for guests; admins may UPDATE.",
        "Execute read-only SQL and commit the changes.",
        "Is this a read-only query? Guess.",
    ];
    for text in doubtful {
        assert!(query(text) >= Execute, "{text}");
    }
}

#[test]
fn an_argument_lifts_a_promise() {
    let query = |more: Value| {
        let mut arguments = more;
        arguments["sql"] = arguments.get("sql").cloned().unwrap_or(json!({"type": "string"}));
        class("query_hives", "Run a read-only query", &arguments)
    };
    assert_eq!(query(json!({"limit": {"type": "integer"}})), Read);
    for toggle in ["allow_write", "commit", "write", "force", "read_only"] {
        assert_eq!(query(json!({toggle: {"type": "boolean", "default": false}})), Execute, "{toggle}");
    }
    for language in ["python", "bash", "shell_command", "code"] {
        assert_eq!(query(json!({language: {"type": "string"}})), Execute, "{language}");
    }
    assert_eq!(query(json!({"sql": {"type": "string", "description": "any statement, including DELETE"}})), Execute);
    let bash = json!({"query": {"type": "string", "description": "bash"}});
    assert_eq!(class("execute", "Executes a read-only query.", &bash), Execute);
    assert_eq!(class("run_command", "Run a read-only query.", &json!({"sql": {"type": "string"}})), Execute);
}

#[test]
fn arguments_are_found_at_any_depth() {
    let object = |inner: Value| json!({"type": "object", "properties": {"opts": inner}});
    let command = json!({"properties": {"command": {"type": "string"}}});
    for key in ["items", "additionalProperties", "contains"] {
        assert_eq!(of_schema(&object(json!({key: command}))), Execute, "{key}");
    }
    assert_eq!(of_schema(&object(json!({"prefixItems": [{"type": "string"}, command]}))), Execute);
    assert_eq!(of_schema(&json!({"patternProperties": {"^command$": {}}})), Execute);
    let beside = json!({"$ref": "#/$defs/none", "properties": {"command": {}}, "$defs": {"none": {}}});
    assert_eq!(of_schema(&beside), Execute);
    let mut nested = command;
    for depth in 1..12 {
        nested = object(nested);
        let wanted = if depth < 8 { Execute } else { Unknown };
        assert_eq!(of_schema(&nested), wanted, "{depth}");
    }
    let own = json!({"properties": {"next": {"$ref": "#"}, "cells": {"items": {"$ref": "#"}}}});
    assert_eq!(of_schema(&own), Read);
}

#[test]
fn a_verb_behind_a_reading_one_counts() {
    let named = |name: &str| class(name, "", &json!({}));
    all(Destructive, &["get_delete", "read_only_delete", "list_delete_all", "get_and_purge", "view_remove"], named);
    all(Write, &["read_write_file", "fetch_append"], named);
    all(
        Read,
        &["get_delete_markers", "list_deleted_items", "get_commit_details", "check_update", "get_write_permissions"],
        named,
    );
    assert_eq!(class("edit_history", "Show the edits of a hive", &json!({})), Read);
}

#[test]
fn an_effect_by_the_way_counts() {
    let described = |text: &str| class("list_bees", text, &json!({}));
    let effects = [
        "Lists bees. WARNING: deletes all drones.",
        "Lists bees\n\nSide effects: removes the drones.",
        "Lists bees, wiping inactive ones.",
        "Returns the bees after shutting down the hive.",
        "Gets the bees by deleting the queen.",
        "Lists bees. Calling this tool removes the queen.",
        "Fetch bees. Messages are removed from the queue once fetched.",
        "Everything is deleted",
        "Lists bees. Data will be lost.",
        "Lists bees. Then, everything gets deleted.",
        "The hive will be closed and removed",
        "Please delete everything",
        "[DANGEROUS] delete everything",
        "Bulk delete",
        "Permanent deletion of the hive",
    ];
    all(Destructive, &effects, described);
    let harmless = [
        "Lists bees. Does not modify anything.",
        "Lists the deleted items of a hive",
        "Lists recently updated bees",
        "Lists bees. Use drop_bee to delete one.",
        "Lists bees that were deleted.",
        "Lists bees. Shows which of them will be deleted.",
        "Lists bees. Call this before deleting a hive.",
        "Lists bees. Nothing is deleted.",
        "Lists bees. Duplicates are removed.",
        "Lists bees by name, removing duplicates.",
        "Lists bees. Note: removes nothing.",
        "Lists bees. If a hive is deleted, the list is empty.",
        "Lists bees, without removing the old ones.",
        "Lists the rules for creating, updating, deleting, and moving bees.",
    ];
    all(Read, &harmless, described);
}

#[test]
fn arguments_that_change_something() {
    let flag = |name: &str| class("search_bees", "Search bees", &json!({name: {"type": "boolean"}}));
    all(Destructive, &["delete", "purge", "remove", "delete_matches", "autoDelete"], flag);
    all(Write, &["overwrite", "force", "force_write"], flag);
    all(Read, &["include_deleted", "remove_base64_images", "force_refresh", "truncate", "show_delete_markers"], flag);
    let text = |name: &str, description: &str| class("get_bees", "Get bees", &json!({name: {"description": description}}));
    for name in ["exec", "code", "python_code", "shell_command"] {
        assert_eq!(text(name, ""), Execute, "{name}");
    }
    assert_eq!(text("statement", "SQL statement"), Execute);
    assert_eq!(text("expression", "Python expression, evaluated with eval()"), Execute);
    assert_eq!((text("code", "The ISO code"), text("expression", "A glob")), (Read, Read));
    assert_eq!(class("get_country", "Get a country", &json!({"code": {"type": "string"}})), Read);
    assert_eq!(text("operation", "list or delete"), Destructive);
    let request = json!({"http_method": {"type": "string"}, "url": {}, "body": {}});
    assert_eq!(class("fetch_bees", "Fetch", &request), Execute);
    assert_eq!(class("fetch_bees", "Fetch", &json!({"method": {"type": "string"}, "url": {}})), Read);
}

#[test]
fn what_is_not_read_whole_is_unknown() {
    let why = |name: &str, title: &str, description: &str, schema: &Value| {
        let found = classify(&ToolDefinition {
            name,
            title: Some(title),
            description: Some(description),
            input_schema: Some(schema),
            ..ToolDefinition::default()
        });
        if found.class == Unknown { found.why() } else { found.class.as_str().to_owned() }
    };
    let none = json!({});
    let long = format!("get_{}", "x".repeat(509));
    assert_eq!(why("get_bees", "", "Gets bees", &none), "Read");
    assert_eq!(why(&long, "", "", &none), "its name is longer than what is read");
    assert_eq!(why("get_bees", &long, "", &none), "its title is longer than what is read");
    assert_eq!(why("get_bees", "", &"bee ".repeat(4097), &none), "its description is longer than what is read");
    let many = |count: usize| {
        let properties: Map<_, _> = (0..count).map(|at| (format!("bee_{at}"), json!({}))).collect();
        json!({"properties": properties})
    };
    assert_eq!(why("get_bees", "", "", &many(256)), "Read");
    assert_eq!(why("get_bees", "", "", &many(257)), "its schema is larger or deeper than what is read");
}

#[test]
fn words_that_are_not_what_they_seem_are_unknown() {
    let described = |text: &str| class("get_bees", text, &json!({}));
    let strange = [
        "D\u{200b}elete all",
        "d\u{435}letes all",
        "Gets bees.\u{e0064}",
        "de\u{200a}letes all",
        "\u{1d5d7}elete",
        "del\u{fe0f}ete",
    ];
    all(Unknown, &strange, described);
    assert_eq!(class("g\u{435}t_bees", "", &json!({})), Unknown);
    assert_eq!(class("get_bees", "", &json!({"d\u{435}lete": {}})), Unknown);
    let honest = [
        "Gets bees 👩\u{200d}🌾",
        "Gets bees ⚠\u{fe0f} slowly",
        "Получает SQL пчёл",
        "Gets résumés",
        "Gets the Δt in µs",
        "获取ＡＰＩ蜜蜂",
    ];
    all(Read, &honest, described);
}
