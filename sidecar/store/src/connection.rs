//! An open connection to the store.

use std::{fmt, sync::Arc};

use redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};
use tokio::{sync::watch, task::JoinHandle};

/// A connection; closes when it and its clones are dropped, and `commands` with it. Its driver is a task of the runtime that
/// opened it.
#[derive(Clone)]
pub struct StoreConnection {
    /// Takes commands. Errors of the server are values among its answers.
    pub commands: MultiplexedConnection,
    /// Names the run of the server: another one when it was restarted, or is another server.
    pub run_id: Arc<str>,
    pub(crate) driver: Arc<Driver>,
}

impl StoreConnection {
    /// Returns whether both are clones of one connection.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }

    /// Sends a command and waits for its answer, for as long as the connection lasts.
    ///
    /// # Errors
    /// The connection ends, or the server answers with an error.
    pub async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        self.commands.clone().send_packed_command(cmd).await.and_then(Value::extract_error)
    }

    /// Sends commands at once and waits for all answers.
    ///
    /// # Errors
    /// The connection ends, or the server answers one with an error.
    pub async fn send_all(&self, cmds: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut pipeline = Pipeline::with_capacity(cmds.len());
        for cmd in cmds {
            pipeline.add_command(cmd.clone());
        }
        let answers = self.commands.clone().send_packed_commands(&pipeline, 0, cmds.len()).await?;
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// Returns whether the other side has ended the connection.
    pub fn has_ended(&self) -> bool {
        self.driver.alive.has_changed().is_err()
    }

    /// Waits until the other side has ended it.
    pub async fn ended(&self) {
        let mut alive = self.driver.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

impl fmt::Debug for StoreConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConnection").field("run_id", &self.run_id).finish_non_exhaustive()
    }
}

/// The task that moves the bytes of a connection. It would wait for all answers, so it is ended when this is dropped.
pub(crate) struct Driver {
    task: JoinHandle<()>,
    /// Its sender is the task's.
    alive: watch::Receiver<()>,
}

impl Driver {
    pub(crate) fn start(moves: impl Future<Output = ()> + Send + 'static) -> Self {
        let (sender, alive) = watch::channel(());
        let task = tokio::spawn(async move {
            moves.await;
            drop(sender);
        });
        Self { task, alive }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
