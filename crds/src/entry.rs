//! The entries of a server's lists: what holds for a tool, a prompt, a resource, or what the server may ask for.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    approval::EntryApproval, bounds, not_null::not_null, request_name::RequestName, tool_class::ToolClass, window::Window,
};

/// An entry of any kind, as it is written.
#[derive(Clone, Copy, Debug)]
pub struct EntryView<'a> {
    /// The name, URI or glob; empty for a class.
    pub name: &'a str,
    /// The class of tools, in place of a name.
    pub class: Option<ToolClass>,
    /// The action.
    pub action: Option<Action>,
    /// What a denied caller is told.
    pub reason: Option<&'a str>,
    /// The limits.
    pub limits: &'a [Limit],
    /// The conditions.
    pub validations: &'a [Validation],
    /// The approval.
    pub approval: Option<&'a EntryApproval>,
    /// How many may be under way at once.
    pub max_concurrent: Option<i64>,
    /// What that counts together.
    pub max_concurrent_scope: Scope,
    /// The largest result, in bytes.
    pub max_result_bytes: Option<i64>,
}

/// What holds for one tool, for those that a glob matches, or for those of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "an entry, such as {name: search}")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(self.name == '') != (self.class == '')",
        "message": "an entry has a name or a class; write one of the two",
    },
    {
        "rule": "self.class != 'Unknown' || (has(self.action) && self.action == 'Deny')",
        "message": "the class Unknown allows nothing; write `action: Deny`, or name the tools",
    },
    {
        "rule": "!has(self.approval) || !has(self.action) || self.action != 'Deny'",
        "message": "nobody is asked about what `action: Deny` denies; remove `approval` or `action`",
    },
]))]
pub struct Tool {
    /// The tool's exact name, or a glob in which `*` stands for any characters. A `*` that is part of the name is written `\*`, and
    /// a backslash `\\`. What the entry allows it tells apart by case; what it denies, its limits, validations, approval and
    /// maxConcurrent hold for names in any case. Empty where the entry is for a class.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = bounds::TOOL_NAME), extend("default" = ""))]
    pub name: String,
    /// In place of a name: the class of the tools, by the definitions that their server listed last. The class of a tool that was not
    /// listed, or whose server says that its list changed, is not known: what the entry denies, its limits, validations,
    /// approval and maxConcurrent hold for such a tool too; it allows none.
    #[serde(default, with = "optional_class", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("enum" = ["", "Read", "Write", "Execute", "Destructive", "Financial", "Unknown"], "default" = ""))]
    pub class: Option<ToolClass>,
    /// Left out, an entry that names its tools allows them. The entry `*` names none: left out there, the server's
    /// `defaultAction` holds, so that `*` can carry limits for every tool without opening one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What a denied caller is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::TEXT))]
    pub reason: Option<String>,
    /// How often it may be called. All limits of all matching entries are taken together or not at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::LIMITS))]
    pub limits: Vec<Limit>,
    /// Conditions on a call; one that is false or fails denies it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::VALIDATIONS))]
    pub validations: Vec<Validation>,
    /// Calls go through only once a person has approved them. Null is refused: it would ask about none.
    #[serde(default, deserialize_with = "some_approval", skip_serializing_if = "Option::is_none")]
    pub approval: Option<EntryApproval>,
    /// How many calls may be under way at once, of all pods that `maxConcurrentScope` counts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::CONCURRENT))]
    pub max_concurrent: Option<i64>,
    /// What `maxConcurrent` counts together: `Pod`, or a scope of several pods, which needs a shared store.
    #[serde(default, skip_serializing_if = "Scope::is_default")]
    pub max_concurrent_scope: Scope,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the call counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    pub max_result_bytes: Option<i64>,
}

impl Tool {
    /// Returns what it says, as entries of every kind do.
    pub(crate) fn view(&self) -> EntryView<'_> {
        EntryView {
            name: &self.name,
            class: self.class,
            action: self.action,
            reason: self.reason.as_deref(),
            limits: &self.limits,
            validations: &self.validations,
            approval: self.approval.as_ref(),
            max_concurrent: self.max_concurrent,
            max_concurrent_scope: self.max_concurrent_scope,
            max_result_bytes: self.max_result_bytes,
        }
    }
}

/// Defines what holds for entries of another kind than tools: a field that says what they match, and what all entries have.
macro_rules! entry {
    (@most $self:ident) => {
        None
    };
    (@most $self:ident $most:ident) => {
        $self.$most
    };
    (
        $(#[$doc:meta])* $entry:ident, $example:literal,
        $(#[$name_doc:meta])* $name:ident: $text:ty = $view:expr,
        $($(#[$more_doc:meta])* $more:ident: $more_type:ty)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, expecting = $example)]
        #[schemars(extend("x-kubernetes-validations" = [{
            "rule": "!has(self.approval) || !has(self.action) || self.action != 'Deny'",
            "message": "nobody is asked about what `action: Deny` denies; remove `approval` or `action`",
        }]))]
        pub struct $entry {
            $(#[$name_doc])*
            pub $name: $text,
            /// Left out, an entry that names something allows it. The entry `*` names nothing: left out there, the default action holds.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub action: Option<Action>,
            /// What a denied caller is told.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = bounds::TEXT))]
            pub reason: Option<String>,
            /// How often it may be used. All limits of all matching entries are taken together or not at all.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = bounds::LIMITS))]
            pub limits: Vec<Limit>,
            /// Conditions; one that is false or fails denies.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = bounds::VALIDATIONS))]
            pub validations: Vec<Validation>,
            /// It goes through only once a person has approved it. Null is refused: it would ask about nothing.
            #[serde(default, deserialize_with = "some_approval", skip_serializing_if = "Option::is_none")]
            pub approval: Option<EntryApproval>,
            /// How many may be under way at once, of all pods that `maxConcurrentScope` counts together.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = 1, max = bounds::CONCURRENT))]
            pub max_concurrent: Option<i64>,
            /// What `maxConcurrent` counts together: `Pod`, or a scope of several pods, which needs a shared store.
            #[serde(default, skip_serializing_if = "Scope::is_default")]
            pub max_concurrent_scope: Scope,
            $(
                $(#[$more_doc])*
                pub $more: $more_type,
            )?
        }

        impl $entry {
            /// Returns what it says, as entries of every kind do.
            pub(crate) fn view(&self) -> EntryView<'_> {
                let name: fn(&$text) -> &str = $view;
                EntryView {
                    name: name(&self.$name),
                    class: None,
                    action: self.action,
                    reason: self.reason.as_deref(),
                    limits: &self.limits,
                    validations: &self.validations,
                    approval: self.approval.as_ref(),
                    max_concurrent: self.max_concurrent,
                    max_concurrent_scope: self.max_concurrent_scope,
                    max_result_bytes: entry!(@most self $($more)?),
                }
            }
        }
    };
}

