//! The service.

use super::budget::{Budget, Terms};
use super::layer::IsFlowing;
use super::policy;
use crate::context::{AttemptObserver, BoxFuture, Call, UpstreamRequest};
use crate::error::ProxyError;
use crate::http::Body;
use crate::http::delivery::{self, Delivery, Unsent};
use crate::telemetry::{Metrics, ResultLabels};
use http::{Request, Response};
use http_body::Body as _;
use prometheus_client::metrics::counter::Counter;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Tries once more where that helps and cannot harm.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    shared: Arc<Shared>,
}

pin_project_lite::pin_project! {
    /// A call, and what is needed to make it again.
    pub struct Retrying<S: tower::Service<UpstreamRequest>> {
        #[pin]
        first: S::Future,
        again: Option<Box<Again<S>>>,
        second: Option<BoxFuture<Result<Response<Body>, ProxyError>>>,
    }
}

/// What is needed to make a call again.
struct Again<S> {
    inner: S,
    shared: Arc<Shared>,
    request: Request<Body>,
    call: Call,
    observer: Option<Arc<dyn AttemptObserver>>,
}

/// What all calls share.
pub(super) struct Shared {
    origin: Instant,
    is_flowing: IsFlowing,
    firsts: AtomicU64,
    budget: Mutex<Budget>,
    retried: Counter,
    helped: Counter,
    no_budget: Counter,
}

/// The longest answer that is kept over the wait. Longer ones are no error pages, and are passed on as they come.
const KEPT: u64 = 64 * 1024;
/// How long its body may take.
const KEPT_WITHIN: Duration = Duration::from_secs(1);

// === impl Retry ===

impl<S> Retry<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S> tower::Service<UpstreamRequest> for Retry<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Retrying<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> Self::Future {
        self.shared.firsts.fetch_add(1, Ordering::Relaxed);
        let again = Again::of(self, &request).map(Box::new);
        Retrying { first: self.inner.call(request), again, second: None }
    }
}

// === impl Again ===

impl<S: Clone> Again<S> {
    /// A copy, where the call may be repeated and its body is in memory.
    fn of(retry: &Retry<S>, UpstreamRequest { request, call }: &UpstreamRequest) -> Option<Self> {
        let settings = &call.config.settings.retry;
        let is_off = settings.budget == 0.0 && settings.per_second == 0;
        if is_off || !call.route.retries || !policy::is_for(call.lane) {
            return None;
        }
        let bytes = request.body().as_bytes()?;
        let mut copy = Request::new(Body::from(bytes));
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        let call_again = Call {
            lane: call.lane,
            route: call.route.clone(),
            is_read: call.is_read,
            config: call.config.clone(),
            credential: call.credential.clone(),
            deadline: call.deadline,
            is_hurried: call.is_hurried,
            whole_until: call.whole_until.clone(),
            // What had to be durable before the first byte is.
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: call.resends_unsent,
        };
        Some(Self {
            inner: retry.inner.clone(),
            shared: retry.shared.clone(),
            request: copy,
            call: call_again,
            observer: call.observer.clone(),
        })
    }
}

impl<S> Again<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
{
    /// Whether to try again, and after how long. Spends the budget.
    fn decide(&self, delivery: Delivery) -> Option<Duration> {
        let shared = &*self.shared;
        if !policy::may_repeat(delivery, self.call.is_read) {
            return None;
        }
        let wait = policy::wait(fastrand::f64());
        let now = Instant::now();
        if now + wait >= self.call.deadline || !self.is_flowing() {
            return None;
        }
        let settings = &self.call.config.settings.retry;
        let terms = Terms { share: settings.budget, per_second: settings.per_second };
        let firsts = shared.firsts.load(Ordering::Relaxed);
        let mut budget = shared.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if !budget.spend(now - shared.origin, firsts, terms) {
            shared.no_budget.inc();
            return None;
        }
        Some(wait)
    }

    fn is_flowing(&self) -> bool {
        (self.shared.is_flowing)(&self.call)
            && self.observer.as_ref().is_none_or(|observer| observer.may_go_on().is_ok())
    }

    /// The second attempt; `first` is what the caller gets when there is none, or no answer to it.
    async fn run(
        mut self: Box<Self>,
        wait: Duration,
        first: Result<Response<Body>, ProxyError>,
    ) -> Result<Response<Body>, ProxyError> {
        // Read to its end, so that its slot is free while we wait.
        let first = match first {
            Ok(response) => keep(response, self.call.deadline).await,
            Err(error) => Err(error),
        };
        // Its body took its time: nobody waits for what cannot be.
        if Instant::now() + wait >= self.call.deadline {
            return first;
        }
        tokio::time::sleep(wait).await;
        // Much may have happened.
        if !self.is_flowing() {
            return first;
        }
        self.shared.retried.inc();
        self.call.observer = self.observer.take();
        let second = self.inner.call(UpstreamRequest { request: self.request, call: self.call }).await;
        let of = second.as_ref().map(|response| (response.status(), response.headers()));
        match delivery::of(of) {
            Delivery::Answered(_) => {
                self.shared.helped.inc();
                second
            }
            // What Flexport said is not replaced by what we say; and where nothing was sent, what is known of the first
            // attempt says more.
            Delivery::NotSent(Unsent::Ours) => first,
            Delivery::NotSent(_) | Delivery::Ambiguous(_) if first.is_ok() && second.is_err() => first,
            Delivery::NotSent(_) | Delivery::Refused(_) | Delivery::Ambiguous(_) => second,
        }
    }
}

/// The answer with its body in memory.
async fn keep(response: Response<Body>, deadline: Instant) -> Result<Response<Body>, ProxyError> {
    let (parts, body) = response.into_parts();
    let until = deadline.min(Instant::now() + KEPT_WITHIN);
    match tokio::time::timeout_at(until, body.collect(KEPT)).await {
        Ok(Ok(whole)) => Ok(Response::from_parts(parts, Body::from(whole))),
        Ok(Err(error)) => Err(ProxyError::Cut(error.to_string())),
        Err(_) => Err(ProxyError::Cut("the body of an error did not come in time".to_owned())),
    }
}

// === impl Retrying ===

impl<S> Future for Retrying<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError> + Send + 'static,
    S::Future: Send,
{
    type Output = Result<Response<Body>, ProxyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(second) = this.second {
            return second.as_mut().poll(cx);
        }
        let first = std::task::ready!(this.first.poll(cx));
        // Dropped in any case but one, and its observer with it: the body alone holds the permits then.
        let Some(again) = this.again.take() else { return Poll::Ready(first) };
        let delivery = delivery::of(first.as_ref().map(|response| (response.status(), response.headers())));
        let is_short = first
            .as_ref()
            .map_or(true, |response| response.body().size_hint().exact().is_some_and(|size| size <= KEPT));
        let Some(wait) = is_short.then(|| again.decide(delivery)).flatten() else {
            return Poll::Ready(first);
        };
        let second = this.second.insert(Box::pin(again.run(wait, first)));
        second.as_mut().poll(cx)
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(is_flowing: IsFlowing, metrics: &Metrics) -> Self {
        let counter = |result| metrics.retries.get_or_create(&ResultLabels { result }).clone();
        Self {
            origin: Instant::now(),
            is_flowing,
            firsts: AtomicU64::new(0),
            budget: Mutex::default(),
            retried: counter("tried"),
            helped: counter("helped"),
            no_budget: counter("no_budget"),
        }
    }
}
