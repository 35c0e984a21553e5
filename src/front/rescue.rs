//! The only place where a [`ProxyError`] becomes a response, and where a panic becomes an error.

use crate::context::RequestContext;
use crate::error::ProxyError;
use crate::flexport::problem;
use crate::http::{Body, BodyError};
use http::{Request, Response};
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Makes [`Rescue`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RescueLayer;

/// Answers errors.
#[derive(Clone, Debug)]
pub struct Rescue<S>(S);

pin_project_lite::pin_project! {
    /// An answer on its way, or the panic of a layer that did not come to make one.
    pub struct Rescuing<F> {
        #[pin]
        answer: Option<F>,
        context: Arc<RequestContext>,
    }
}

// === impl RescueLayer ===

impl<S> tower::Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue(inner)
    }
}

// === impl Rescue ===

impl<S> tower::Service<Request<Body>> for Rescue<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Rescuing<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let context = RequestContext::of(&request).clone();
        // The layers below do some of their work in `call` itself.
        let called = std::panic::catch_unwind(AssertUnwindSafe(|| self.0.call(request)));
        Rescuing { answer: called.ok(), context }
    }
}

// === impl Rescuing ===

impl<F> Future for Rescuing<F>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // The panic itself has been logged by the panic hook.
        let result = match this.answer.as_pin_mut() {
            Some(answer) => match std::panic::catch_unwind(AssertUnwindSafe(|| answer.poll(cx))) {
                Ok(poll) => std::task::ready!(poll),
                Err(_) => Err(panicked()),
            },
            None => Err(panicked()),
        };
        Poll::Ready(Ok(result.unwrap_or_else(|error| answer(error, this.context))))
    }
}

fn answer(error: ProxyError, context: &RequestContext) -> Response<Body> {
    let error = precise(error);
    if let ProxyError::Internal(detail) = &error {
        tracing::error!(request_id = ?context.request_id, detail, "a request failed by a bug of ours");
    }
    problem::response(&error, &context.asked)
}

fn panicked() -> ProxyError {
    ProxyError::Internal("a panic".to_owned())
}

/// A body that was too large is the caller's, wherever it was found out.
fn precise(error: ProxyError) -> ProxyError {
    match error {
        ProxyError::RequestBody(BodyError::TooLarge(limit)) => ProxyError::BodyTooLarge { limit },
        other => other,
    }
}
