//! `kubectl toolweir explain --url`: what becomes of a connection.

use anyhow::bail;
use http::StatusCode;
use kube::Client;
use serde::Serialize;
use toolweir_crds::explain::ConnectionExplanation;

use crate::{
    CommandOutcome, OutputFormat,
    explain::{ask, decision_text, json, parse},
    table::{safe_json, shown, table},
};

/// The connection to explain.
#[derive(Clone, Debug, Default)]
pub struct UrlQuery {
    /// The pod that would connect.
    pub pod: String,
    /// The URL.
    pub url: String,
    /// The output format.
    pub form: OutputFormat,
}

/// The body of `POST /explain`.
#[derive(Serialize)]
struct UrlQuestion<'a> {
    url: &'a str,
}

/// Asks the pod's sidecar. Returns the output, and whether the connection would be governed or allowed.
///
/// # Errors
/// The pod or its sidecar does not exist, a right is missing, or the sidecar cannot read the URL.
pub async fn explain_url(client: &Client, namespace: &str, query: &UrlQuery) -> anyhow::Result<(String, CommandOutcome)> {
    let (pod, answer) = ask(client, namespace, &query.pod, &UrlQuestion { url: &query.url }).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST if answer.text().starts_with("`url` is not known") => {
            bail!("the sidecar of pod {} is too old for --url. Restart the pod to get a new sidecar", pod.key)
        }
        status => bail!("the sidecar of pod {} responded {status}: {}", pod.key, shown(&answer.text())),
    }
    let read: ConnectionExplanation = parse(&pod, &answer)?;
    let passes = ["governed", "allowed", "would_deny"].contains(&read.decision.as_str());
    let found = if passes { CommandOutcome::Positive } else { CommandOutcome::Negative };
    let written = match query.form {
        OutputFormat::Text => text(&pod.key.to_string(), &read),
        OutputFormat::Json => safe_json(&json(&pod, &answer)?),
    };
    Ok((written, found))
}

/// Formats the response for people.
fn text(pod: &str, explained: &ConnectionExplanation) -> String {
    let ConnectionExplanation { url, name, port, server, decision, reason, policy, opened_by, message } = explained;
    let found = match server {
        Some(server) if decision == "governed" => format!("governed as server {}", shown(server)),
        _ => decision_text(decision, reason),
    };
    let mut text = format!("pod {pod}, {}: {found}\n", shown(url));
    if !message.is_empty() {
        text.push_str(&format!("  {}\n", shown(message)));
    }
    if let Some(authority) = opened_by {
        text.push_str(&format!("  opened by: {}\n", shown(authority)));
    }
    let or_none = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), |name| shown(name).into_owned());
    let row = vec![shown(name).into_owned(), port.to_string(), or_none(server), or_none(policy)];
    text.push('\n');
    text.push_str(&table(2, &["HOST", "PORT", "SERVER", "POLICY"], &[row]));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_get_what_becomes_of_the_connection_and_why() {
        for (explained, golden) in [
            (
                json!({"url": "http://bank.tools:8000/mcp", "name": "bank.tools.svc.cluster.local", "port": 8000, "server": "bank",
                    "decision": "governed", "reason": "none", "message": "Governed as http://127.0.0.1:15001/bank is."}),
                "\
pod agents/social-1, http://bank.tools:8000/mcp: governed as server bank
  Governed as http://127.0.0.1:15001/bank is.

  HOST                          PORT  SERVER  POLICY
  bank.tools.svc.cluster.local  8000  bank    -
",
            ),
            (
                json!({"url": "https://a.com", "name": "a.com", "port": 443, "decision": "denied", "reason": "not_allowed",
                    "policy": "agents/out", "message": "Denied by policy agents/out: no rule allows a.com at port 443."}),
                "\
pod agents/social-1, https://a.com: denied (not_allowed)
  Denied by policy agents/out: no rule allows a.com at port 443.

  HOST   PORT  SERVER  POLICY
  a.com  443   -       agents/out
",
            ),
            (
                json!({"url": "https://bank.example/mcp", "name": "bank.example", "port": 443, "server": "bank",
                    "decision": "governed", "reason": "none", "message": "Governed.",
                    "openedBy": "CN=Toolweir intermediate of agents/social-1, SHA-256 3f:9a, until 2036-11-27"}),
                "\
pod agents/social-1, https://bank.example/mcp: governed as server bank
  Governed.
  opened by: CN=Toolweir intermediate of agents/social-1, SHA-256 3f:9a, until 2036-11-27

  HOST          PORT  SERVER  POLICY
  bank.example  443   bank    -
",
            ),
            (
                json!({"url": "https://a.com\u{1b}", "name": "a.com", "port": 443, "decision": "would_deny", "reason": "address",
                    "policy": "out"}),
                "\
pod agents/social-1, https://a.com\u{fffd}: allowed, though a policy in audit mode would deny it (address)

  HOST   PORT  SERVER  POLICY
  a.com  443   -       out
",
            ),
        ] {
            assert_eq!(text("agents/social-1", &serde_json::from_value(explained).unwrap()), golden);
        }
    }
}
