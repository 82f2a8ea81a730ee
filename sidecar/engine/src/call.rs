//! The call that is decided on.

use std::cell::OnceCell;

use crate::{
    cel::{self, ArgumentsError, CelObject, work::Meter},
    json::Raw,
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
}

/// A call with what all policies share that decide on it: one budget, and arguments that are read once.
pub(crate) struct CallContext<'a> {
    pub call: &'a Call<'a>,
    /// The work that expressions may still do.
    pub meter: Meter,
    /// Read on first use.
    arguments: OnceCell<Result<CelObject<'a>, ArgumentsError>>,
}

impl<'a> CallContext<'a> {
    /// Makes the context of a call with the budget of one decision.
    pub fn new(call: &'a Call<'a>) -> Self {
        Self::with_meter(call, Meter::default())
    }

    /// Makes the context of a call with this budget.
    pub fn with_meter(call: &'a Call<'a>, meter: Meter) -> Self {
        Self { call, meter, arguments: OnceCell::new() }
    }

    /// Returns the arguments as expressions see them.
    pub fn arguments(&self) -> Result<&CelObject<'a>, ArgumentsError> {
        self.arguments.get_or_init(|| cel::arguments(self.call.arguments, &self.meter)).as_ref().map_err(Clone::clone)
    }
}
