//! `kubectl toolweir approvals -w`: the requests, and then each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use anyhow::bail;
use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    runtime::{WatchStreamExt, watcher},
};

use super::{
    listing::{ApprovalTable, ApprovalsQuery},
    request::{self, AnyApproval, ListedApproval, RESOURCE},
};
use crate::{
    OutputFormat,
    cluster::{ApiAccess, chain, is_forbidden},
    table::shown,
};

/// Writes requests as they come and change, until that fails. `notes` gets a note about everything that could not be read.
///
/// # Errors
/// A right is missing, or the output cannot be written.
pub async fn watch(
    client: &Client,
    query: &ApprovalsQuery,
    out: impl Write,
    mut notes: impl Write,
    clock: impl Fn() -> Timestamp,
) -> anyhow::Result<()> {
    let mut events = std::pin::pin!(watcher(request::api(client, &query.scope), watcher::Config::default()).default_backoff());
    let mut writer = ChangeWriter::new(query, out);
    loop {
        let now = clock();
        match events.next().await {
            Some(Ok(watcher::Event::Init)) => writer.begin_list(),
            Some(Ok(watcher::Event::InitApply(object))) => writer.listed(&object),
            Some(Ok(watcher::Event::InitDone)) => writer.end_list(now)?,
            Some(Ok(watcher::Event::Apply(object))) => writer.changed(&object, now)?,
            Some(Ok(watcher::Event::Delete(object))) => writer.deleted(&object, now)?,
            Some(Err(error)) => report(&error, query, &mut notes)?,
            None => bail!("the watch for requests has ended"),
        }
        for note in writer.notes.drain(..) {
            writeln!(notes, "note: {}", shown(&note))?;
        }
    }
}

/// Writes a note on a watch that broke off; it goes on by itself. One that was open for too long is no news.
fn report(error: &watcher::Error, query: &ApprovalsQuery, notes: &mut impl Write) -> anyhow::Result<()> {
    let access = |verb| ApiAccess { verb, resource: RESOURCE, namespace: query.scope.namespace() };
    match error {
        watcher::Error::InitialListFailed(api) if is_forbidden(api) => return Err(access("list").failed(api)),
        watcher::Error::WatchStartFailed(api) if is_forbidden(api) => return Err(access("watch").failed(api)),
        watcher::Error::WatchError(status) if status.code == 410 => {}
        error => writeln!(notes, "note: the watch for requests is interrupted: {}", shown(&chain(error)))?,
    }
    Ok(())
}

/// Namespace and name of a request.
type ApprovalKey = (String, String);

/// Writes a request when it comes, and what was shown of one when that changes.
struct ChangeWriter<'a, W> {
    query: &'a ApprovalsQuery,
    out: W,
    table: ApprovalTable,
    /// What was shown last, and its state then.
    shown: BTreeMap<ApprovalKey, (ListedApproval, String)>,
    /// What a list has brought so far.
    listed: Vec<ListedApproval>,
    present: BTreeSet<ApprovalKey>,
    notes: Vec<String>,
}

impl<'a, W: Write> ChangeWriter<'a, W> {
    fn new(query: &'a ApprovalsQuery, out: W) -> Self {
        let table = ApprovalTable::new(&query.scope);
        Self { query, out, table, shown: BTreeMap::new(), listed: Vec::new(), present: BTreeSet::new(), notes: Vec::new() }
    }

    fn begin_list(&mut self) {
        self.listed.clear();
        self.present.clear();
    }

    fn read(&mut self, object: &AnyApproval) -> Option<ListedApproval> {
        match ListedApproval::read(object) {
            Ok(approval) => Some(approval),
            Err(error) => {
                self.notes.push(format!("{error:#}"));
                None
            }
        }
    }

    fn listed(&mut self, object: &AnyApproval) {
        if let Some(approval) = self.read(object) {
            self.present.insert(key(&approval));
            self.listed.push(approval);
        }
    }

    /// Shows what the list brought that is new or has changed, and what is gone since.
    fn end_list(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let gone: Vec<ApprovalKey> = self.shown.keys().filter(|key| !self.present.contains(*key)).cloned().collect();
        for key in gone {
            self.gone(&key, now)?;
        }
        let mut listed = std::mem::take(&mut self.listed);
        listed.retain(|approval| self.is_news(approval, now));
        listed.sort_by_key(|approval| (approval.created_at, approval.full_name()));
        self.write(listed, now)
    }

    fn changed(&mut self, object: &AnyApproval, now: Timestamp) -> anyhow::Result<()> {
        match self.read(object).filter(|approval| self.is_news(approval, now)) {
            Some(approval) => self.write(vec![approval], now),
            None => Ok(()),
        }
    }

    fn deleted(&mut self, object: &AnyApproval, now: Timestamp) -> anyhow::Result<()> {
        match self.read(object) {
            Some(approval) => self.gone(&key(&approval), now),
            None => Ok(()),
        }
    }

    /// Whether a request is to be shown: a new one that the query wants, and one that was shown in another state.
    fn is_news(&self, approval: &ListedApproval, now: Timestamp) -> bool {
        match self.shown.get(&key(approval)) {
            Some((_, state)) => *state != approval.state_text(now),
            None => self.query.wants(approval, now),
        }
    }

    fn write(&mut self, approvals: Vec<ListedApproval>, now: Timestamp) -> anyhow::Result<()> {
        match self.query.form {
            OutputFormat::Text => {
                let text = self.table.rows(&approvals.iter().collect::<Vec<_>>(), now);
                self.out.write_all(text.as_bytes())?;
            }
            OutputFormat::Json => {
                for approval in &approvals {
                    writeln!(self.out, "{}", approval.json_line(now)?)?;
                }
            }
        }
        self.out.flush()?;
        for approval in approvals {
            let state = approval.state_text(now);
            // What has ended is told once; it does not change again.
            if approval.state().is_final() && !self.query.all {
                self.shown.remove(&key(&approval));
            } else {
                self.shown.insert(key(&approval), (approval, state));
            }
        }
        Ok(())
    }

    /// Shows that one is gone that had not ended.
    fn gone(&mut self, key: &ApprovalKey, now: Timestamp) -> anyhow::Result<()> {
        let Some((approval, _)) = self.shown.remove(key) else { return Ok(()) };
        if !approval.state().is_final() {
            let text = match self.query.form {
                OutputFormat::Text => self.table.row(&approval, Some("Deleted"), now),
                OutputFormat::Json => format!("{}\n", approval.deleted_line()?),
            };
            self.out.write_all(text.as_bytes())?;
            self.out.flush()?;
        }
        Ok(())
    }
}

fn key(approval: &ListedApproval) -> ApprovalKey {
    (approval.namespace.clone(), approval.name.clone())
}
