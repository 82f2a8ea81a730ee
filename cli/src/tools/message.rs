//! Messages of a server on their way into the SDK. Its types drop what they do not know, leave out tools whose headers they do not like, and
//! take a result for another where a field has an unexpected form. So a list is hidden from them as a whole, and taken out again
//! as it came: as a text, so that no number changes on the way.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rmcp::model::{CustomResult, ServerJsonRpcMessage, ServerResult};
use serde_json::{Value, json};

use super::{
    fault::{FaultNote, SourceFault},
    limits::ReadLimits,
    secrets::HeaderSecrets,
    strict_json,
};

/// The members of which a list has one.
const LISTS: [&str; 4] = ["tools", "prompts", "resources", "resourceTemplates"];
/// The member that holds the result of a list.
const AS_LISTED: &str = "toolweir.dev/asListed";

/// What the reading of one server shares: its bounds, what is left of its bytes, and its first fault.
#[derive(Clone, Debug)]
pub struct ReadState {
    /// The bounds.
    pub limits: ReadLimits,
    /// The first fault.
    pub faults: FaultNote,
    /// What no error repeats.
    pub secrets: Arc<HeaderSecrets>,
    left: Arc<AtomicUsize>,
}

impl ReadState {
    /// Begins.
    pub fn new(limits: ReadLimits) -> Self {
        Self::with_secrets(limits, HeaderSecrets::default())
    }

    /// Begins where there are secrets.
    pub fn with_secrets(limits: ReadLimits, secrets: HeaderSecrets) -> Self {
        let left = Arc::new(AtomicUsize::new(limits.bytes));
        Self { limits, faults: FaultNote::default(), secrets: Arc::new(secrets), left }
    }

    /// Counts bytes that came.
    ///
    /// # Errors
    /// There are too many.
    pub fn count(&self, bytes: usize) -> Result<(), SourceFault> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(|_| ()).map_err(|_| SourceFault::TooLarge(self.limits.bytes))
    }
}

/// Checks a message, and hides a list in it.
///
/// # Errors
/// It is not JSON, or an object repeats a name.
pub fn hide_list(text: &[u8]) -> Result<String, SourceFault> {
    let mut message = strict_json::parse(text).map_err(|error| SourceFault::garbage(text, &error))?;
    if let Some(result) = message.get_mut("result").filter(|result| LISTS.iter().any(|list| result.get(list).is_some())) {
        *result = json!({ AS_LISTED: result.to_string() });
    }
    Ok(message.to_string())
}

/// Reads a message.
///
/// # Errors
/// It is none.
pub fn read(text: &[u8]) -> Result<ServerJsonRpcMessage, SourceFault> {
    serde_json::from_str(&hide_list(text)?).map_err(|error| SourceFault::garbage(text, &error))
}

/// Takes the list out of a result again, if it is one.
pub fn listed(result: ServerResult) -> Option<Value> {
    let ServerResult::CustomResult(CustomResult(Value::Object(mut fields))) = result else { return None };
    let text = fields.remove(AS_LISTED)?;
    strict_json::parse(text.as_str()?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_passes_the_sdk_as_it_is() {
        for list in [
            json!({"tools": [{"name": "a", "aNewerField": 1, "annotations": "odd"}], "nextCursor": "x", "resultType": "complete"}),
            json!({"tools": 7}),
            json!({"prompts": [{"name": 7}]}),
            json!({"resources": [{"uri": "no uri"}]}),
            json!({"resourceTemplates": []}),
            json!({"tools": [], "content": [], "resultType": "complete"}),
        ] {
            let text = json!({"jsonrpc": "2.0", "id": 1, "result": list}).to_string();
            let ServerJsonRpcMessage::Response(response) = read(text.as_bytes()).unwrap() else { panic!("{text}") };
            assert_eq!(listed(response.result), Some(list));
        }
        let other = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": []}}).to_string();
        let ServerJsonRpcMessage::Response(response) = read(other.as_bytes()).unwrap() else { panic!("{other}") };
        assert_eq!(listed(response.result), None);
    }

    #[test]
    fn what_is_no_message_is_a_fault() {
        for (text, why) in [
            ("<html>", "(expected value at line 1 column 1): `<html>`"),
            (r#"{"hello": 1}"#, "unrecognized JSON-RPC message"),
            (
                r#"{"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "a", "name": "b"}]}}"#,
                "`name` stands twice in one object",
            ),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn bytes_run_out() {
        let state = ReadState::new(ReadLimits { bytes: 10, ..ReadLimits::default() });
        assert_eq!((state.count(10), state.count(1)), (Ok(()), Err(SourceFault::TooLarge(10))));
    }
}
