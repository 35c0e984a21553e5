//! Puts the queue in front of an upstream.

use super::hub::Queue;
use super::service::QueueService;
use crate::context::Upstream;
use std::sync::Arc;
use tower::Layer;

/// Makes [`QueueService`]s of one queue.
#[derive(Clone, Debug)]
pub struct QueueLayer {
    queue: Arc<Queue>,
}

// === impl QueueLayer ===

impl Queue {
    /// The layer of this queue.
    pub fn layer(self: &Arc<Self>) -> QueueLayer {
        QueueLayer { queue: self.clone() }
    }
}

impl Layer<Upstream> for QueueLayer {
    type Service = QueueService;

    fn layer(&self, upstream: Upstream) -> QueueService {
        QueueService::new(self.queue.clone(), upstream)
    }
}
