//! The connections of the threads that serve calls.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    connection::StoreConnection,
    error::{StoreError, StoreFault},
    reply::malformed_reply,
    state::{ConnectedStore, StoreInner},
};

/// The longest time in which a connection is made.
const OPENING: Duration = Duration::from_secs(2);
/// The pause after a connection could not be made.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// A worker's connection, made by a task of its own so that a call with little time does not end the attempt.
#[derive(Clone)]
struct WorkerConnection {
    store: u64,
    generation: u64,
    /// When the attempt was made.
    since: Instant,
    result: watch::Receiver<Option<Result<StoreConnection, StoreError>>>,
}

impl WorkerConnection {
    /// Returns whether another attempt is due: the last one failed some time ago, or the connection has ended.
    fn is_over(&self) -> bool {
        match &*self.result.borrow() {
            Some(Ok(connection)) => connection.has_ended(),
            Some(Err(_)) => self.since.elapsed() >= RETRY_AFTER,
            None => false,
        }
    }
}

thread_local! {
    /// This thread's connections.
    static WORKER_CONNECTIONS: RefCell<Vec<WorkerConnection>> = const { RefCell::new(Vec::new()) };
}

impl StoreInner {
    /// This thread's connection.
    pub(crate) async fn connection(self: &Arc<Self>, up: &Arc<ConnectedStore>) -> Result<StoreConnection, StoreError> {
        let mut worker = WORKER_CONNECTIONS.with_borrow_mut(|all| {
            all.retain(|worker| worker.store != self.id || (worker.generation == up.generation && !worker.is_over()));
            if let Some(known) = all.iter().find(|worker| worker.store == self.id) {
                return known.clone();
            }
            let (sender, result) = watch::channel(None);
            let task = Arc::clone(up);
            tokio::spawn(async move {
                let result = task.connector.open(&task.address, OPENING).await.and_then(|connection| {
                    let same = connection.run_id == task.connection.run_id;
                    let error = || {
                        StoreError::new(StoreFault::Reset, format!("{} was started again, or is another server", task.address))
                    };
                    same.then_some(connection).ok_or_else(error)
                });
                drop(task);
                sender.send_replace(Some(result));
                // Kept until nobody asks any more.
                sender.closed().await;
            });
            let worker = WorkerConnection { store: self.id, generation: up.generation, since: Instant::now(), result };
            all.push(worker.clone());
            worker
        });
        if let Some(result) = &*worker.result.borrow() {
            return result.clone();
        }
        let done = worker.result.wait_for(Option::is_some).await;
        done.ok().and_then(|result| result.clone()).unwrap_or_else(|| Err(malformed_reply(&up.address)))
    }
}

/// Removes a connection, so that the next call makes another.
pub(crate) fn discard(connection: &StoreConnection) {
    let is_it = |worker: &WorkerConnection| matches!(&*worker.result.borrow(), Some(Ok(known)) if known.is_same_as(connection));
    WORKER_CONNECTIONS.with_borrow_mut(|all| all.retain(|worker| !is_it(worker)));
}
