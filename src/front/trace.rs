//! The log line and the counters of each request. Stands outside everything that can refuse, so that refusals and
//! clients that left are seen too. The line holds no query values, no tokens and no bodies.

use crate::context::RequestContext;
use crate::flexport::routes::ByGroup;
use crate::http::{Body, headers};
use crate::telemetry::{GroupLabels, Metrics, RequestLabels};
use http::{HeaderMap, Request, Response};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
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
    groups: ByGroup<Handles>,
}

struct Handles {
    seconds: Histogram,
    answered: [[Counter; SOURCES.len()]; CLASSES.len()],
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const SOURCES: [&str; 5] = ["upstream", "cache", "stale", "queue", "seawall"];

pin_project_lite::pin_project! {
    /// An answer on its way.
    pub struct Tracing<F> {
        #[pin]
        answer: F,
        context: Arc<RequestContext>,
        // For the log's line, if there is one.
        path: Option<String>,
        in_flight: InFlight,
    }
}

/// Counts a request while it lives, and tells when it ended without an answer.
struct InFlight {
    shared: Arc<Shared>,
    is_answered: bool,
}

// === impl TraceLayer ===

impl TraceLayer {
    /// Counts into `metrics`, by these groups.
    pub fn new(metrics: Arc<Metrics>, groups: &[Arc<str>]) -> Self {
        let groups = ByGroup::new(groups, |group| Handles::new(&metrics, group));
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
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Tracing<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let context = RequestContext::of(&request).clone();
        let path = context.config.settings.telemetry.access_log.then(|| request.uri().path().to_owned());
        let in_flight = InFlight { shared: self.shared.clone(), is_answered: false };
        in_flight.shared.metrics.requests_in_flight.inc();
        Tracing { answer: self.inner.call(request), context, path, in_flight }
    }
}

// === impl Tracing ===

impl<F> Future for Tracing<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = std::task::ready!(this.answer.poll(cx))?;
        this.in_flight.is_answered = true;
        let context = this.context;
        let fields = response.headers_mut();
        fields.insert(headers::X_REQUEST_ID, context.request_id.clone());
        fields.insert(headers::TRACEPARENT, context.traceparent.clone());
        let source = source(fields);
        let seconds = context.arrived.elapsed().as_secs_f64();
        if let Some(handles) = this.in_flight.shared.groups.get(&context.route.group) {
            let class =
                usize::from(response.status().as_u16() / 100).saturating_sub(1).min(CLASSES.len() - 1);
            handles.seconds.observe(seconds);
            handles.answered[class][source].inc();
        }
        if let Some(path) = this.path {
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
        Poll::Ready(Ok(response))
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

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.metrics.requests_in_flight.dec();
        if !self.is_answered {
            self.shared.metrics.callers_left.inc();
        }
    }
}
