//! A thread that does one job after another.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::evicting_semaphore::NoCapacity;

type WorkerJob = Box<dyn FnOnce() + Send>;

/// A thread that runs one job after another, so that only one large object is in memory at a time, and always in the same part of
/// the heap. The thread starts with the first job.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    waiting: usize,
    jobs: OnceLock<mpsc::Sender<WorkerJob>>,
}

impl Worker {
    /// Creates a worker for which at most `waiting` jobs wait.
    pub fn new(name: &'static str, waiting: usize) -> Self {
        Self { name, waiting, jobs: OnceLock::new() }
    }

    fn jobs(&self) -> &mpsc::Sender<WorkerJob> {
        self.jobs.get_or_init(|| {
            let (sender, mut jobs) = mpsc::channel::<WorkerJob>(self.waiting);
            let work = move || {
                while let Some(job) = jobs.blocking_recv() {
                    // Whoever asked sees that there is no answer.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a job panicked; that is a defect of the operator");
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name(self.name.to_owned()).spawn(work) {
                tracing::error!(%error, thread = self.name, "a thread cannot be started");
            }
            sender
        })
    }

    /// Runs a job on the thread and returns what it returns. A job whose caller is gone is not run.
    ///
    /// # Errors
    /// Too many jobs wait already, the job did not begin within `patience`, or it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoCapacity> {
        let (began, begins) = oneshot::channel();
        let (done, mut answer) = oneshot::channel();
        let job = Box::new(move || {
            if began.send(()).is_ok() {
                let _ = done.send(job());
            }
        });
        self.jobs().try_send(job).map_err(|_| NoCapacity)?;
        tokio::time::timeout(patience, begins).await.map_err(|_| NoCapacity)?.map_err(|_| NoCapacity)?;
        (&mut answer).await.map_err(|_| NoCapacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_does_one_thing_at_a_time_and_outlives_a_panic() {
        let worker = Worker::new("test", 4);
        let long = Duration::from_secs(30);
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let slow = worker.run(long, move || gate.recv().is_ok());
        let behind = worker.run(Duration::from_millis(20), || ());
        let (slow, behind) = tokio::join!(slow, async {
            let behind = behind.await;
            go.send(()).unwrap();
            behind
        });
        assert_eq!((slow, behind), (Ok(true), Err(NoCapacity)), "what did not begin in time is given up");
        assert_eq!(worker.run(long, || { assert!(std::hint::black_box(false)) }).await, Err(NoCapacity));
        assert_eq!(worker.run(long, || 7).await, Ok(7));
    }
}
