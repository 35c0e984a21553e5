//! The service.

use crate::context::{BoxFuture, UpstreamRequest};
use crate::error::ProxyError;
use crate::http::Body;
use http::Response;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Takes a slot for each call.
#[derive(Clone, Debug)]
pub struct Limit<S> {
    inner: S,
    slots: Arc<Semaphore>,
}

// === impl Limit ===

impl<S> Limit<S> {
    pub(super) fn new(inner: S, slots: Arc<Semaphore>) -> Self {
        Self { inner, slots }
    }
}

impl<S> tower::Service<UpstreamRequest> for Limit<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = BoxFuture<Result<Response<Body>, ProxyError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            request.call.slot = Some(Box::new(slot));
            return Box::pin(self.inner.call(request));
        }
        let slots = self.slots.clone();
        let until =
            request.call.deadline.min(Instant::now() + *request.call.config.settings.limiter.max_wait);
        let mut inner = self.inner.clone();
        Box::pin(async move {
            match tokio::time::timeout_at(until, slots.acquire_owned()).await {
                Ok(Ok(slot)) => request.call.slot = Some(Box::new(slot)),
                Ok(Err(_)) => return Err(ProxyError::Draining),
                Err(_) => return Err(ProxyError::Overloaded { what: "limiter.max" }),
            }
            // The breaker may have opened meanwhile: what waited must not be a flood on what is ill.
            if let Some(observer) = &request.call.observer {
                observer.may_go_on()?;
            }
            inner.call(request).await
        })
    }
}
