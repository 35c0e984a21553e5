//! THE order of the layers.
//!
//! ```text
//! listener → context → trace → rescue (with catch-panic) → limits → auth → [/_seawall] → cache → queue → Upstream
//! Upstream = links → breaker → retry → limiter (gate, slot) → attempt → client
//! ```

use crate::breaker::{self, Breakers};
use crate::cache::{Cache, CacheLayer};
use crate::context::{Call, Inner, RequestContext, Upstream, UpstreamRequest};
use crate::error::ProxyError;
use crate::flexport::links::Bases;
use crate::front::{AuthLayer, ContextLayer, LimitsLayer, RescueLayer, TraceLayer};
use crate::http::Body;
use crate::limit::LimitLayer;
use crate::queue::QueueLayer;
use crate::retry::RetryLayer;
use crate::server::LocalLayer;
use crate::upstream::{Attempt, LinksLayer};
use http::{Request, Response};
use std::convert::Infallible;
use std::sync::Arc;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceBuilder};

/// The way to Flexport. What makes the attempts is [`Attempt`]; tests put something else in its place.
pub fn upstream<A>(
    bases: Option<Arc<Bases>>,
    breakers: Arc<Breakers>,
    retry: RetryLayer,
    limit: LimitLayer,
    attempt: A,
) -> Upstream
where
    A: Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
    A: Clone + Send + Sync + 'static,
    A::Future: Send + 'static,
{
    Upstream::new(
        ServiceBuilder::new()
            // Outermost, on the way in: what cache, tickets and callers hold is rewritten once.
            .layer(LinksLayer::new(bases))
            // Fails fast before waiting for a slot; its permits live until the upstream's body has ended.
            .layer(breaker::Layer::new(breakers))
            // Inside the breaker, which is asked once a call and told of each attempt; outside the limiter, since who waits
            // for a second attempt needs no slot, and passes the gate again.
            .layer(retry)
            // Inside the breaker, since an open one must not use slots. The rate gate is asked before a slot is taken,
            // since who waits there would hold what other credentials could use; the attempt asks it again.
            .layer(limit)
            // Time limits, credentials, and the durable step right before the first byte.
            .service(attempt),
    )
}

/// The way to Flexport in the `strict` profile: nothing but the attempt.
pub fn strict_upstream(attempt: Attempt) -> Upstream {
    Upstream::new(attempt)
}

/// What stands under the cache: the queue, or the upstream alone.
pub fn writes(queue: Option<QueueLayer>, upstream: Upstream) -> Inner {
    match queue {
        Some(layer) => BoxCloneSyncService::new(layer.layer(upstream)),
        None => BoxCloneSyncService::new(tower::service_fn(move |request: Request<Body>| {
            let call = Call::live(RequestContext::of(&request));
            upstream.clone().call(UpstreamRequest { request, call })
        })),
    }
}

/// What the data listener serves.
#[expect(clippy::too_many_arguments, reason = "each is one line of the stack below; called in one place")]
pub fn front(
    context: ContextLayer,
    trace: TraceLayer,
    limits: LimitsLayer,
    auth: AuthLayer,
    local: LocalLayer,
    cache: Arc<Cache>,
    upstream: Upstream,
    writes: Inner,
) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            // Infallible: takes the configuration once and matches the route once.
            .layer(context)
            // Outside everything that can refuse, so that refusals and clients that left are seen.
            .layer(trace)
            // The only place where an error, or a panic, becomes a response.
            .layer(RescueLayer)
            // Cheapest refusals first.
            .layer(limits)
            // Before the cache, since a hit must not leak.
            .layer(auth)
            // Our own paths: they need an identity and nothing of Flexport.
            .layer(local)
            // Outside queue and breaker: hits cost no permit, and each inner failure arrives as a value that a stale
            // copy can absorb.
            .layer(CacheLayer::new(cache, upstream))
            .service(writes),
    )
}

#[cfg(test)]
mod tests;
