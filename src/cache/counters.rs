//! What the cache counts: handles resolved once, so that counting is one atomic addition.

use super::disk::DiskStats;
use crate::flexport::routes::RoutePolicy;
use crate::telemetry::{Metrics, ResultLabels};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the cache did since its start, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Keys in memory; each holds at least one copy.
    pub entries: u64,
    /// Bytes in memory.
    pub bytes: u64,
    /// Reads answered from a fresh copy.
    pub hits: u64,
    /// Reads answered by the upstream.
    pub misses: u64,
    /// Reads answered from a copy that a 304 had just confirmed.
    pub revalidated: u64,
    /// Reads answered from a stale copy.
    pub stale_served: u64,
    /// Those of them that were answered out of a page of the object's collection.
    pub from_collection: u64,
    /// Reads that shared the request of another; they are also counted by what came of it.
    pub collapsed: u64,
    /// Reads that went alone, since the last answer to the same could not be kept; also counted by what came of it.
    pub hit_for_miss: u64,
    /// Requests that were not for the cache.
    pub bypassed: u64,
    /// Reads that failed although there was a copy, since it might not be used.
    pub refused: u64,
    /// Answers that could not be kept.
    pub unkept: u64,
    /// Seconds since the upstream last confirmed anything.
    pub newest_confirmed_age_seconds: Option<u64>,
    /// The second tier; absent when it is turned off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStats>,
}

/// The handles.
pub(crate) struct Counters {
    pub(crate) hit: Counter,
    pub(crate) miss: Counter,
    pub(crate) revalidated: Counter,
    pub(crate) stale: Counter,
    pub(crate) collapsed: Counter,
    pub(crate) hit_for_miss: Counter,
    pub(crate) bypass: Counter,
    pub(crate) refused: Counter,
    pub(crate) from_collection: Counter,
    stale_refused: Family<ResultLabels, Counter>,
    unservable: Family<ResultLabels, Counter>,
    /// The same by route: few, and written only when such an answer comes.
    unservable_of: Mutex<HashMap<String, BTreeMap<&'static str, u64>>>,
    stale_age: Histogram,
    entries: Gauge,
    bytes: Gauge,
    unkept: AtomicU64,
}

// === impl Counters ===

impl Counters {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let reads = |result| metrics.cache_reads.get_or_create(&ResultLabels { result }).clone();
        Self {
            hit: reads("hit"),
            miss: reads("miss"),
            revalidated: reads("revalidated"),
            stale: reads("stale"),
            collapsed: reads("collapsed"),
            hit_for_miss: reads("hit_for_miss"),
            bypass: reads("bypass"),
            refused: reads("refused"),
            from_collection: metrics.cache_from_collection.clone(),
            stale_refused: metrics.cache_stale_refused.clone(),
            unservable: metrics.cache_unservable.clone(),
            unservable_of: Mutex::default(),
            stale_age: metrics.cache_stale_age_seconds.clone(),
            entries: metrics.cache_entries.clone(),
            bytes: metrics.cache_bytes.clone(),
            unkept: AtomicU64::new(0),
        }
    }

    /// A copy of this age was served.
    pub(crate) fn served_stale(&self, age: Duration) {
        self.stale.inc();
        self.stale_age.observe(age.as_secs_f64());
    }

    /// A good answer with which an outage of this route could not be served. The first one of its kind is told.
    pub(crate) fn unservable(&self, route: &RoutePolicy, reason: &'static str) {
        self.unservable.get_or_create(&ResultLabels { result: reason }).inc();
        let is_first = {
            let mut routes = self.unservable_of.lock().expect("no code panics with this lock held");
            let count = routes.entry(route.template.clone()).or_default().entry(reason).or_default();
            *count += 1;
            *count == 1
        };
        // That a sync gets nothing old is meant.
        if is_first && reason != "incremental" {
            tracing::warn!(route = route.template, reason, "an outage of this route could not be served");
        }
    }

    /// How many of them there were by reason, by the template of the route.
    pub(crate) fn unservable_by_route(&self) -> HashMap<String, BTreeMap<&'static str, u64>> {
        self.unservable_of.lock().expect("no code panics with this lock held").clone()
    }

    /// A copy could not be used in an outage.
    pub(crate) fn stale_refused(&self, result: &'static str) {
        self.stale_refused.get_or_create(&ResultLabels { result }).inc();
    }

    /// An answer could not be kept.
    pub(crate) fn unkept(&self) {
        self.unkept.fetch_add(1, Ordering::Relaxed);
    }

    /// What memory holds.
    pub(crate) fn size(&self, keys: u64, bytes: u64) {
        self.entries.set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn stats(
        &self,
        entries: u64,
        bytes: u64,
        newest: Option<u64>,
        disk: Option<DiskStats>,
    ) -> Stats {
        Stats {
            entries,
            bytes,
            hits: self.hit.get(),
            misses: self.miss.get(),
            revalidated: self.revalidated.get(),
            stale_served: self.stale.get(),
            from_collection: self.from_collection.get(),
            collapsed: self.collapsed.get(),
            hit_for_miss: self.hit_for_miss.get(),
            bypassed: self.bypass.get(),
            refused: self.refused.get(),
            unkept: self.unkept.load(Ordering::Relaxed),
            newest_confirmed_age_seconds: newest,
            disk,
        }
    }
}
