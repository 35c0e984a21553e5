//! The cheapest refusals: shutting down, ambiguous framing, methods and targets that are not for a proxy of this
//! kind, bodies above the cap, malformed fields of ours.

use super::context::timeout;
use crate::context::RequestContext;
use crate::error::ProxyError;
use crate::http::decided::Decided;
use crate::http::{Body, BodyError, Present, headers};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Makes [`Limits`].
#[derive(Clone, Debug)]
pub struct LimitsLayer {
    is_draining: Arc<AtomicBool>,
}

/// Refuses what no later layer should have to look at.
#[derive(Clone, Debug)]
pub struct Limits<S> {
    inner: S,
    is_draining: Arc<AtomicBool>,
}

/// A request's body with its cap and its idle limit.
struct Limited {
    inner: Body,
    left: u64,
    cap: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

// === impl LimitsLayer ===

impl LimitsLayer {
    /// Refuses everything once `is_draining` is set.
    pub fn new(is_draining: Arc<AtomicBool>) -> Self {
        Self { is_draining }
    }
}

impl<S> tower::Layer<S> for LimitsLayer {
    type Service = Limits<S>;

    fn layer(&self, inner: S) -> Limits<S> {
        Limits { inner, is_draining: self.is_draining.clone() }
    }
}

// === impl Limits ===

impl<S> tower::Service<Request<Body>> for Limits<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let context = RequestContext::of(&request).clone();
        let server = &context.config.settings.server;
        if let Err(error) = self.check(&request, context.present, server.max_body.0) {
            return Decided::now(Err(error));
        }
        // Before any layer adds fields of its own: a nominated field is the client's to lose, not ours.
        let fields = request.headers_mut();
        if context.present.has(Present::HOP_BY_HOP) {
            headers::strip_hop_by_hop(fields);
        }
        fields.insert(headers::X_REQUEST_ID, context.request_id.clone());
        fields.insert(headers::TRACEPARENT, context.traceparent.clone());
        if !request.body().is_end_stream() {
            let (cap, idle) = (server.max_body.0, *server.body_idle_timeout);
            let body = std::mem::take(request.body_mut());
            let limited = Limited { inner: body, left: cap, cap, idle, timer: None, is_waiting: false };
            *request.body_mut() = Body::new(limited);
        }
        Decided::later(self.inner.call(request))
    }
}

impl<S> Limits<S> {
    fn check(&self, request: &Request<Body>, present: Present, max_body: u64) -> Result<(), ProxyError> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(ProxyError::Draining);
        }
        let bad = |field, message: &str| Err(ProxyError::BadRequest { field, message: message.to_owned() });
        if request.method() == Method::CONNECT || request.method() == Method::TRACE {
            return bad("method", "CONNECT and TRACE are not served here");
        }
        let is_asterisk = request.uri().path() == "*" && request.method() == Method::OPTIONS;
        if !request.uri().path().starts_with('/') && !is_asterisk {
            return bad("target", "the request target must be a path, such as /shipments");
        }
        let fields = request.headers();
        if present.has(Present::FRAMING) {
            headers::validate_request(request.version(), fields, request.uri())?;
        } else {
            headers::validate_host(request.version(), fields, request.uri())?;
        }
        if present.has(Present::EXPECT)
            && fields
                .get(header::EXPECT)
                .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        {
            return bad("Expect", "only 100-continue is understood");
        }
        if present.has(Present::OURS)
            && fields.get(&headers::SEAWALL_TIMEOUT).is_some_and(|value| timeout(value).is_none())
        {
            return bad("Seawall-Timeout", "send whole seconds such as 5, or a duration such as 1500ms");
        }
        if request.body().size_hint().exact().is_some_and(|length| length > max_body) {
            return Err(ProxyError::BodyTooLarge { limit: max_body });
        }
        Ok(())
    }
}

// === impl Limited ===

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.is_waiting = false;
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                match this.left.checked_sub(length) {
                    Some(left) => this.left = left,
                    None => return Poll::Ready(Some(Err(BodyError::TooLarge(this.cap)))),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                let deadline = Instant::now() + this.idle;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                if !this.is_waiting {
                    timer.as_mut().reset(deadline);
                    this.is_waiting = true;
                }
                std::task::ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyError::Idle(this.idle))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
