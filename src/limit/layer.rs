//! The layer.

use super::Limit;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Makes [`Limit`]s that share one set of slots.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    slots: Arc<Semaphore>,
    max_wait: Duration,
}

// === impl LimitLayer ===

impl LimitLayer {
    /// `max` calls at once, each waiting for at most `max_wait`.
    pub fn new(max: u32, max_wait: Duration) -> Self {
        Self { slots: Arc::new(Semaphore::new(max as usize)), max_wait }
    }
}

impl<S> tower::Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit::new(inner, self.slots.clone(), self.max_wait)
    }
}
