//! The end of a listener: told once, waited for.

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Begins once; connections end in good order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    connections: TaskTracker,
}

// === impl Drain ===

impl Drain {
    /// Not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops accepting, and asks connections to end after what is under way.
    pub fn begin(&self) {
        self.begun.cancel();
        self.connections.close();
    }

    /// Waits until it begins.
    pub async fn began(&self) {
        self.begun.cancelled().await;
    }

    /// Runs a connection that [`Drain::ended`] waits for.
    pub(super) fn track<F>(&self, connection: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.connections.spawn(connection);
    }

    /// Waits until all connections have ended, at most `limit`; tells how many are left.
    pub async fn ended(&self, limit: Duration) -> usize {
        let _ = tokio::time::timeout(limit, self.connections.wait()).await;
        self.connections.len()
    }
}
