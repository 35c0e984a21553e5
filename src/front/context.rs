//! Makes the [`RequestContext`]: takes the configuration once, matches the route once. It cannot fail; what is
//! malformed is replaced (ids) or refused by a later layer that can answer (limits).

use crate::config::Snapshot;
use crate::context::RequestContext;
use crate::flexport::problem::Asked;
use crate::http::{Body, Present, headers, traceparent};
use crate::ids;
use http::{HeaderValue, Request, header};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The address that a request came from: put into its extensions by the listener.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Where the configuration is.
pub(super) type CurrentConfig = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// Makes [`Contextual`].
#[derive(Clone)]
pub struct ContextLayer(CurrentConfig);

/// Gives each request its context.
#[derive(Clone)]
pub struct Contextual<S> {
    inner: S,
    config: CurrentConfig,
}

// === impl ContextLayer ===

impl ContextLayer {
    /// Asks `config` once per request.
    pub fn new(config: CurrentConfig) -> Self {
        Self(config)
    }
}

impl<S> tower::Layer<S> for ContextLayer {
    type Service = Contextual<S>;

    fn layer(&self, inner: S) -> Contextual<S> {
        Contextual { inner, config: self.0.clone() }
    }
}

// === impl Contextual ===

impl<S: tower::Service<Request<Body>>> tower::Service<Request<Body>> for Contextual<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        let context = make(&request, (self.config)());
        request.extensions_mut().insert(Arc::new(context));
        self.inner.call(request)
    }
}

fn make(request: &Request<Body>, config: Arc<Snapshot>) -> RequestContext {
    let arrived = Instant::now();
    let fields = request.headers();
    let present = Present::of(fields);
    let route = config.routes.find(request.method(), request.uri().path()).clone();
    let request_id = present
        .has(Present::REQUEST_ID)
        .then(|| fields.get(&headers::X_REQUEST_ID))
        .flatten()
        .filter(|id| headers::is_valid_request_id(id.as_bytes()))
        .cloned()
        .unwrap_or_else(ids::request_id);
    let random = (fastrand::u64(..), fastrand::u64(..), fastrand::u64(..));
    let parent = present.has(Present::TRACE).then(|| fields.get(&headers::TRACEPARENT)).flatten();
    let traceparent = traceparent::child(parent, random);
    // What is longer than the route's own limit does not lengthen it; what is malformed is refused in `limits`.
    let wished =
        present.has(Present::OURS).then(|| fields.get(&headers::SEAWALL_TIMEOUT).and_then(timeout)).flatten();
    let timeout = wished.map_or(route.timeout, |wished| wished.min(route.timeout));
    let asked = Asked {
        public_url: config.public_url.clone(),
        target: request
            .uri()
            .path_and_query()
            .map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned()),
        version: fields
            .get(&headers::FLEXPORT_VERSION)
            .and_then(|value| value.to_str().ok())
            .map_or(Value::from(2), |text| {
                text.parse::<u32>().map_or_else(|_| Value::from(text), Value::from)
            }),
        wants_problem: fields
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|text| text.contains("application/problem+json")),
    };
    RequestContext {
        route,
        request_id,
        traceparent,
        peer: request
            .extensions()
            .get::<Peer>()
            .map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0),
        arrived,
        deadline: arrived + timeout,
        method: request.method().clone(),
        present,
        asked,
        identity: OnceLock::new(),
        config,
    }
}

/// `Seawall-Timeout`: whole seconds, at least one, or a duration such as `1500ms`.
pub(super) fn timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let span = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => *text.parse::<crate::config::raw::Span>().ok()?,
    };
    (span >= Duration::from_millis(1)).then_some(span)
}
