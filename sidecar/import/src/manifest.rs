//! An imported policy as a Kubernetes manifest.

use serde_yaml::{Mapping, Value};
use toolweir_crds::{API_VERSION, Document, MCPPolicySpec, Scope, Tool, document::Located, read_documents};

/// A policy of `PolicyLayer` in our language.
#[derive(Clone, Debug)]
pub struct ImportedPolicy {
    /// The policy.
    pub document: Document,
    /// The original's words about itself, on one line.
    pub(super) description: Option<String>,
    /// What became of which rule, each on one line: for each entry in order.
    pub(super) notes: Vec<Vec<String>>,
}

/// What an entry of the server's tools begins with; nothing else of a manifest stands there.
const ENTRY: &str = "    - ";

/// The line with which the answers for all but tools begin; nothing else of a manifest stands there.
const DEFAULT_ACTIONS: &str = "    defaultActions:";

/// What is said above them.
const ONLY_TOOLS: &str = "\
    # The original governs tools alone, and lets all else pass. Here the server's requests of the agent (sampling, elicitation, roots)
    # and other methods are denied: allow what the agent needs.
";

/// The comment with which a manifest begins whose limits hold for a pod.
const COUNTED_BY_EACH_POD: &str = "\
# Each pod counts for itself here (scope: Pod), where the original has one count for an agent: N replicas have N times each
# limit. With a shared store, import with --shared-store, or write scope: Workload.
";

/// The comment with which a manifest begins that asks people.
const ASKS_A_PERSON: &str = "\
# Calls wait up to `hold` for the person's answer, where the original answers them at once. People see no arguments of a call
# until `show` names some.
";

pub(super) fn spec_of(document: &Document) -> Option<&MCPPolicySpec> {
    match document {
        Document::MCPPolicy { spec, .. } => Some(spec),
        Document::MCPClusterPolicy { .. } => None,
    }
}

impl ImportedPolicy {
    /// Returns how many limits each pod counts for itself, where the original has one count for the agent.
    pub fn counted_by_each_pod(&self) -> usize {
        self.entries().flat_map(|tool| &tool.limits).filter(|limit| limit.scope == Scope::Pod).count()
    }

    fn entries(&self) -> impl Iterator<Item = &Tool> {
        spec_of(&self.document).into_iter().flat_map(|spec| &spec.servers).flat_map(|server| &server.tools)
    }

    /// Prints the policy without what holds anyway, and with its notes as comments.
    pub fn to_yaml(&self) -> String {
        let kind = match self.document {
            Document::MCPPolicy { .. } => "MCPPolicy",
            Document::MCPClusterPolicy { .. } => "MCPClusterPolicy",
        };
        let mut manifest = Mapping::new();
        manifest.insert("apiVersion".into(), API_VERSION.into());
        manifest.insert("kind".into(), kind.into());
        if let Ok(Value::Mapping(mut body)) = serde_yaml::to_value(&self.document) {
            for part in ["metadata", "spec"] {
                let mut value = body.remove(part).unwrap_or_default();
                if let Value::Mapping(spec) = &mut value
                    && spec.get("mode").and_then(Value::as_str) == Some("Enforce")
                {
                    spec.remove("mode");
                }
                manifest.insert(part.into(), value);
            }
        }
        let mut text = String::new();
        if let Some(description) = &self.description {
            text.push_str(&format!("# description: {description}\n"));
        }
        if self.counted_by_each_pod() > 0 {
            text.push_str(COUNTED_BY_EACH_POD);
        }
        if self.entries().any(|tool| tool.approval.is_some()) {
            text.push_str(ASKS_A_PERSON);
        }
        text.push_str(&self.with_notes(&quoted(serde_yaml::to_string(&manifest).unwrap_or_default())));
        text
    }

    /// The manifest with a comment for each note, above its entry, and one above what is not of tools.
    fn with_notes(&self, yaml: &str) -> String {
        let mut notes = self.notes.iter();
        let mut text = String::with_capacity(yaml.len());
        for line in yaml.lines() {
            if line == DEFAULT_ACTIONS {
                text.push_str(ONLY_TOOLS);
            }
            if line.starts_with(ENTRY) {
                let indent = ENTRY.trim_end_matches("- ");
                notes.next().into_iter().flatten().for_each(|note| text.push_str(&format!("{indent}# {note}\n")));
            }
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// The manifest with quotes around what kubectl would read as something else than a text: its YAML is an older one than ours.
fn quoted(yaml: String) -> String {
    let Ok(documents) = read_documents("policy", &yaml) else { return yaml };
    let places: Vec<(usize, usize)> = documents.iter().flat_map(Located::unquoted).filter_map(|place| place.position).collect();
    if places.is_empty() {
        return yaml;
    }
    let mut lines: Vec<String> = yaml.lines().map(str::to_owned).collect();
    for (line, column) in places {
        let Some(line) = line.checked_sub(1).and_then(|line| lines.get_mut(line)) else { continue };
        let at = column.saturating_sub(1);
        let (before, text) = (line.chars().take(at).collect::<String>(), line.chars().skip(at).collect::<String>());
        *line = format!("{before}\"{text}\"");
    }
    lines.join("\n") + "\n"
}
