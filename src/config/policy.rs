//! Pure. The table of endpoints as the settings make it: built-in rows, `[cache].max_stale`, `[[route]]`.

use super::raw::{HeadChoice, Profile, QueueChoice, Route, Settings};
use crate::flexport::routes::{CachePolicy, RoutePolicy, RouteTable, built_in};
use std::time::Duration;

/// The table. `[[route]]` that names no row changes nothing; `validate` has refused it before.
pub(super) fn table(settings: &Settings) -> RouteTable {
    let mut rows = built_in();
    let mut other = RoutePolicy::other();
    for row in &mut rows {
        if let Some(cache) = &mut row.cache {
            cache.max_stale = *settings.cache.max_stale;
            cache.object_fallback &= settings.cache.object_fallback;
        }
        if let Some(route) = settings.routes.iter().find(|route| is_of(route, row)) {
            apply(route, row);
        }
    }
    if settings.profile == Profile::Strict {
        for row in rows.iter_mut().chain(std::iter::once(&mut other)) {
            strict(row, *settings.cache.max_stale);
        }
    }
    RouteTable::new(rows, other)
}

/// Whether the override is for this row.
pub(super) fn is_of(route: &Route, row: &RoutePolicy) -> bool {
    row.template == route.path && row.method.as_ref().is_some_and(|method| method.as_str() == route.method)
}

fn apply(route: &Route, row: &mut RoutePolicy) {
    if let Some(timeout) = route.timeout {
        row.timeout = *timeout;
    }
    if let Some(is_set) = route.retry {
        row.retries = is_set;
    }
    if let Some(cache) = &mut row.cache {
        if let Some(ttl) = route.ttl {
            cache.ttl = *ttl;
        }
        if let Some(max_stale) = route.max_stale {
            cache.max_stale = *max_stale;
        }
        if let Some(is_set) = route.override_revalidation {
            cache.overrides_revalidation = is_set;
        }
        if let Some(is_set) = route.object_fallback {
            cache.object_fallback = is_set;
        }
    }
    if route.cache == Some(false) {
        row.cache = None;
    }
    let queue = &mut row.queue;
    match route.queue {
        // Only the class: a forwarded write still makes copies stale.
        Some(QueueChoice::Never) => queue.class = None,
        Some(QueueChoice::Default) | None => {}
    }
    if let Some(size) = route.queue_max_body {
        queue.max_body = size.0;
    }
    if let Some(is_set) = route.trust_503 {
        queue.trusts_503 = is_set;
    }
    if let Some(choice) = route.on_unknown_head {
        queue.blocks_behind_unknown = choice == HeadChoice::Block;
    }
    if let Some(choice) = route.on_dead_head {
        queue.blocks_behind_dead = choice == HeadChoice::Block;
    }
}

/// Plain HTTP caching: every route can be kept, nothing is overridden, nothing is queued.
fn strict(row: &mut RoutePolicy, max_stale: Duration) {
    let cache = row.cache.get_or_insert_with(|| CachePolicy {
        ttl: Duration::ZERO,
        max_stale,
        overrides_revalidation: false,
        tag: row.template.rsplit('/').next().unwrap_or_default().to_owned(),
        holds_objects: false,
        object_fallback: false,
    });
    cache.ttl = Duration::ZERO;
    cache.overrides_revalidation = false;
    cache.holds_objects = false;
    cache.object_fallback = false;
    row.queue.class = None;
}
