//! Arguments, annotations, evidence and its line.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use toolweir_classes::{Classification, ToolAnnotations, ToolDefinition, classify};
use toolweir_crds::{ToolClass, ToolSeverity};

fn with(name: &str, description: &str, schema: &Value) -> Classification {
    classify(&ToolDefinition { name, description: Some(description), input_schema: Some(schema), ..ToolDefinition::default() })
}

fn hinted(name: &str, read_only: Option<bool>, destructive: Option<bool>) -> ToolClass {
    classify(&ToolDefinition { name, annotations: ToolAnnotations { read_only, destructive }, ..ToolDefinition::default() }).class
}

fn properties(properties: &Value) -> Value {
    json!({"type": "object", "properties": properties})
}

#[test]
fn the_worst_sub_command_counts() {
    let actions = |values: &[&str]| properties(&json!({"action": {"type": "string", "enum": values}}));
    assert_eq!(with("manage_tags", "", &actions(&["list", "get"])).class, ToolClass::Read);
    assert_eq!(with("tags", "", &actions(&["list", "get"])).class, ToolClass::Read);
    assert_eq!(with("tags", "", &actions(&["list", "frobnicate"])).class, ToolClass::Unknown);
    assert_eq!(with("tags", "", &actions(&["list", "create"])).class, ToolClass::Write);
    let found = with("get_tags", "Get tags", &actions(&["list", "delete_all"]));
    assert_eq!(found.class, ToolClass::Destructive);
    assert_eq!(found.why(), "\"delete\" of the argument \"action\"");
    assert_eq!(found.evidence[0].part, "inputSchema.properties.action.enum[1]");
}

#[test]
fn a_filter_is_no_sub_command() {
    let filter = json!({"type": "string", "enum": ["create", "delete"], "description": "Filters by what was done"});
    assert_eq!(with("list_changes", "List changes", &properties(&json!({"action": filter}))).class, ToolClass::Read);
    let action = json!({"type": "string", "enum": ["create", "delete"]});
    assert_eq!(with("list_audit_events", "List events", &properties(&json!({"action": action}))).class, ToolClass::Read);
}

#[test]
fn methods_of_http() {
    let listed = properties(&json!({"method": {"type": "string", "enum": ["GET", "POST"]}}));
    assert_eq!(with("call", "", &listed).class, ToolClass::Execute);
    assert_eq!(with("site", "Sends what is asked", &listed).class, ToolClass::Write);
    let told = properties(&json!({"method": {"type": "string", "description": "GET, POST or DELETE"}}));
    assert_eq!(with("site_request", "", &told).class, ToolClass::Destructive);
}

#[test]
fn queries_and_commands() {
    let sql = |description: &str| properties(&json!({"query": {"type": "string", "description": description}}));
    assert_eq!(with("query_table", "Query a table", &sql("The SQL to execute")).class, ToolClass::Execute);
    assert_eq!(with("search_table", "Search a table", &sql("What to look for")).class, ToolClass::Read);
    // Whatever the name says.
    for (name, description) in
        [("fetch_data", "SQL query. May contain INSERT"), ("get_rows", "SQL query"), ("list_nodes", "A Cypher query")]
    {
        assert_eq!(with(name, "", &sql(description)).class, ToolClass::Execute, "{name}");
    }
    assert_eq!(
        with("explain_plan", "Explains how a query would run. Takes a read-only SQL query", &sql("SQL query")).class,
        ToolClass::Read
    );
    let flag = properties(&json!({"include_sql": {"type": "boolean"}, "show_command": {"type": "boolean"}}));
    assert_eq!(with("list_jobs", "List jobs", &flag).class, ToolClass::Read);
    let code = |description: &str| properties(&json!({"code": {"type": "string", "description": description}}));
    assert_eq!(with("get_country", "Get a country", &code("The ISO code")).class, ToolClass::Read);
    assert_eq!(with("notebook_cell", "", &code("Python to execute")).class, ToolClass::Execute);
    let wrapped =
        json!({"properties": {"request": {"$ref": "#/$defs/Request"}}, "$defs": {"Request": {"properties": {"sql": {}}}}});
    let found = with("list_rows", "List rows", &wrapped);
    assert_eq!(
        (found.class, found.evidence[0].part.as_str()),
        (ToolClass::Execute, "inputSchema.properties.request.properties.sql")
    );
}

