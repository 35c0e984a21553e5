//! The breaker as a layer around the rest of the way to Flexport.

use super::registry::Breakers;
use super::service::Admission;
use std::sync::Arc;

/// Puts admission before a service.
#[derive(Clone, Debug)]
pub struct Layer {
    breakers: Arc<Breakers>,
}

// === impl Layer ===

impl Layer {
    /// Asks these breakers.
    pub fn new(breakers: Arc<Breakers>) -> Self {
        Self { breakers }
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission::new(self.breakers.clone(), inner)
    }
}
