//! `kubectl toolweir approve` and `deny`: write a decision, and say what happens next.

use std::{io::Write, time::Duration};

use anyhow::{anyhow, bail};
use k8s_openapi::{api::authentication::v1::SelfSubjectReview, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use toolweir_crds::{
    approval_request::{ApprovalDecision, ApprovalState},
    bounds,
};

use super::{
    refusal,
    request::{self, ListedApproval},
    request_text::{clock, safe_line},
};
use crate::{
    CommandOutcome, OutputFormat,
    cluster::{ApiAccess, NamespaceScope, is_missing},
};

/// How often a decision is written anew when the object changed in between.
const TRIES: usize = 5;
/// How often it is looked whether the operator has passed the decision on.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A decision to write.
#[derive(Clone, Debug)]
pub struct DecideQuery {
    /// The namespace of the request.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is decided.
    pub decision: ApprovalDecision,
    /// Why. The agent is told that of a denial.
    pub reason: Option<String>,
    /// How long to wait for the operator to pass it on.
    pub patience: Duration,
    /// The output format.
    pub form: OutputFormat,
}

impl DecideQuery {
    /// Checks the reason.
    ///
    /// # Errors
    /// It is empty or too long, or has characters that cannot be seen.
    fn check(&self) -> anyhow::Result<()> {
        let Some(reason) = &self.reason else { return Ok(()) };
        if reason.trim().is_empty() {
            bail!("--reason is empty; leave it out, or write why");
        }
        if reason.len() > bounds::TEXT {
            bail!("--reason has {} bytes; it may have {}", reason.len(), bounds::TEXT);
        }
        if reason.chars().any(char::is_control) {
            bail!("--reason has a control character; write one line of text");
        }
        Ok(())
    }
}

/// Shows what is decided, writes the decision, and says what happens next. The outcome is negative if the operator did not pass it on in time.
///
/// # Errors
/// There is no such request, it is decided or over, or a right is missing.
pub async fn decide(
    client: &Client,
    query: &DecideQuery,
    mut out: impl Write,
    time: impl Fn() -> Timestamp,
) -> anyhow::Result<CommandOutcome> {
    query.check()?;
    let user = user_name(client).await?;
    let mut shown = false;
    let mut written = None;
    for _ in 0..TRIES {
        let approval = ListedApproval::get(client, &query.namespace, &query.name).await?;
        if query.form == OutputFormat::Text && !shown {
            out.write_all(approval.described(time()).as_bytes())?;
            shown = true;
        }
        undecided(&approval, time())?;
        written = write(client, query, &approval, &user).await?;
        if written.is_some() {
            break;
        }
    }
    let Some(written) = written else {
        bail!("{}/{} changes all the time, so that nothing can be decided; try again", query.namespace, query.name)
    };
    let last = passed_on(client, query, written).await?;
    let (text, outcome) = told(&last, query, time())?;
    match query.form {
        OutputFormat::Text => out.write_all(text.as_bytes())?,
        OutputFormat::Json => writeln!(out, "{}", last.json_line(time())?)?,
    }
    Ok(outcome)
}

/// Returns the name by which the API server knows this user, as it must stand in `decidedBy`.
async fn user_name(client: &Client) -> anyhow::Result<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let access = ApiAccess { verb: "create", resource: "selfsubjectreviews.authentication.k8s.io", namespace: None };
    match api.create(&PostParams::default(), &SelfSubjectReview::default()).await {
        Ok(review) => {
            let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
            user.filter(|user| !user.is_empty()).ok_or_else(|| anyhow!("the API server does not say who you are"))
        }
        Err(error) if is_missing(&error) => {
            bail!("the API server does not say who you are (SelfSubjectReview); approvals need Kubernetes 1.30 or later")
        }
        Err(error) => Err(access.failed(&error)),
    }
}

