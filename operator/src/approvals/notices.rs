//! Events of a pod: a call of it waits for a person, and what was decided. Plain functions, no I/O.

use data_encoding::HEXLOWER;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use toolweir_crds::{approval_request::ApprovalState, resource::MCPApproval, text::one_word};

use super::request::bounded;
use crate::{
    event_notice::{EventNotice, EventObject, EventType},
    pins_status::LONGEST_TOOL,
};

/// The longest name of a server or a person that is shown, in bytes.
const LONGEST_NAME: usize = 256;
/// The longest reason that is shown, in bytes.
const LONGEST_REASON: usize = 400;

/// The commands by which people decide on a request.
pub fn commands(namespace: &str, name: &str) -> (String, String) {
    let command = |verb: &str| format!("kubectl toolweir {verb} {name} -n {namespace}");
    (command("approve"), command("deny"))
}

/// Returns the event of a call that waits for a person.
pub fn requested(object: &MCPApproval, now: Timestamp) -> EventNotice {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (approve, deny) = commands(&namespace, &name);
    let until = bounded(&object.spec.expires_at, LONGEST_NAME);
    let message = format!("{} waits for a person until {until}: {namespace}/{name}. `{approve}`, or `{deny}`.", call(object));
    notice(object, "ApprovalRequested", message, now)
}

/// Returns the event of a decision that counts, by which the object got this state.
pub fn decided(object: &MCPApproval, state: ApprovalState, now: Timestamp) -> EventNotice {
    let status = object.status.clone().unwrap_or_default();
    let by = bounded(&status.decided_by.unwrap_or_default(), LONGEST_NAME);
    let what = if state == ApprovalState::Approved { "approved" } else { "denied" };
    let reason = status.reason.map(|reason| format!(": {}", bounded(&reason, LONGEST_REASON))).unwrap_or_default();
    let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    notice(object, "ApprovalDecided", format!("{} was {what} by {by} ({name}){reason}", call(object)), now)
}

fn call(object: &MCPApproval) -> String {
    format!("Tool {} on server {}", named(&object.spec.tool), named(&object.spec.server))
}

/// A name that an agent may have chosen, which is no part of the sentence and no command.
fn named(name: &str) -> String {
    let cut = name.get(..name.floor_char_boundary(LONGEST_TOOL)).unwrap_or_default();
    let more = if cut.len() < name.len() { "..." } else { "" };
    format!("{}{more}", one_word(cut).replace('`', "'"))
}

fn notice(object: &MCPApproval, reason: &'static str, message: String, now: Timestamp) -> EventNotice {
    let agent = &object.spec.agent;
    let told = format!("{} {reason}", object.uid().unwrap_or_default());
    let digest = ring::digest::digest(&ring::digest::SHA256, told.as_bytes());
    let pod: String = agent.pod.chars().take(230).collect();
    EventNotice {
        regarding: EventObject {
            api_version: "v1",
            kind: "Pod",
            namespace: object.namespace().unwrap_or_default(),
            name: agent.pod.clone(),
            uid: agent.pod_uid.clone(),
        },
        name: format!("{}.{}", pod.trim_end_matches(['.', '-']), HEXLOWER.encode(digest.as_ref().get(..8).unwrap_or_default())),
        event_type: EventType::Normal,
        reason,
        message,
        first: now,
        last: now,
        count: 1,
    }
}

#[cfg(test)]
mod tests {
    use toolweir_crds::approval_request::MCPApprovalSpec;

    use super::*;

    /// An agent whose policy has a pattern chooses the name of the tool.
    #[test]
    fn a_tool_is_no_part_of_the_sentence_and_no_command() {
        let tool = "see waits for a person: `kubectl toolweir approve other -n agents`\u{202e}";
        let spec = MCPApprovalSpec { server: "bank".to_owned(), tool: tool.to_owned(), ..MCPApprovalSpec::default() };
        let mut object = MCPApproval::new("see-x", spec);
        object.metadata.namespace = Some("agents".to_owned());
        let message = requested(&object, Timestamp::UNIX_EPOCH).message;
        let named = r#"Tool "see waits for a person: 'kubectl toolweir approve other -n agents'\u{202e}" on server bank waits for a person until "#;
        assert!(message.starts_with(named), "{message}");
        assert_eq!(message.matches('`').count(), 4, "{message}");
    }
}
