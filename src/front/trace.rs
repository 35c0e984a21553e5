//! The log line and the counters of each request. Stands outside everything that can refuse, so that refusals and
//! clients that left are seen too. The line holds no query values, no tokens and no bodies.

use crate::context::{BoxFuture, RequestContext};
use crate::http::{Body, headers};
use crate::telemetry::{GroupLabels, Metrics, RequestLabels};
use http::{HeaderMap, Request, Response};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Makes [`Trace`].
#[derive(Clone)]
pub struct TraceLayer(Arc<Shared>);

/// Logs and counts.
#[derive(Clone)]
pub struct Trace<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Arc<Metrics>,
    groups: HashMap<Arc<str>, Handles>,
}

struct Handles {
    seconds: Histogram,
    answered: [[Counter; SOURCES.len()]; CLASSES.len()],
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const SOURCES: [&str; 5] = ["upstream", "cache", "stale", "queue", "seawall"];

/// Counts a request while it lives, and tells when it ended without an answer.
struct InFlight {
    metrics: Arc<Metrics>,
    is_answered: bool,
}

// === impl TraceLayer ===

impl TraceLayer {
    /// Counts into `metrics`, by these groups.
    pub fn new(metrics: Arc<Metrics>, groups: &[Arc<str>]) -> Self {
        let groups = groups.iter().map(|group| (group.clone(), Handles::new(&metrics, group))).collect();
        Self(Arc::new(Shared { metrics, groups }))
    }
}

impl<S> tower::Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, shared: self.0.clone() }
    }
}

// === impl Trace ===

impl<S> tower::Service<Request<Body>> for Trace<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let context = RequestContext::of(&request).clone();
        let path = context.config.settings.telemetry.access_log.then(|| request.uri().path().to_owned());
        let shared = self.shared.clone();
        let mut in_flight = InFlight::new(shared.metrics.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            in_flight.answered();
            let fields = response.headers_mut();
            fields.insert(headers::X_REQUEST_ID.clone(), context.request_id.clone());
            fields.insert(headers::TRACEPARENT.clone(), context.traceparent.clone());
            let source = source(fields);
            let seconds = context.arrived.elapsed().as_secs_f64();
            if let Some(handles) = shared.groups.get(&context.route.group) {
                let class =
                    usize::from(response.status().as_u16() / 100).saturating_sub(1).min(CLASSES.len() - 1);
                handles.seconds.observe(seconds);
                handles.answered[class][source].inc();
            }
            if let Some(path) = path {
                tracing::info!(
                    target: "seawall::access",
                    method = %context.method,
                    path,
                    status = response.status().as_u16(),
                    source = SOURCES[source],
                    ms = (seconds * 1000.0).round(),
                    request_id = context.request_id.to_str().unwrap_or_default(),
                    caller = context.identity.get().and_then(|identity| identity.caller.as_deref()).unwrap_or("-"),
                    "request"
                );
            }
            Ok(response)
        })
    }
}

fn source(fields: &HeaderMap) -> usize {
    let Some(value) = fields.get(&headers::SEAWALL_SOURCE) else { return 0 };
    SOURCES.iter().position(|source| value == source).unwrap_or(0)
}

// === impl Handles ===

impl Handles {
    fn new(metrics: &Metrics, group: &Arc<str>) -> Self {
        let labels = |class, source| RequestLabels { group: group.to_string(), class, source };
        Self {
            seconds: metrics.request_seconds.get_or_create(&GroupLabels { group: group.to_string() }).clone(),
            answered: CLASSES.map(|class| {
                SOURCES.map(|source| metrics.requests.get_or_create(&labels(class, source)).clone())
            }),
        }
    }
}

// === impl InFlight ===

impl InFlight {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.requests_in_flight.inc();
        Self { metrics, is_answered: false }
    }

    /// A method, so that a task that calls it owns the whole guard and not a copy of its flag.
    fn answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.requests_in_flight.dec();
        if !self.is_answered {
            self.metrics.callers_left.inc();
        }
    }
}
