//! What callers are told, by the kind of what they ask for.

use std::borrow::Cow;

use toolweir_crds::{OperationKind, text};

use crate::call::Operation;

/// Returns what is said of what may not be used and is not shown.
pub(crate) fn not_among(Operation { kind, name, .. }: Operation<'_>) -> String {
    let shown = display_name(name);
    match kind {
        OperationKind::Tool => format!("{shown} is not among the tools that may be called. Use one that tools/list shows."),
        OperationKind::Prompt => format!("{shown} is not among the prompts that may be used. Use one that prompts/list shows."),
        OperationKind::Resource => {
            format!("{shown} is not among the resources that may be read. Use one that resources/list shows.")
        }
        OperationKind::Request => format!("{shown} is not among what the server may ask for."),
        OperationKind::Other => format!("{shown} is not among the methods that may be used."),
    }
}

/// Returns what is said of what an entry denies without a reason.
pub(crate) fn may_not(Operation { kind, name, .. }: Operation<'_>) -> String {
    let shown = display_name(name);
    match kind {
        OperationKind::Tool => format!("{shown} may not be called."),
        OperationKind::Resource => format!("{shown} may not be read."),
        OperationKind::Request => format!("the server may not ask for {shown}."),
        OperationKind::Prompt | OperationKind::Other => format!("{shown} may not be used."),
    }
}

/// Returns what is said of a kind in which no policy has a say.
pub(crate) fn no_say(server: &str, kind: OperationKind) -> String {
    let (server, field) = (display_name(server), kind.field());
    match kind {
        OperationKind::Tool => format!("Denied: no policy in force names the server {server}."),
        OperationKind::Prompt | OperationKind::Resource => {
            format!(
                "Denied: no policy in force says which {field} of the server {server} may be used; `{field}` or `defaultActions.{field}` would."
            )
        }
        OperationKind::Request => format!(
            "Denied: no policy in force says what the server {server} may ask for; `requests` or `defaultActions.requests` would."
        ),
        OperationKind::Other => {
            format!(
                "Denied: no policy in force says which other methods of the server {server} may be used; `defaultActions.other` would."
            )
        }
    }
}

/// Returns what limits of a kind count, one of them.
pub(crate) fn counted(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Tool => "call",
        OperationKind::Prompt | OperationKind::Other => "use",
        OperationKind::Resource => "read",
        OperationKind::Request => "request",
    }
}

/// Returns a name that a caller chose in a form for messages: short and without control characters.
pub(crate) fn display_name(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 128;
    if name.len() <= LONGEST && !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(text::one_line(name, LONGEST))
}