entry! {
    /// What holds for one prompt, or for those that a glob matches.
    Prompt, "an entry, such as {name: review}",
    /// The prompt's exact name, or a glob in which `*` stands for any characters. A `*` that is part of the name is written `\*`, and
    /// a backslash `\\`. What the entry allows it tells apart by case; what it denies, and how it restricts, holds for names in any case.
    #[schemars(length(min = 1, max = bounds::TOOL_NAME))]
    name: String = |name| name,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the use counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    max_result_bytes: Option<i64>
}

entry! {
    /// What holds for one resource, or for those that a glob matches.
    Resource, "an entry, such as {uri: 'file:///handbook/*'}",
    /// The resource's URI without percent-encoding and dot segments, or a glob in which `*` stands for any characters, `/` included. What
    /// the entry denies, and how it restricts, holds for URIs in any case, and with any query or fragment.
    #[schemars(length(min = 1, max = bounds::RESOURCE_URI))]
    uri: String = |uri| uri,
    /// The largest result in bytes, as the server sends it. A larger one does not reach the agent, which is told so; the read counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = bounds::RESULT_BYTES))]
    max_result_bytes: Option<i64>
}

entry! {
    /// What holds for one thing that the server may ask of the agent.
    ServerRequest, "an entry, such as {name: sampling}",
    /// What the server asks for.
    name: RequestName = |name| name.as_str(),
}

fn some_approval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EntryApproval>, D::Error> {
    not_null(deserializer, "`approval` is null, and would ask about no call; write {} for every call, or remove it")
}

/// Reads a class that may be empty: Kubernetes writes the empty text where it is left out, since it is a key of the list.
mod optional_class {
    use std::fmt;

    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, IntoDeserializer, Visitor},
    };

    use crate::ToolClass;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ToolClass>, D::Error> {
        deserializer.deserialize_str(ClassOrEmpty)
    }

    #[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(class: &Option<ToolClass>, serializer: S) -> Result<S::Ok, S::Error> {
        class.map_or("", ToolClass::as_str).serialize(serializer)
    }

    /// Refuses a text while the reader still knows its place.
    struct ClassOrEmpty;

    impl Visitor<'_> for ClassOrEmpty {
        type Value = Option<ToolClass>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a class")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() { Ok(None) } else { ToolClass::deserialize(text.into_deserializer()).map(Some) }
        }
    }
}

/// Whether a tool may be called, a prompt used, a resource read, or a request put to the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It may, within the limits, validations and approvals that match.
    Allow,
    /// It may not. What is left out is denied.
    #[default]
    Deny,
}

/// At most `max` in any span of `window`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a limit, such as {max: 30, window: 1m}")]
pub struct Limit {
    /// The most that is let through in any span of `window`: calls, or the sum of `cost`. At most 9 000 000 000 where it is
    /// counted across pods.
    #[schemars(range(min = 1, max = bounds::MAX))]
    pub max: i64,
    /// `second`, `minute`, `hour`, `day`, or a duration such as `90s`.
    pub window: Window,
    /// What each gets a count of its own.
    #[serde(default)]
    pub scope: Scope,
    /// A CEL value; each value of it gets a count of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub key: Option<String>,
    /// A CEL number that a call adds, instead of 1. Negative or not a number denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub cost: Option<String>,
    /// Limits of one policy that name the same counter and have the same window and scope count together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::COUNTER_NAME))]
    pub counter: Option<String>,
}

/// What a limit counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// One MCP session of one pod.
    Session,
    /// One pod.
    #[default]
    Pod,
    /// All pods of one workload, such as a Deployment. Needs a shared store.
    Workload,
    /// All pods of one service account. Needs a shared store.
    ServiceAccount,
    /// All pods of one namespace. Needs a shared store.
    Namespace,
    /// All pods that the policy governs. Needs a shared store.
    Policy,
}

impl Scope {
    /// Returns whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether it counts calls of more than one pod together.
    pub fn is_shared(self) -> bool {
        !matches!(self, Self::Session | Self::Pod)
    }
}

/// A condition on a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a condition, such as {expression: args.amount <= 500}")]
pub struct Validation {
    /// A CEL expression over `args`, `server`, `session`, `pod` and the name of what is used (`tool`, `prompt`, `uri` or `request`) that is
    /// true for what may pass.
    #[schemars(length(min = 1, max = bounds::EXPRESSION))]
    pub expression: String,
    /// What a denied caller is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::TEXT))]
    pub message: Option<String>,
}
