//! Puts the cache before the queue.

use super::Cache;
use super::service::CacheService;
use crate::context::Upstream;
use std::sync::Arc;
use tower::Layer;

/// Makes a [`CacheService`]. The inner service takes what is not for the cache; reads that are go to `upstream`
/// directly, since a read never waits in the queue.
#[derive(Clone)]
pub struct CacheLayer {
    cache: Arc<Cache>,
    upstream: Upstream,
}

// === impl CacheLayer ===

impl CacheLayer {
    /// A layer over one cache.
    pub fn new(cache: Arc<Cache>, upstream: Upstream) -> Self {
        Self { cache, upstream }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.cache.clone(), self.upstream.clone())
    }
}
