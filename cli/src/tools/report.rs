//! `toolweir tools`: what the tools of a server can do, and what policies would do with them.

use std::path::PathBuf;

use serde::Serialize;
use toolweir_classes::Evidence;
use toolweir_crds::{ToolClass, ToolSeverity};

use super::{
    definition::ListedTool,
    limits::ReadLimits,
    policy::ToolPolicies,
    source::{self, ToolSource},
};
use crate::{
    OutputFormat,
    cluster::LazyClient,
    table::{json, shown, table},
};

/// The most characters of a name in a table. JSON has all.
const LONGEST_NAME: usize = 64;

/// One tool.
#[derive(Clone, Debug, Serialize)]
pub struct ToolReport {
    name: String,
    class: ToolClass,
    severity: ToolSeverity,
    evidence: Vec<EvidenceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip)]
    why: String,
}

/// Words of the definition that speak for a class.
#[derive(Clone, Debug, Serialize)]
struct EvidenceReport {
    #[serde(rename = "in")]
    part: String,
    start: usize,
    end: usize,
    text: String,
    class: ToolClass,
}

impl From<Evidence> for EvidenceReport {
    fn from(evidence: Evidence) -> Self {
        let Evidence { part, span, text, class } = evidence;
        Self { part, start: span.start, end: span.end, text, class }
    }
}

impl ToolReport {
    /// Looks at a tool.
    ///
    /// # Errors
    /// There are policies, and its definition cannot be read as a sidecar reads it.
    pub fn new(tool: &ListedTool, policies: Option<&ToolPolicies>) -> anyhow::Result<Self> {
        let classification = tool.classify();
        Ok(Self {
            name: tool.name().to_owned(),
            class: classification.class,
            severity: classification.severity(),
            why: classification.why(),
            policy: policies.map(|policies| policies.verdict(tool)).transpose()?,
            evidence: classification.evidence.into_iter().map(EvidenceReport::from).collect(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let why = shown(&self.why).into_owned();
        let (class, severity) = (self.class.as_str().to_owned(), self.severity.as_str().to_owned());
        let mut name: String = shown(&self.name).chars().take(LONGEST_NAME).collect();
        if self.name.chars().nth(LONGEST_NAME).is_some() {
            name.push('…');
        }
        [vec![name, class, severity, why], Vec::from_iter(self.policy.clone())].concat()
    }
}

/// Reads the tools of a source, and returns the output.
///
/// # Errors
/// The tools cannot be read, or the policies are not in order or do not name the server.
pub async fn tools(
    source: &ToolSource,
    policies: &[PathBuf],
    cluster: &LazyClient,
    limits: &ReadLimits,
    form: OutputFormat,
) -> anyhow::Result<String> {
    let found = source::read(source, cluster, limits).await?;
    let policies = match policies {
        [] => None,
        paths => Some(ToolPolicies::load(paths, source.server.as_deref(), &found.name)?),
    };
    let rows = found.tools.iter().map(|tool| ToolReport::new(tool, policies.as_ref()));
    let rows = rows.collect::<anyhow::Result<Vec<ToolReport>>>()?;
    Ok(match form {
        OutputFormat::Json => format!("{}\n", json(&rows)?),
        OutputFormat::Text if rows.is_empty() => "The server lists no tools.\n".to_owned(),
        OutputFormat::Text => {
            let header = ["TOOL", "CLASS", "SEVERITY", "WHY", "POLICY"];
            let columns = if policies.is_some() { 5 } else { 4 };
            let rows: Vec<Vec<String>> = rows.iter().map(ToolReport::cells).collect();
            table(0, header.get(..columns).unwrap_or_default(), &rows)
        }
    })
}
