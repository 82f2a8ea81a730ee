//! The message by which a webhook tells people of a request: its body, and the signature. It has what the object has, and nothing else.
//! Plain functions, no I/O.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use k8s_openapi::jiff::Timestamp;
use ring::hmac;
use serde::Serialize;
use toolweir_crds::{
    approval_request::{ApprovalAgent, ApprovalPolicy, MCPApprovalSpec, ShownValue},
    text::{one_line, shown},
};

use super::notices::commands;

/// The header with the signature.
pub const SIGNATURE: &str = "toolweir-signature";
/// The most values in the text; the body has all.
const VALUES: usize = 8;
/// The most characters of a value in the text.
const VALUE: usize = 256;

/// A message that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookMessage {
    /// The request, as people name it.
    pub approval: String,
    /// When nobody needs it any more; none where that is not known.
    pub ends: Option<Timestamp>,
    /// The JSON.
    pub body: Vec<u8>,
}

#[derive(Serialize)]
struct Body<'a> {
    text: String,
    approval: Told<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    namespace: &'a str,
    name: &'a str,
    server: &'a str,
    tool: &'a str,
    agent: &'a ApprovalAgent,
    policies: &'a [ApprovalPolicy],
    message: &'a str,
    shown: &'a [ShownValue],
    expires_at: &'a str,
}

impl WebhookMessage {
    /// Creates the message of a request.
    pub fn new(namespace: &str, name: &str, spec: &MCPApprovalSpec) -> Self {
        let MCPApprovalSpec { server, tool, agent, policies, message, shown, expires_at, .. } = spec;
        let approval = Told { namespace, name, server, tool, agent, policies, message, shown, expires_at };
        let body = Body { text: text(namespace, name, spec), approval };
        Self {
            approval: format!("{namespace}/{name}"),
            ends: spec.expires_at.parse().ok(),
            body: serde_json::to_vec(&body).unwrap_or_default(),
        }
    }

    /// Returns the value of [`SIGNATURE`] for a message that is sent at this time.
    pub fn signature(&self, secret: &[u8], now: Timestamp) -> String {
        let time = now.as_second();
        let mut signed = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        signed.update(format!("{time}.").as_bytes());
        signed.update(&self.body);
        format!("t={time},v1={}", HEXLOWER.encode(signed.sign().as_ref()))
    }
}

/// What people read where the receiver shows the field `text`, as Slack and its like do.
fn text(namespace: &str, name: &str, spec: &MCPApprovalSpec) -> String {
    let (approve, deny) = commands(namespace, name);
    let agent = code(&format!("{namespace}/{}", spec.agent.pod), VALUE);
    let mut lines =
        vec![format!("{agent} waits for a person: {} on server {}", code(&spec.tool, VALUE), code(&spec.server, VALUE))];
    if !spec.message.is_empty() {
        // One that is left open would turn around what is between backticks below.
        lines.push(plain(&spec.message).replace('`', "'"));
    }
    for value in spec.shown.iter().take(VALUES) {
        let cut = if value.cut || value.value.chars().count() > VALUE { " (goes on)" } else { "" };
        lines.push(format!("{}: {}{cut}", code(&value.expression, VALUE), code(&value.value, VALUE)));
    }
    if spec.shown.len() > VALUES {
        lines.push(format!("and {} more values", spec.shown.len() - VALUES));
    }
    lines.push(format!("Until {}: {} or {}", plain(&spec.expires_at), code(&approve, usize::MAX), code(&deny, usize::MAX)));
    lines.join("\n")
}

/// A text that receivers show as it is, whatever they make of Markdown, links and mentions: between backticks.
fn code(text: &str, most: usize) -> String {
    format!("`{}`", plain(&one_line(text, most)).replace('`', "'"))
}

/// A text in which nothing is a mention or a link with another name: `&<>` are written as Slack has it, and an `@` is followed by a
/// zero-width space.
fn plain(text: &str) -> String {
    let text: Cow<'_, str> = shown(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('@', "@\u{200b}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn message(value: &str) -> WebhookMessage {
        let shown = vec![ShownValue { expression: "args.amount".to_owned(), value: value.to_owned(), cut: true }];
        let spec = MCPApprovalSpec {
            server: "billing".to_owned(),
            tool: "pay_invoice".to_owned(),
            agent: ApprovalAgent { pod: "agent-0".to_owned(), pod_uid: "u".to_owned(), service_account: "bot".to_owned() },
            message: "Over 500 & <b>.".to_owned(),
            shown,
            expires_at: "2030-01-01T00:00:00Z".to_owned(),
            arguments_sha256: "ab".repeat(32),
            ..MCPApprovalSpec::default()
        };
        WebhookMessage::new("agents", "pay-x", &spec)
    }

    #[test]
    fn the_body_has_a_text_for_people_and_the_request_for_programs() {
        let body: Value = serde_json::from_slice(&message("900").body).unwrap();
        assert_eq!(
            body["text"],
            "`agents/agent-0` waits for a person: `pay_invoice` on server `billing`\nOver 500 &amp; &lt;b&gt;.\n`args.amount`: `900` (goes on)\n\
             Until 2030-01-01T00:00:00Z: `kubectl toolweir approve pay-x -n agents` or `kubectl toolweir deny pay-x -n agents`"
        );
        assert_eq!(
            body["approval"],
            json!({
                "namespace": "agents", "name": "pay-x", "server": "billing", "tool": "pay_invoice", "policies": [],
                "agent": {"pod": "agent-0", "podUid": "u", "serviceAccount": "bot"}, "message": "Over 500 & <b>.",
                "shown": [{"expression": "args.amount", "value": "900", "cut": true}], "expiresAt": "2030-01-01T00:00:00Z",
            })
        );
    }

    #[test]
    fn no_value_mentions_anybody_or_ends_its_quotes() {
        for value in
            ["<!channel>", "@here", "<@U123>", "`@channel`", "<https://evil.example|Approve>", "a\n@everyone", "x\u{202e}y"]
        {
            let body: Value = serde_json::from_slice(&message(value).body).unwrap();
            let text = body["text"].as_str().unwrap();
            let line = text.lines().nth(2).unwrap();
            assert_eq!((text.lines().count(), line.matches('`').count()), (4, 4), "{text}");
            assert!(!text.contains('<') && !text.contains("@h") && !text.contains("@c") && !text.contains("@e"), "{text}");
            assert!(!text.contains('\u{202e}'), "{text}");
            assert_eq!(body["approval"]["shown"][0]["value"], value, "programs get it as it is");
        }
    }

    /// One that a policy's text leaves open would put every value outside of its own.
    #[test]
    fn a_backtick_of_the_message_opens_no_value() {
        let spec = MCPApprovalSpec { message: "Check `args.payee".to_owned(), ..MCPApprovalSpec::default() };
        let text = text("agents", "pay-x", &spec);
        assert_eq!(text.lines().nth(1), Some("Check 'args.payee"));
    }

    #[test]
    fn the_signature_is_that_of_time_and_body() {
        let mut message = message("1");
        message.body = b"{}".to_vec();
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        let promised = "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163";
        assert_eq!(message.signature(b"secret", Timestamp::from_second(1_700_000_000).unwrap()), promised);
        assert_ne!(message.signature(b"other", Timestamp::from_second(1_700_000_000).unwrap()), promised);
    }
}
