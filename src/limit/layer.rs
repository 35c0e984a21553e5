//! The layer.

use super::Limit;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Makes [`Limit`]s that share one set of slots.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    slots: Arc<Semaphore>,
}

// === impl LimitLayer ===

impl LimitLayer {
    /// `max` calls at once.
    pub fn new(max: u32) -> Self {
        Self { slots: Arc::new(Semaphore::new(max as usize)) }
    }
}

impl<S> tower::Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit::new(inner, self.slots.clone())
    }
}
