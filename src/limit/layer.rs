//! The layer.

use super::Limit;
use super::service::Shared;
use crate::clock::Clock;
use crate::config::raw;
use crate::telemetry::Metrics;
use std::sync::Arc;

/// Makes [`Limit`]s that share their gates and slots.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    shared: Arc<Shared>,
}

// === impl LimitLayer ===

impl LimitLayer {
    /// For an upstream with these groups. What depends on the configuration otherwise is read for each call.
    pub fn new(settings: &raw::Limiter, groups: &[Arc<str>], clock: Clock, metrics: &Metrics) -> Self {
        Self { shared: Shared::new(settings, groups, clock, metrics) }
    }
}

impl<S> tower::Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit::new(inner, self.shared.clone())
    }
}
