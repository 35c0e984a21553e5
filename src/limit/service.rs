//! The service.

use crate::context::{BoxFuture, UpstreamRequest};
use crate::error::ProxyError;
use crate::http::Body;
use http::Response;
use std::future::Future;
use std::pin::Pin;
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

pin_project_lite::pin_project! {
    /// A call with its slot, or on its way to one. What need not wait is not boxed.
    #[project = Projected]
    pub enum Limited<F> {
        /// There was a slot.
        AtOnce { #[pin] inner: F },
        /// There was none.
        Waiting { inner: BoxFuture<Result<Response<Body>, ProxyError>> },
    }
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
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            request.call.slot = Some(slot);
            return Limited::AtOnce { inner: self.inner.call(request) };
        }
        let slots = self.slots.clone();
        let until =
            request.call.deadline.min(Instant::now() + *request.call.config.settings.limiter.max_wait);
        let mut inner = self.inner.clone();
        let waited = async move {
            match tokio::time::timeout_at(until, slots.acquire_owned()).await {
                Ok(Ok(slot)) => request.call.slot = Some(slot),
                Ok(Err(_)) => return Err(ProxyError::Draining),
                Err(_) => return Err(ProxyError::Overloaded { what: "limiter.max" }),
            }
            // The breaker may have opened meanwhile: what waited must not be a flood on what is ill.
            if let Some(observer) = &request.call.observer {
                observer.may_go_on()?;
            }
            inner.call(request).await
        };
        Limited::Waiting { inner: Box::pin(waited) }
    }
}

// === impl Limited ===

impl<F> Future for Limited<F>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Projected::AtOnce { inner } => inner.poll(cx),
            Projected::Waiting { inner } => inner.as_mut().poll(cx),
        }
    }
}
