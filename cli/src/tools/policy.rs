//! What policies in files would do with the tools of a server.

use std::path::PathBuf;

use anyhow::bail;
use toolweir_crds::{
    Action, Mode, PartSet,
    explain::{EntryExplanation, Explanation, LimitExplanation, PinsExplanation, PolicyExplanation, VerdictExplanation},
};
use toolweir_engine::{
    Call, CompileOptions, Engine, Memory, Operation, Reason, SeenTool, Timestamp, policy_files::CompiledFiles, shared::Peeked,
};

use super::definition::ListedTool;
use crate::{pins::pinned::definition_of, policy_files, table::shown};

/// The reasons of denials by pins.
const PINS: [Reason; 3] = [Reason::PinDrift, Reason::NotPinned, Reason::PinUnverified];

/// Policies, and the server in them whose tools are looked at.
#[derive(Debug)]
pub struct ToolPolicies {
    engine: Engine,
    /// That of the same policies without what depends on the call. It says what pins only report.
    bare: Engine,
    server: String,
}

impl ToolPolicies {
    /// Compiles the policies of files and folders, as `toolweir-sidecar check` does. `server` is a name that was asked for, and `likely` what the
    /// server is probably called.
    ///
    /// # Errors
    /// The policies are not in order, or do not name the server.
    pub fn load(paths: &[PathBuf], server: Option<&str>, likely: &str) -> anyhow::Result<Self> {
        let (_, compiled) = policy_files::load(paths)?;
        let named: Vec<&str> = compiled.engine.servers().map(|server| server.name).collect();
        let list = || named.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        let server = match (server, named.as_slice()) {
            (_, []) => bail!("the policies name no server; give those that name it"),
            (Some(name), _) if named.contains(&name) => name,
            (Some(name), _) => bail!("the policies do not name the server {}; they have {}", shown(name), list()),
            (None, _) if named.contains(&likely) => likely,
            (None, [one]) => one,
            (None, _) => bail!("which server of the policies is it? They have {}; name it with --server", list()),
        };
        let server = server.to_owned();
        Ok(Self { bare: bare(&compiled), engine: compiled.engine, server })
    }

    /// Says what would become of calls of a tool whose definition is this.
    ///
    /// # Errors
    /// The definition cannot be read as a sidecar reads it.
    pub fn verdict(&self, tool: &ListedTool) -> anyhow::Result<String> {
        let definition = definition_of(tool)?;
        let seen = SeenTool::new(tool.classify().class, definition.digests());
        let call = Call {
            server: &self.server,
            operation: Operation::tool(tool.name()),
            arguments: None,
            session: "",
            seen: Some(&seen),
        };
        let explain = |engine: &Engine| engine.explain(&call, Timestamp(0), &Peeked::default());
        Ok(verdict(&explain(&self.engine), &explain(&self.bare)))
    }
}

/// Compiles policies without validations, limits, approvals and `maxConcurrent`.
fn bare(compiled: &CompiledFiles) -> Engine {
    let mut policies = compiled.policies.clone();
    let servers = policies.iter_mut().flat_map(|policy| &mut policy.spec.servers);
    for tool in servers.flat_map(|server| &mut server.tools) {
        tool.validations.clear();
        tool.limits.clear();
        tool.approval = None;
        tool.max_concurrent = None;
    }
    let options = CompileOptions { of_any_pod: true, ..CompileOptions::default() };
    Engine::compile(&policies, Memory::new(0), &options).0.with_pins(&compiled.pins)
}

