//! Writes the book down, one version after another.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use toolweir_approvals::KeptBook;

use super::{Approvals, NotKept, kept_file::KeptFile};

/// The time that a write may take. Beyond it, the call that waits for it is denied.
const WRITE: Duration = Duration::from_secs(5);
/// The time after which a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest time between two looks at the clock, which somebody may set.
const LOOK: Duration = Duration::from_secs(30);
/// The shortest.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

impl Approvals {
    /// Waits until a version is on disk.
    pub(super) async fn kept(&self, version: u64) -> Result<(), NotKept> {
        let mut saved = self.saved.subscribe();
        let failures = saved.borrow().failures;
        if saved.borrow().version >= version {
            return Ok(());
        }
        self.unsaved.notify_one();
        let done = timeout(WRITE, saved.wait_for(|saved| saved.version >= version || saved.failures > failures)).await;
        match done {
            Ok(Ok(saved)) if saved.version >= version => Ok(()),
            _ => Err(NotKept),
        }
    }

    /// Writes each change and ends what has ended, for as long as it runs.
    pub async fn keep(self: Arc<Self>) {
        let mut rest = self.until_next_end();
        loop {
            tokio::select! {
                () = self.unsaved.notified() => {}
                () = sleep(rest) => drop(self.edit_if_stepped(|book| book.expire(SystemTime::now()))),
            }
            let is_saved = self.save().await;
            rest = self.until_next_end();
            if !is_saved {
                rest = rest.min(AGAIN);
            }
        }
    }

    fn until_next_end(&self) -> Duration {
        let end = self.lock().book.next_end();
        let left = end.map_or(LOOK, |end| end.duration_since(SystemTime::now()).unwrap_or_default());
        left.clamp(SHORTEST_LOOK, LOOK)
    }

    /// Writes what is not on disk yet. Returns false where that fails.
    async fn save(&self) -> bool {
        let Some(file) = self.file.get() else { return true };
        loop {
            let (untold, kept) = {
                let mut state = self.lock();
                if state.version == self.saved.borrow().version {
                    return true;
                }
                (state.take_untold(), state.book.kept())
            };
            if self.write(file, kept).await {
                self.tell(untold);
            } else {
                let mut state = self.lock();
                let since = std::mem::replace(&mut state.untold, untold.changes);
                state.untold.extend(since);
                drop(state);
                self.saved.send_modify(|saved| saved.failures += 1);
                return false;
            }
        }
    }

    async fn write(&self, file: &KeptFile, kept: KeptBook) -> bool {
        let file = file.clone();
        let written = spawn_blocking(move || file.write(&kept, SystemTime::now())).await;
        match written {
            Ok(written) => self.metrics.files.record_result("approvals", "write", written).is_some(),
            Err(error) => self.metrics.files.record_result::<(), _>("approvals", "write", Err(error)).is_some(),
        }
    }

    /// Waits until all is on disk, if that can be, and leaves the file to others: the sidecar ends.
    pub async fn close(&self) {
        let version = self.lock().version;
        let _ = self.kept(version).await;
        if let Some(file) = self.file.get().cloned() {
            // Who writes has it locked until then.
            let _ = spawn_blocking(move || file.release()).await;
        }
    }
}
