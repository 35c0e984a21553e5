//! Everything on one page.

use super::Admin;
use crate::clock::since;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

pub(super) async fn get(State(admin): State<Admin>) -> Json<Value> {
    let config = admin.config.current();
    let now = admin.clock.now();
    let store = admin.store.as_ref().map(|store| {
        let health = store.health();
        json!({
            "writable": health.writable,
            "failed": health.failed,
            "low_space": health.low_space,
            "live_bytes": health.live_bytes,
            "disk_bytes": health.disk_bytes,
            "free_bytes": health.free_bytes,
            "epoch": health.epoch,
            "epochs_finished_by_error": health.epochs_finished_by_error,
            "rotations": health.rotations,
        })
    });
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": since(now, admin.started_at).as_secs(),
        "ready": admin.is_up.load(Ordering::Relaxed) && !admin.is_draining.load(Ordering::Relaxed),
        "upstream": config.settings.upstream.base_url,
        "public_url": &*config.public_url,
        "config": {
            "source": config.source.as_ref().map(|path| path.display().to_string()),
            "generation": config.generation,
            "warnings": config.warnings,
        },
        "breakers": admin.breakers.list(),
        "breakers_alarm": admin.breakers.alarm(),
        "status_page": admin.status_page.get(),
        "cache": admin.cache.stats(),
        "cache_warming": super::warm::told_last(&admin),
        "queue": admin.queue.as_ref().map(|queue| queue.stats()),
        "store": store,
    }))
}

/// Brings gauges up to date that are only looked at when somebody asks.
pub(super) fn refresh_gauges(admin: &Admin) {
    admin.cache.stats();
    if let Some(queue) = &admin.queue {
        let oldest = i64::try_from(queue.stats().oldest_seconds).unwrap_or(i64::MAX);
        admin.metrics.queue_oldest_seconds.set(oldest);
    }
    if let Some(store) = &admin.store {
        let health = store.health();
        admin.metrics.store_writable.set(i64::from(health.writable));
        admin.metrics.store_refused.set(i64::try_from(health.refused).unwrap_or(i64::MAX));
        let failed = i64::try_from(health.epochs_finished_by_error).unwrap_or(i64::MAX);
        admin.metrics.store_epochs_failed.set(failed);
        admin.metrics.store_disk_bytes.set(i64::try_from(health.disk_bytes).unwrap_or(i64::MAX));
        admin.metrics.store_live_bytes.set(i64::try_from(health.live_bytes).unwrap_or(i64::MAX));
    }
}