/// Says in words what policies do with every call of a tool, as far as they do not depend on the call. `bare` is what they say without
/// what does.
fn verdict(explanation: &Explanation, bare: &Explanation) -> String {
    let policies = || explanation.policies.iter();
    if policies().next().is_none() {
        return format!("denied: {}", shown(&explanation.verdict.reason));
    }
    if let Some(policy) = policies().find(|policy| policy.mode == Mode::Enforce && denies(policy)) {
        return match by_entry(policy) {
            Some((entry, said)) => format!("denied by {entry} of {}{said}", shown(&policy.policy)),
            None => format!("denied: {}", why(policy)),
        };
    }
    let enforced = || policies().filter(|policy| policy.mode == Mode::Enforce);
    let entries = || enforced().flat_map(|policy| &policy.servers).flat_map(|server| &server.entries);
    let mut parts: Vec<String> = entries().flat_map(limits).collect();
    if entries().any(|entry| !entry.validations.is_empty()) {
        parts.push("if its validations hold".to_owned());
    }
    let asks = || entries().filter_map(|entry| entry.approval.as_ref());
    if asks().any(|approval| approval.when.is_none()) {
        parts.push("if a person approves it".to_owned());
    } else if asks().next().is_some() {
        parts.push("if a person approves it where its condition asks".to_owned());
    }
    if let Some(policy) = policies().find(|policy| policy.mode != Mode::Enforce && denies(policy)) {
        parts.push(format!(
            "though in audit mode {} would deny it: {}",
            shown(&policy.policy),
            by_entry(policy).map_or_else(|| why(policy), |(entry, said)| format!("{entry}{said}"))
        ));
    }
    // What the pins of an enforced policy only report.
    let reports = |said: &&VerdictExplanation| {
        is_of_pins(&said.reason) && enforced().any(|policy| Some(&policy.policy) == said.policy.as_ref())
    };
    for said in bare.would_deny.iter().filter(reports) {
        let policy = policies().find(|policy| Some(&policy.policy) == said.policy.as_ref());
        let of = policy.map(|policy| by_pins(policy, &said.reason)).unwrap_or_default();
        parts.push(format!("though reported: {}{of}", shown(&said.reason)));
    }
    match parts.split_first() {
        None => "allowed".to_owned(),
        Some((first, rest)) => {
            let comma = if first.starts_with("if ") { " " } else { ", " };
            let rest: String = rest.iter().map(|part| format!(", {part}")).collect();
            format!("allowed{comma}{first}{rest}")
        }
    }
}

/// Returns true of a policy that denies every call of the tool. What depends on the call is not known here.
fn denies(policy: &PolicyExplanation) -> bool {
    policy.broken.is_some()
        || policy.servers.iter().any(|server| server.action == Action::Deny)
        || !policy.verdict.allowed && is_of_pins(&policy.verdict.reason)
}

fn is_of_pins(reason: &str) -> bool {
    PINS.iter().any(|known| known.as_str() == reason)
}

/// Says of a denial by pins which they are, and what is not as in them.
fn by_pins(policy: &PolicyExplanation, reason: &str) -> String {
    let pins = policy.servers.iter().filter_map(|server| server.pins.as_ref()).find(|pins| pins.state != "same");
    let Some(PinsExplanation { pins, changed, state }) = pins.filter(|_| is_of_pins(reason)) else { return String::new() };
    let changed: PartSet = changed.iter().copied().collect();
    let what = match state.as_str() {
        "changed" => format!("pins {pins}: {changed}"),
        "missing" => format!("there are no pins {pins}"),
        _ => format!("pins {pins}"),
    };
    format!(" ({})", shown(&what))
}

/// Says which entry denies every call, and what it says to that; nothing where no entry does.
fn by_entry(policy: &PolicyExplanation) -> Option<(String, String)> {
    let entry = policy.verdict.entry.as_deref().filter(|_| policy.verdict.reason == "denied")?;
    let said = said(policy);
    let said = if said.is_empty() { String::new() } else { format!(": {}", shown(said)) };
    Some((format!("entry {}", shown(entry)), said))
}

fn said(policy: &PolicyExplanation) -> &str {
    let said = policy.verdict.message.as_deref().unwrap_or_default();
    said.strip_prefix(&format!("Denied by policy {}: ", policy.policy)).unwrap_or(said)
}

fn why(policy: &PolicyExplanation) -> String {
    let reason = shown(&policy.verdict.reason);
    if is_of_pins(&policy.verdict.reason) {
        return format!("{reason}{}", by_pins(policy, &policy.verdict.reason));
    }
    match &policy.verdict.entry {
        None => reason.into_owned(),
        Some(entry) => format!("{reason} ({}, {}: {})", shown(&policy.policy), shown(entry), shown(said(policy))),
    }
}

fn limits(entry: &EntryExplanation) -> Vec<String> {
    let concurrent = entry.max_concurrent.iter().map(|places| format!("{} at once", places.max));
    entry.limits.iter().map(limit).chain(concurrent).collect()
}

/// Says a limit in words: `30 a minute`, `500 of args.amount in 7d for each args.user`.
fn limit(limit: &LimitExplanation) -> String {
    let window = match limit.window.as_str() {
        "minute" | "1m" | "60s" => "a minute".to_owned(),
        "hour" | "1h" | "60m" => "an hour".to_owned(),
        "day" | "1d" | "24h" => "a day".to_owned(),
        other => format!("in {other}"),
    };
    let cost = limit.cost.as_deref().map(|cost| format!(" of {}", shown(cost))).unwrap_or_default();
    let key = limit.key.as_deref().map(|key| format!(" for each {}", shown(key))).unwrap_or_default();
    format!("{}{cost} {window}{key}", limit.max)
}