/// Checks that a request can be decided.
fn undecided(approval: &ListedApproval, now: Timestamp) -> anyhow::Result<()> {
    let name = approval.full_name();
    if let Some(decision) = approval.status.decision {
        let what = match decision {
            ApprovalDecision::Approve => "approved",
            ApprovalDecision::Deny => "denied",
        };
        let by = approval.decided_by();
        bail!("{name} was {what} by {by}, and a decision is not changed; the agent's next call of this kind may ask again");
    }
    match approval.state() {
        ApprovalState::Pending if !approval.is_over(now) => Ok(()),
        ApprovalState::Pending | ApprovalState::Expired => {
            let when = approval.expires_at().map(|end| format!(" at {}", clock(end, now))).unwrap_or_default();
            bail!("{name} expired{when}, undecided; the agent asks again when it makes the call again")
        }
        state => {
            let why = approval.status.message.as_deref().map(|why| format!(": {}", safe_line(why))).unwrap_or_default();
            bail!("{name} can no longer be decided, it is {}{why}", state.as_str())
        }
    }
}

/// Writes the decision. Returns nothing if the object changed since it was read.
async fn write(
    client: &Client,
    query: &DecideQuery,
    approval: &ListedApproval,
    user: &str,
) -> anyhow::Result<Option<ListedApproval>> {
    let mut status = json!({"decision": query.decision, "decidedBy": user});
    if let (Some(reason), Some(fields)) = (&query.reason, status.as_object_mut()) {
        fields.insert("reason".to_owned(), reason.as_str().into());
    }
    // With the version, nobody else's decision is written over.
    let patch = json!({"metadata": {"resourceVersion": approval.resource_version}, "status": status});
    let api = request::api(client, &NamespaceScope::Namespace(query.namespace.clone()));
    match api.patch_status(&query.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(object) => ListedApproval::read(&object).map(Some),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) if refusal::is_of_admission(&error) => Err(refusal::refused(client, approval, &safe_line(user), &error).await),
        Err(error) => {
            let access =
                ApiAccess { verb: "patch", resource: "mcpapprovals.toolweir.dev/status", namespace: Some(&query.namespace) };
            Err(access.failed(&error))
        }
    }
}

/// Waits until the operator has passed the decision on, or patience ends. Returns the request as it is then.
async fn passed_on(client: &Client, query: &DecideQuery, written: ListedApproval) -> anyhow::Result<ListedApproval> {
    let mut last = written;
    let deadline = tokio::time::Instant::now() + query.patience;
    while last.state() == ApprovalState::Pending && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY.min(query.patience)).await;
        last = ListedApproval::get(client, &query.namespace, &query.name).await?;
    }
    Ok(last)
}

/// Says what happens next.
fn told(approval: &ListedApproval, query: &DecideQuery, now: Timestamp) -> anyhow::Result<(String, CommandOutcome)> {
    let name = approval.full_name();
    let until = approval.expires_at().map(|end| format!(" until {}", clock(end, now))).unwrap_or_default();
    let said = match (approval.state(), query.decision) {
        (ApprovalState::Approved, _) => format!("{name} is approved: the call goes through once,{until}.\n"),
        (ApprovalState::Used, _) => format!("{name} is approved, and the call went through.\n"),
        (ApprovalState::Denied, _) => {
            format!("{name} is denied: the agent is told so, and the same call is denied without asking{until}.\n")
        }
        (ApprovalState::Pending, _) => {
            let text = format!(
                "The decision on {name} is written, but the operator has not passed it on after {} s, and it only counts{until}. Check that the \
                 operator runs, and that approvals are on (approvals.enabled of the chart, docs/approvals.md).\n",
                query.patience.as_secs()
            );
            return Ok((text, CommandOutcome::Negative));
        }
        (state @ (ApprovalState::Expired | ApprovalState::Voided), _) => {
            let why = approval.status.message.as_deref().map(|why| format!(": {}", safe_line(why))).unwrap_or_default();
            bail!("{name} ended before the decision came, it is {}{why}", state.as_str())
        }
    };
    Ok((said, CommandOutcome::Positive))
}
