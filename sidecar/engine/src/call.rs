//! The call that is decided on: of a tool, or another operation of MCP.

use std::{borrow::Cow, cell::OnceCell};

use toolweir_crds::{OperationKind, RequestName, ToolClass, resource_uri::ResourceUri};

use crate::{
    ask::ApprovalAsk,
    cel::{self, ArgumentsError, CelObject, work::Meter},
    json::Raw,
    seen::SeenTool,
};

/// What a message asks for: its kind, the name by which policies know it, and the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// The kind.
    pub kind: OperationKind,
    /// The name of the tool or prompt, the URI of the resource as the message has it, `sampling`, `elicitation` or `roots`, or the method.
    pub name: &'a str,
    /// The method. It makes no difference to a decision.
    pub method: &'a str,
}

impl<'a> Operation<'a> {
    /// A call of a tool.
    pub const fn tool(name: &'a str) -> Self {
        Self { kind: OperationKind::Tool, name, method: "tools/call" }
    }

    /// A use of a prompt.
    pub const fn prompt(name: &'a str) -> Self {
        Self { kind: OperationKind::Prompt, name, method: "prompts/get" }
    }

    /// A read of a resource.
    pub const fn resource(uri: &'a str) -> Self {
        Self { kind: OperationKind::Resource, name: uri, method: "resources/read" }
    }

    /// What a server asks of its client.
    pub const fn request(name: RequestName) -> Self {
        Self { kind: OperationKind::Request, name: name.as_str(), method: name.method() }
    }

    /// Another method.
    pub const fn other(method: &'a str) -> Self {
        Self { kind: OperationKind::Other, name: method, method }
    }

    /// What is asked for by a name of this kind, with the method that says so in the first place.
    pub fn of_kind(kind: OperationKind, name: &'a str) -> Self {
        match kind {
            OperationKind::Tool => Self::tool(name),
            OperationKind::Prompt => Self::prompt(name),
            OperationKind::Resource => Self::resource(name),
            OperationKind::Request => match RequestName::ALL.into_iter().find(|known| known.as_str() == name) {
                Some(known) => Self::request(known),
                None => Self { kind, name, method: name },
            },
            OperationKind::Other => Self::other(name),
        }
    }

    /// The same by another method.
    #[must_use]
    pub const fn by(self, method: &'a str) -> Self {
        Self { method, ..self }
    }
}

/// A call of a tool, or another operation.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The server's name in the policies.
    pub server: &'a str,
    /// What is asked for.
    pub operation: Operation<'a>,
    /// The arguments of a tool or prompt, or the parameters of a server's request, as they stand in the message.
    pub arguments: Option<Raw<'a>>,
    /// The MCP session; empty where there is none.
    pub session: &'a str,
    /// What the server's lists said last of the tool; none where that is not known.
    pub seen: Option<&'a SeenTool>,
}

impl Call<'_> {
    /// Returns the class of the tool.
    pub fn class(&self) -> ToolClass {
        self.seen.map_or(ToolClass::Unknown, |seen| seen.class)
    }
}

/// A call with what all policies share that decide on it: one budget, and arguments that are read once.
pub(crate) struct CallContext<'a> {
    pub call: &'a Call<'a>,
    /// The name as expressions see it: a resource's URI in its canonical form, if it has one.
    pub name: Cow<'a, str>,
    /// The work that expressions may still do.
    pub meter: Meter,
    /// What a person has approved of the call.
    pub approved: Option<&'a ApprovalAsk>,
    /// Read on first use.
    arguments: OnceCell<Result<CelObject<'a>, ArgumentsError>>,
}

impl<'a> CallContext<'a> {
    /// Makes the context of a call of which a person has approved this, with the budget of one decision.
    pub fn new(call: &'a Call<'a>, approved: Option<&'a ApprovalAsk>) -> Self {
        Self { approved, ..Self::with_meter(call, Meter::default()) }
    }

    /// Makes the context of a call that nobody has approved, with this budget.
    pub fn with_meter(call: &'a Call<'a>, meter: Meter) -> Self {
        let Operation { kind, name, .. } = call.operation;
        let name = match kind {
            OperationKind::Resource => ResourceUri::read(name).map_or(Cow::Borrowed(name), ResourceUri::into_canonical),
            _ => Cow::Borrowed(name),
        };
        Self { call, name, meter, approved: None, arguments: OnceCell::new() }
    }

    /// Returns the arguments as expressions see them.
    pub fn arguments(&self) -> Result<&CelObject<'a>, ArgumentsError> {
        self.arguments.get_or_init(|| cel::arguments(self.call.arguments, &self.meter)).as_ref().map_err(Clone::clone)
    }
}