#[test]
fn amounts_are_money_where_something_changes() {
    let money = properties(&json!({"amount": {"type": "number"}, "currency": {"type": "string"}}));
    assert_eq!(with("submit_form", "Send it to the bank", &money).class, ToolClass::Financial);
    assert_eq!(with("convert_currency", "Convert an amount", &money).class, ToolClass::Read);
    let scroll = properties(&json!({"amount": {"type": "number"}}));
    assert_eq!(with("scroll", "Scroll the page", &scroll).class, ToolClass::Write);
}

#[test]
fn annotations_only_raise() {
    assert_eq!(hinted("get_user", Some(false), None), ToolClass::Write);
    assert_eq!(hinted("get_user", Some(false), Some(true)), ToolClass::Destructive);
    assert_eq!(hinted("get_user", None, Some(true)), ToolClass::Destructive);
    // A contradiction: the worse counts.
    assert_eq!(hinted("get_user", Some(true), Some(true)), ToolClass::Destructive);
    assert_eq!(hinted("get_user", Some(true), Some(false)), ToolClass::Read);
    assert_eq!(hinted("delete_user", Some(true), Some(false)), ToolClass::Destructive);
    assert_eq!(hinted("thing", Some(true), Some(false)), ToolClass::Unknown);
    // Unknown is treated as the worst: what only changes something would be less.
    assert_eq!(hinted("thing", Some(false), Some(false)), ToolClass::Unknown);
    assert_eq!(hinted("thing", Some(false), Some(true)), ToolClass::Destructive);
    assert_eq!(hinted("pay_bill", Some(false), Some(true)), ToolClass::Financial);
}

#[test]
fn titles_count_where_names_say_nothing_and_where_they_are_worse() {
    let titled = |name, title| classify(&ToolDefinition { name, title: Some(title), ..ToolDefinition::default() }).class;
    assert_eq!(titled("thing", "List things"), ToolClass::Read);
    assert_eq!(titled("get_thing", "Delete things"), ToolClass::Destructive);
    assert_eq!(titled("delete_thing", "List things"), ToolClass::Destructive);
    let shown = ToolDefinition { title: Some("Edit history"), description: Some("Show the edits"), ..ToolDefinition::default() };
    assert_eq!(classify(&ToolDefinition { name: "edit_history", ..shown }).class, ToolClass::Read);
    assert_eq!(classify(&ToolDefinition { name: "edit_item", ..shown }).class, ToolClass::Write);
}

#[test]
fn a_table_gives_the_page_s_own_example() {
    let found =
        with("send_dm_to_user", "Send a direct message to a person.", &properties(&json!({"user_id": {}, "message": {}})));
    assert_eq!((found.class, found.severity()), (ToolClass::Write, ToolSeverity::Medium));
    let first = &found.evidence[0];
    assert_eq!((first.part.as_str(), first.span.clone(), first.text.as_str()), ("name", 0..4, "send"));
}

#[test]
fn why_is_one_short_line() {
    let found = with("delete_page", "Permanently removes a page. This cannot be undone.", &json!({}));
    let why = found.why();
    assert!(why.starts_with("\"delete\" in the name, \"removes\" in the description"), "{why}");
    assert!(why.chars().count() <= 100, "{why}");
    assert_eq!(with("thing", "", &json!({})).why(), "nothing says what it does");
    // Only the word that counts is shown of a name that the server chose.
    let property = properties(&json!({"x\n\u{1b}[2J_please_allow_me_sql": {"type": "string"}}));
    let found = with("list_rows", "List rows", &property);
    assert_eq!((found.why().as_str(), found.evidence[0].text.as_str()), ("\"sql\" in the name of an argument", "sql"));
    let chosen = properties(&json!({"please allow me.action": {"enum": ["delete"]}}));
    assert_eq!(with("list_rows", "List rows", &chosen).why(), "\"delete\" of the argument \"action\"");
    assert_eq!(with("list_rows", "", &properties(&json!({"sql": {}}))).why(), "the argument \"sql\"");
}

#[test]
fn what_others_may_do_is_chosen_and_not_done() {
    let operations = properties(&json!({"operation": {"type": "string", "enum": ["read", "update", "delete"]}}));
    assert_eq!(with("check_gate_permissions", "Check what a shepherd may do", &operations).class, ToolClass::Read);
    assert_eq!(with("gate_permissions", "Manages who may pass", &operations).class, ToolClass::Destructive);
}
