//! stub until the finder of keys
/// x
pub fn spells_ask(text: &[u8]) -> bool {
    ["method", "inputRequests", "elicitations", "taskId"].iter().any(|key| memchr::memmem::find(text, key.as_bytes()).is_some())
}
