//! The admin listener: probes, metrics, and the operators' API under `/api/v1`.
//!
//! JSON with RFC 9457 errors; a bearer token where one is configured (a listener that is not on loopback does not
//! start without); changes are refused when a browser says that they come from another site; each change leaves a
//! line in the audit log with actor, reason, before and after.

mod auth;
mod breakers;
mod cache;
mod config;
mod health;
mod partitions;
mod problem;
mod status;
mod store;
mod warm;
mod writes;

use crate::breaker::Breakers;
use crate::cache::{Cache, Warmer};
use crate::clock::Clock;
use crate::config::Live;
use crate::front::Identifier;
use crate::http::{Body, BodyError};
use crate::queue::Queue;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::upstream::StatusPage;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use http::{Request, Response};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};
use writes::Deed;

/// What the admin API looks at and acts on.
#[derive(Clone)]
pub struct Admin {
    /// The configuration.
    pub config: Arc<Live>,
    /// The breakers.
    pub breakers: Arc<Breakers>,
    /// What Flexport's status page says.
    pub status_page: StatusPage,
    /// The cache.
    pub cache: Arc<Cache>,
    /// Warms it.
    pub warmer: Arc<Warmer>,
    /// Who is who.
    pub identifier: Arc<Identifier>,
    /// The write queue.
    pub queue: Option<Arc<Queue>>,
    /// The store under it, when one could be had.
    pub store: Option<Arc<dyn Store>>,
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// Set when the listeners are up.
    pub is_up: Arc<AtomicBool>,
    /// Set when shutting down.
    pub is_draining: Arc<AtomicBool>,
    /// Wall time.
    pub clock: Clock,
    /// When the process started.
    pub started_at: jiff::Timestamp,
}

/// The service of the admin listener.
pub fn service(admin: Admin) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
    let guarded = Router::new()
        .route("/api/v1/status", get(status::get))
        .route("/api/v1/breakers", get(breakers::list))
        .route("/api/v1/breakers/{scope}", get(breakers::get))
        .route("/api/v1/breakers/{scope}/override", put(breakers::set).delete(breakers::clear))
        .route("/api/v1/cache", get(cache::stats))
        .route("/api/v1/cache/entries", get(cache::entries))
        .route("/api/v1/cache/purge", post(cache::purge))
        .route("/api/v1/cache/coverage", get(cache::coverage))
        .route(
            "/api/v1/cache/warm",
            get(warm::get)
                .post(warm::start)
                .delete(warm::cancel)
                .layer(DefaultBodyLimit::max(warm::MAX_BODY)),
        )
        .route("/api/v1/writes", get(writes::list))
        .route("/api/v1/writes/{id}", get(writes::get))
        .route("/api/v1/writes/{id}/cancel", post(|a, id, body| writes::act(Deed::Cancel, a, id, body)))
        .route("/api/v1/writes/{id}/hold", post(|a, id, body| writes::act(Deed::Hold, a, id, body)))
        .route("/api/v1/writes/{id}/release", post(|a, id, body| writes::act(Deed::Release, a, id, body)))
        .route("/api/v1/writes/{id}/retry", post(|a, id, body| writes::act(Deed::Retry, a, id, body)))
        .route("/api/v1/writes/{id}/resolve", post(writes::resolve))
        .route("/api/v1/store/rotate", post(writes::rotate))
        .route("/api/v1/store/verify", get(store::verify))
        .route("/api/v1/store/backup", post(store::backup))
        .route("/api/v1/config", get(config::get))
        .route("/api/v1/config/reload", post(config::reload))
        .route("/api/v1/log-level", put(config::log_level))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(admin.clone(), auth::require_token));
    let health = Router::new()
        .route("/livez", get(health::live))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .layer(axum::middleware::from_fn_with_state(admin.clone(), auth::require_token_unless_open));
    let router: Router =
        health.merge(guarded).layer(axum::middleware::from_fn(auth::refuse_cross_site)).with_state(admin);
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut router = router.clone();
        async move {
            let response =
                router.as_service().ready().await?.call(request.map(axum::body::Body::new)).await?;
            let response = response.map(|body| {
                Body::new(http_body_util::BodyExt::map_err(body, |error| BodyError::Cut(error.to_string())))
            });
            Ok::<_, Infallible>(response)
        }
    });
    BoxCloneSyncService::new(service)
}
