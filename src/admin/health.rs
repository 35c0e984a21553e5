//! `/livez`, `/readyz`, `/metrics`.

use super::Admin;
use crate::telemetry::CONTENT_TYPE;
use axum::extract::State;
use axum::response::IntoResponse;
use http::{StatusCode, header};
use std::sync::atomic::Ordering;

/// The process works: it could answer.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Whether it can take traffic: listeners up, store writable, not draining. Flexport's health is no part of it: to
/// be useful in an outage is the point.
pub(super) async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let mut reasons = Vec::new();
    if !admin.is_up.load(Ordering::Relaxed) {
        reasons.push("the listeners are not up yet".to_owned());
    }
    if admin.is_draining.load(Ordering::Relaxed) {
        reasons.push("shutting down".to_owned());
    }
    let settings = &admin.config.current().settings;
    if settings.queue.enabled && settings.profile != crate::config::raw::Profile::Strict {
        match &admin.store {
            None => reasons.push("the store could not be opened".to_owned()),
            Some(store) => {
                let health = store.health();
                if !health.writable {
                    reasons.push(format!(
                        "the store takes no writes: {}",
                        health.failed.as_deref().unwrap_or("unknown")
                    ));
                }
            }
        }
    }
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
    }
}

pub(super) async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    super::status::refresh_gauges(&admin);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], admin.metrics.encode())
}
