//! The call that is decided on.

use std::cell::OnceCell;

use toolweir_crds::ToolClass;

use crate::{
    ask::ApprovalAsk,
    cel::{self, ArgumentsError, CelObject, work::Meter},
    json::Raw,
    seen::SeenTool,
};

/// A tool call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The server's name in the policies.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// The arguments as they stand in the request.
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
        Self { call, meter: Meter::default(), approved, arguments: OnceCell::new() }
    }

    /// Makes the context of a call that nobody has approved, with this budget.
    pub fn with_meter(call: &'a Call<'a>, meter: Meter) -> Self {
        Self { call, meter, approved: None, arguments: OnceCell::new() }
    }

    /// Returns the arguments as expressions see them.
    pub fn arguments(&self) -> Result<&CelObject<'a>, ArgumentsError> {
        self.arguments.get_or_init(|| cel::arguments(self.call.arguments, &self.meter)).as_ref().map_err(Clone::clone)
    }
}
