//! The layer.

use super::Retry;
use super::service::Shared;
use crate::context::Call;
use crate::telemetry::Metrics;
use std::sync::Arc;

/// Whether the breakers let traffic of this call's scope flow: closed or ramping.
pub type IsFlowing = Arc<dyn Fn(&Call) -> bool + Send + Sync>;

/// Makes [`Retry`]s that share one budget.
#[derive(Clone)]
pub struct RetryLayer {
    shared: Arc<Shared>,
}

// === impl RetryLayer ===

impl RetryLayer {
    /// A layer with a full budget.
    pub fn new(is_flowing: IsFlowing, metrics: &Metrics) -> Self {
        Self { shared: Arc::new(Shared::new(is_flowing, metrics)) }
    }
}

impl<S> tower::Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry::new(inner, self.shared.clone())
    }
}
