//! `kubectl toolweir approvals`: the requests that there are.

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde::Serialize;

use super::request::{self, ListedApproval, RESOURCE};
use crate::{
    OutputFormat,
    cluster::{ApiAccess, NamespaceScope, list},
    table::{Columns, json, safe_json},
};

/// The requests to show, and how.
#[derive(Clone, Debug)]
pub struct ApprovalsQuery {
    /// The namespaces.
    pub scope: NamespaceScope,
    /// Also those that wait no longer.
    pub all: bool,
    /// The output format.
    pub form: OutputFormat,
}

impl ApprovalsQuery {
    /// Returns true if a request is to be shown.
    pub fn wants(&self, approval: &ListedApproval, now: Timestamp) -> bool {
        self.all || approval.is_waiting(now)
    }
}

/// A request as JSON.
#[derive(Serialize)]
struct ApprovalRow<'a> {
    waiting: bool,
    /// True if the object is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    #[serde(flatten)]
    approval: &'a ListedApproval,
}

/// All of it as JSON.
#[derive(Serialize)]
struct ApprovalsReport<'a> {
    approvals: Vec<ApprovalRow<'a>>,
    notes: &'a [String],
}

impl ListedApproval {
    fn row(&self, now: Timestamp) -> ApprovalRow<'_> {
        ApprovalRow { waiting: self.is_waiting(now), deleted: false, approval: self }
    }

    /// Formats it as one line of JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn json_line(&self, now: Timestamp) -> serde_json::Result<String> {
        serde_json::to_string(&self.row(now)).map(|text| safe_json(&text))
    }

    /// Formats it as one line of JSON that says that it is gone.
    ///
    /// # Errors
    /// None that is known.
    pub fn deleted_line(&self) -> serde_json::Result<String> {
        let row = ApprovalRow { waiting: false, deleted: true, approval: self };
        serde_json::to_string(&row).map(|text| safe_json(&text))
    }
}

/// A table that grows, with what is asked below each request that waits.
#[derive(Clone, Debug)]
pub struct ApprovalTable {
    columns: Columns,
    /// With a column for the namespace.
    namespaces: bool,
    begun: bool,
}

impl ApprovalTable {
    /// Begins a table for a scope.
    pub fn new(scope: &NamespaceScope) -> Self {
        Self { columns: Columns::default(), namespaces: *scope == NamespaceScope::All, begun: false }
    }

    fn cells(&self, approval: &ListedApproval, state: Option<&str>, now: Timestamp) -> Vec<String> {
        let mut cells = approval.cells(now);
        if let (Some(state), Some(cell)) = (state, cells.get_mut(4)) {
            state.clone_into(cell);
        }
        let namespace = self.namespaces.then(|| approval.namespace.clone());
        namespace.into_iter().chain(cells).collect()
    }

    /// Formats requests, with the header before the first.
    pub fn rows(&mut self, approvals: &[&ListedApproval], now: Timestamp) -> String {
        for approval in approvals {
            self.columns.fit(&self.cells(approval, None, now));
        }
        approvals.iter().map(|approval| self.row(approval, None, now)).collect()
    }

    /// Formats a request, with a state of which the object does not know.
    pub fn row(&mut self, approval: &ListedApproval, state: Option<&str>, now: Timestamp) -> String {
        let mut text = String::new();
        if !self.begun {
            let header: Vec<&str> = self.namespaces.then_some("NAMESPACE").into_iter().chain(ListedApproval::HEADER).collect();
            text = format!("{}\n", self.columns.line(&header));
            self.begun = true;
        }
        let cells = self.cells(approval, state, now);
        text.push_str(&format!("{}\n", self.columns.line(&cells)));
        if state.is_none() && approval.is_waiting(now) {
            text.push_str(&approval.asked());
        }
        text
    }
}

/// Returns the requests, oldest first, and notes on what could not be read.
///
/// # Errors
/// They cannot be listed.
pub async fn gather(
    client: &Client,
    query: &ApprovalsQuery,
    now: Timestamp,
) -> anyhow::Result<(Vec<ListedApproval>, Vec<String>)> {
    let access = ApiAccess { verb: "list", resource: RESOURCE, namespace: query.scope.namespace() };
    let objects = list(&request::api(client, &query.scope), access).await?;
    let (mut approvals, mut notes) = (Vec::new(), Vec::new());
    for object in &objects {
        match ListedApproval::read(object) {
            Ok(approval) if query.wants(&approval, now) => approvals.push(approval),
            Ok(_) => {}
            Err(error) => notes.push(format!("{error:#}")),
        }
    }
    approvals.sort_by_key(|approval| (approval.created_at, approval.full_name()));
    Ok((approvals, notes))
}

/// Formats requests.
///
/// # Errors
/// None that is known.
pub fn text(
    approvals: &[ListedApproval],
    notes: &[String],
    query: &ApprovalsQuery,
    now: Timestamp,
) -> serde_json::Result<String> {
    match query.form {
        OutputFormat::Text if approvals.is_empty() => Ok(String::new()),
        OutputFormat::Text => Ok(ApprovalTable::new(&query.scope).rows(&approvals.iter().collect::<Vec<_>>(), now)),
        OutputFormat::Json => {
            let approvals = approvals.iter().map(|approval| approval.row(now)).collect();
            Ok(format!("{}\n", json(&ApprovalsReport { approvals, notes })?))
        }
    }
}
