//! How tools differ from what was pinned: for the log, the operator and whoever asks.

use std::{fmt::Write, time::Instant};

use toolweir_crds::{
    PartSet, PinnedTool, ToolPart,
    seen::{ChangeKind, PartChange, SeenDefinition, SeenServer, ToolDrift},
    text::one_line,
};
use toolweir_engine::PinDrift;
use toolweir_pins::changes;

use super::{ToolsOfServer, book::KnownTool};
use crate::{
    in_force::{InForce, ServerInForce},
    server_metrics::{ServerMetrics, TOOL_PART},
};

/// The most tools of one page that the log names.
const LOGGED: usize = 32;
/// The longest name of a tool in the log, in characters.
const LONGEST_NAME: usize = 200;

/// Returns how a tool differs from each pins to which policies hold its server, as far as they mind.
pub fn of_tool(in_force: &InForce, server: &str, name: &str, tool: &KnownTool) -> Vec<ToolDrift> {
    of_tool_with_effect(in_force, server, name, tool).into_iter().map(|(drift, _)| drift).collect()
}

/// The same, each with whether calls are denied for it.
fn of_tool_with_effect(in_force: &InForce, server: &str, name: &str, tool: &KnownTool) -> Vec<(ToolDrift, bool)> {
    let found = in_force.engine.drift(server, name, tool.seen()).into_iter().map(|PinDrift { pins, state, denies }| {
        let pinned = in_force.pinned_tool(&pins, name);
        let changes = grades(state.changed(), pinned, tool);
        (ToolDrift { server: server.to_owned(), pins: pins.to_string(), tool: name.to_owned(), changes }, denies)
    });
    found.collect()
}

/// Says of each part that changed what became of it: of several definitions, by the first in which it did.
fn grades(parts: PartSet, pinned: Option<&PinnedTool>, tool: &KnownTool) -> Vec<PartChange> {
    if parts.is_empty() {
        return Vec::new();
    }
    let records = || tool.definitions().filter_map(|definition| definition.record.as_ref());
    let graded: Vec<PartChange> = pinned.into_iter().flat_map(|pinned| records().flat_map(|now| changes(pinned, now))).collect();
    let of_part = |part| {
        let graded = graded.iter().find(|change| change.part == part).copied();
        graded.unwrap_or(PartChange { part, change: ChangeKind::Changed })
    };
    parts.iter().map(of_part).collect()
}

/// Counts and logs the definitions that a page showed for the first time and that are not as pinned.
pub fn tell_new<'a>(
    in_force: &InForce,
    server: &ServerInForce,
    tools: &ToolsOfServer,
    new: impl IntoIterator<Item = &'a str>,
    metrics: &ServerMetrics,
) {
    if server.pins.is_empty() {
        return;
    }
    let mut found = Vec::new();
    for name in new {
        let drift = match tools.book().known(name) {
            Some(tool) => of_tool_with_effect(in_force, &server.name, name, tool),
            None => continue,
        };
        let parts: PartSet = drift.iter().flat_map(|(drift, _)| &drift.changes).map(|change| change.part).collect();
        let is_not_pinned = drift.iter().any(|(drift, _)| drift.changes.is_empty());
        let labels = parts.iter().map(ToolPart::as_str).chain(is_not_pinned.then_some(TOOL_PART));
        labels.for_each(|part| metrics.tool_drift.with_label_values(&[&server.name, part]).inc());
        found.extend(drift);
    }
    log_all(&server.name, tools, found, true);
}

/// Logs what is not as pinned since other pins are in force, or was so in an earlier run.
pub fn tell_known(in_force: &InForce, server: &ServerInForce, tools: &ToolsOfServer) {
    let of_book = || {
        let book = tools.book();
        let last = book.tools().into_iter().filter(|(_, tool)| tool.is_last());
        last.flat_map(|(name, tool)| of_tool_with_effect(in_force, &server.name, name, tool)).collect::<Vec<_>>()
    };
    log_all(&server.name, tools, of_book(), false);
}

/// Logs drift: all of it, or what was not logged yet.
fn log_all(server: &str, tools: &ToolsOfServer, found: Vec<(ToolDrift, bool)>, again: bool) {
    let (mut logged, mut left_out) = (0_usize, 0_usize);
    for (drift, denies) in found {
        if !tools.tell(&drift, denies) && !again {
            continue;
        }
        if logged == LOGGED || !tools.may_log(Instant::now()) {
            left_out += 1;
            continue;
        }
        logged += 1;
        log(&drift, denies);
    }
    if left_out > 0 && logged > 0 {
        tracing::warn!(server, tools = left_out, "further tools are not as they were pinned; `toolweir drift` shows all");
    }
}

fn log(ToolDrift { server, pins, tool, changes }: &ToolDrift, denies: bool) {
    let tool = one_line(tool, LONGEST_NAME);
    let effect = if denies { "calls of it are denied" } else { "its policies only report that" };
    if changes.is_empty() {
        tracing::warn!(server, tool, pins, effect, "a server lists a tool that is not pinned; look at it and pin it");
        return;
    }
    let mut parts = String::new();
    for PartChange { part, change } in changes {
        let comma = if parts.is_empty() { "" } else { ", " };
        let _ = match change {
            // These say no more than the name of the part.
            ChangeKind::Annotation => write!(parts, "{comma}{part}"),
            ChangeKind::Text if matches!(part, ToolPart::Title | ToolPart::Description) => write!(parts, "{comma}{part}"),
            _ => write!(parts, "{comma}{part} ({})", change.as_str()),
        };
    }
    tracing::warn!(
        server,
        tool,
        pins,
        parts,
        effect,
        "a tool is not as it was pinned; `toolweir drift` shows what changed, and `toolweir pin` accepts it"
    );
}

/// Counts the tools of a server that are not as pinned now.
pub fn count_drifted(in_force: &InForce, server: &ServerInForce, tools: &ToolsOfServer) -> usize {
    let book = tools.book();
    let drifted =
        |(name, tool): &(&str, &KnownTool)| tool.is_last() && !in_force.engine.drift(&server.name, name, tool.seen()).is_empty();
    book.tools().iter().filter(|tool| drifted(tool)).count()
}

/// Returns how all known tools of a server differ from pins, by name.
pub fn of_server(in_force: &InForce, server: &ServerInForce, tools: &ToolsOfServer) -> Vec<ToolDrift> {
    if server.pins.is_empty() {
        return Vec::new();
    }
    let book = tools.book();
    let known = book.tools().into_iter().filter(|(_, tool)| tool.is_last());
    known.flat_map(|(name, tool)| of_tool(in_force, &server.name, name, tool)).collect()
}

/// Returns what is known of a server's tools. A tool with several definitions stands there with each.
pub fn seen_of_server(in_force: &InForce, server: &ServerInForce, tools: &ToolsOfServer) -> SeenServer {
    let book = tools.book();
    let of_definitions = |(name, tool): (&str, &KnownTool)| {
        let drift = of_tool(in_force, &server.name, name, tool);
        let class = Some(tool.seen().class);
        let unreadable = || PinnedTool { name: name.to_owned(), parts: Vec::new() };
        let definitions: Vec<SeenDefinition> = tool
            .definitions()
            .map(|definition| SeenDefinition {
                definition: definition.record.clone().unwrap_or_else(unreadable),
                class,
                drift: drift.clone(),
            })
            .collect();
        definitions
    };
    SeenServer {
        server: server.name.clone(),
        pins: server.pins.iter().map(ToString::to_string).collect(),
        tools: book.tools().into_iter().filter(|(_, tool)| tool.is_last()).flat_map(of_definitions).collect(),
    }
}
