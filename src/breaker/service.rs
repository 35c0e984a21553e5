//! Admission: asks the breakers once per logical call and hands the permits on as the call's observer.
//!
//! It is always ready and polls the inner service only for a call that was admitted, so an open breaker costs
//! nothing behind it. A refusal is answered at once, but for one: what is more than a ramp takes waits for its turn, as
//! long as a call may wait for a slot, when a caller waits for it; background calls come again by themselves. When
//! something behind it refuses the call or the caller leaves, the observer is dropped with the call, which gives the
//! permits back as neutral.

use super::registry::Breakers;
use crate::context::{BoxFuture, Lane, UpstreamRequest};
use crate::error::ProxyError;
use crate::http::Body;
use http::Response;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::Service;

/// The service.
#[derive(Clone, Debug)]
pub struct Admission<S> {
    breakers: Arc<Breakers>,
    inner: S,
}

pin_project! {
    /// A call that was admitted or refused.
    pub struct Admitted<S: Service<UpstreamRequest>> {
        #[pin]
        inner: Option<S::Future>,
        waiting: Option<BoxFuture<Result<Response<Body>, ProxyError>>>,
        // Taken by the first poll.
        error: Option<ProxyError>,
    }
}

// === impl Admission ===

impl<S> Admission<S> {
    pub(super) fn new(breakers: Arc<Breakers>, inner: S) -> Self {
        Self { breakers, inner }
    }
}

impl<S> Service<UpstreamRequest> for Admission<S>
where
    S: Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Admitted<S>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        match self.breakers.admit(&request.call) {
            Ok(permits) => {
                request.call.observer = Some(Arc::new(permits));
                // What stands below is always ready (see `Upstream`).
                Admitted { inner: Some(self.inner.call(request)), waiting: None, error: None }
            }
            Err(ProxyError::Overloaded { .. })
                if matches!(request.call.lane, Lane::LiveRead | Lane::LiveWrite) =>
            {
                let (breakers, mut inner) = (self.breakers.clone(), self.inner.clone());
                let waiting = async move {
                    let permits = breakers.admit_in_turn(&request.call).await?;
                    request.call.observer = Some(Arc::new(permits));
                    inner.call(request).await
                };
                Admitted { inner: None, waiting: Some(Box::pin(waiting)), error: None }
            }
            Err(error) => Admitted { inner: None, waiting: None, error: Some(error) },
        }
    }
}

// === impl Admitted ===

impl<S> Future for Admitted<S>
where
    S: Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
{
    type Output = Result<Response<Body>, ProxyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(waiting) = this.waiting {
            return waiting.as_mut().poll(cx);
        }
        match this.inner.as_pin_mut() {
            Some(inner) => inner.poll(cx),
            None => Poll::Ready(Err(this.error.take().expect("a future is not polled after it is ready"))),
        }
    }
}
