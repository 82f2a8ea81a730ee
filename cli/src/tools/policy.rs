//! What policies in files would do with the tools of a server.

use std::path::PathBuf;

use anyhow::bail;
use toolweir_crds::{
    Action, Mode,
    explain::{EntryExplanation, Explanation, LimitExplanation, PolicyExplanation},
};
use toolweir_engine::{Call, Engine, Timestamp, shared::Peeked};

use crate::{policy_files, table::shown};

/// Policies, and the server in them whose tools are looked at.
#[derive(Debug)]
pub struct ToolPolicies {
    engine: Engine,
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
        Ok(Self { engine: compiled.engine, server })
    }

    /// Says what would become of calls of a tool.
    pub fn verdict(&self, tool: &str) -> String {
        let call = Call { server: &self.server, tool, arguments: None, session: "" };
        verdict(&self.engine.explain(&call, Timestamp(0), &Peeked::default()))
    }
}

/// Says in words what policies do with every call of a tool, as far as they do not depend on the call.
fn verdict(explanation: &Explanation) -> String {
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
    if let Some(policy) = policies().find(|policy| policy.mode != Mode::Enforce && denies(policy)) {
        parts.push(format!(
            "though in audit mode {} would deny it: {}",
            shown(&policy.policy),
            by_entry(policy).map_or_else(|| why(policy), |(entry, said)| format!("{entry}{said}"))
        ));
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
    policy.broken.is_some() || policy.servers.iter().any(|server| server.action == Action::Deny)
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
