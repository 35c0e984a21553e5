//! Background tasks: named, counted, cancellable, waited for.

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks. Cheap to clone; clones own the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

// === impl Tasks ===

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task to its own end; a panic is logged with the task's name.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guarded = async move {
            if tokio::task::spawn(future).await.is_err_and(|error| error.is_panic()) {
                tracing::error!(task = name, "a background task panicked; this is a bug");
            }
        };
        self.tracker.spawn(guarded);
    }

    /// Cancelled when the owner stops.
    pub fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Asks all to stop and waits for them, at most `limit`. Tells whether all stopped.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }

    /// Waits until none runs, at most `limit`, without asking any to stop. Tells whether all ended.
    pub async fn idle(&self, limit: Duration) -> bool {
        self.tracker.close();
        let is_idle = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        self.tracker.reopen();
        is_idle
    }
}
