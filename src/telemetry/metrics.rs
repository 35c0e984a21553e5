//! All metrics, in one struct, each with its help text beside it.
//!
//! Handles of labelled families are resolved when routes and groups are known (at start and at reload), so that
//! counting on the hot path is one atomic addition.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Everything that is counted. Cheap to clone: share it as `Arc`.
pub struct Metrics {
    registry: Registry,
    /// Requests answered on the data listener, by group, status class and `Seawall-Source`.
    pub requests: Family<RequestLabels, Counter>,
    /// Time from the head's arrival to the answer's head, by group.
    pub request_seconds: Family<GroupLabels, Histogram, fn() -> Histogram>,
    /// Requests under way.
    pub requests_in_flight: Gauge,
    /// Callers that left before their answer.
    pub callers_left: Counter,
    /// Connections open, by listener.
    pub connections: Family<ListenerLabels, Gauge>,
    /// Connections refused because the limit was reached, by listener.
    pub connections_refused: Family<ListenerLabels, Counter>,
    /// Attempts sent upstream, by group and outcome.
    pub attempts: Family<AttemptLabels, Counter>,
    /// Time from the start of an attempt to its head, by group.
    pub attempt_seconds: Family<GroupLabels, Histogram, fn() -> Histogram>,
    /// Calls of the upstream in flight.
    pub upstream_in_flight: Gauge,
    /// Connections to the upstream that are open.
    pub upstream_connections: Gauge,
    /// Connections to the upstream begun, by result: `ok`, `dns`, `tcp`, `proxy`, `tls`, `protocol`, `timeout`.
    pub upstream_connects: Family<ResultLabels, Counter>,
    /// A breaker's state: 0 closed, 1 ramping, 2 half-open, 3 open.
    pub breaker_state: Family<ScopeLabels, Gauge>,
    /// A breaker's override: 0 auto, 1 observe, 2 forced closed, 3 forced open.
    pub breaker_override: Family<ScopeLabels, Gauge>,
    /// Changes of a breaker's automatic state, by the new state.
    pub breaker_transitions: Family<TransitionLabels, Counter>,
    /// Calls refused by a breaker.
    pub breaker_refused: Family<ScopeLabels, Counter>,
    /// What the status page says: -1 unknown, 0 none, 1 minor, 2 major, 3 critical, 4 maintenance.
    pub status_page_indicator: Gauge,
    /// Looks at the status page, by result: `ok`, `failed`.
    pub status_page_reads: Family<ResultLabels, Counter>,
    /// Calls of the upstream that may be in flight at once, as found out.
    pub limiter_limit: Gauge,
    /// Calls that wait for a slot.
    pub limiter_waiting: Gauge,
    /// Calls that got no slot in time, by lane: `live_read`, `live_write`, `refresh`, `replay`, `probe`.
    pub limiter_refused: Family<ResultLabels, Counter>,
    /// Further attempts, by result: `tried`, `helped`, `no_budget`.
    pub retries: Family<ResultLabels, Counter>,
    /// Answers 429 of the upstream.
    pub rate_limited: Counter,
    /// Calls that wait for their credential's rate gate.
    pub rate_waiting: Gauge,
    /// Calls that a rate gate refused, by lane.
    pub rate_refused: Family<ResultLabels, Counter>,
    /// Reads by what the cache did: `hit`, `miss`, `revalidated`, `stale`, `collapsed`, `hit_for_miss`, `bypass`,
    /// `refused`.
    pub cache_reads: Family<ResultLabels, Counter>,
    /// Copies that could not be used when one was needed, by reason.
    pub cache_stale_refused: Family<ResultLabels, Counter>,
    /// Good answers with which an outage could not be served, by reason: told while all is well.
    pub cache_unservable: Family<ResultLabels, Counter>,
    /// Age of what was served stale.
    pub cache_stale_age_seconds: Histogram,
    /// Objects served out of a page of their collection; also counted as `stale` reads.
    pub cache_from_collection: Counter,
    /// Copies kept in memory.
    pub cache_entries: Gauge,
    /// Bytes of copies kept in memory.
    pub cache_bytes: Gauge,
    /// Whether there is a second tier: 1 or 0.
    pub cache_disk_up: Gauge,
    /// Copies on disk.
    pub cache_disk_entries: Gauge,
    /// Bytes of the files of the second tier.
    pub cache_disk_bytes: Gauge,
    /// Bytes in them that count.
    pub cache_disk_live_bytes: Gauge,
    /// Bytes of the files of the second tier for each byte in them that counts.
    pub cache_disk_to_live_ratio: Gauge<f64, AtomicU64>,
    /// Copies that were read from disk.
    pub cache_disk_hits: Counter,
    /// Copies written to disk.
    pub cache_disk_written: Counter,
    /// Copies on disk whose time was renewed.
    pub cache_disk_renewed: Counter,
    /// What the second tier did not take, or gave up: `full`, `space`, `too-large`, `undecodable`, `failed`, `off`.
    pub cache_disk_dropped: Family<ResultLabels, Counter>,
    /// What warms the cache: 0 nothing, 1 it runs, 2 it pauses.
    pub cache_warm_state: Gauge,
    /// Targets that wait to be warmed.
    pub cache_warm_left: Gauge,
    /// Targets warmed, by result: `stored`, `confirmed`, `fresh`, `skipped`, `failed`.
    pub cache_warmed: Family<ResultLabels, Counter>,
    /// Writes that are known, by state, with settled ones that are kept.
    pub queue_depth: Family<StateLabels, Gauge>,
    /// Age of the oldest unsettled write, in seconds.
    pub queue_oldest_seconds: Gauge,
    /// Writes settled, by outcome.
    pub queue_settled: Family<StateLabels, Counter>,
    /// Writes accepted with 202, by route.
    pub queue_accepted: Family<RouteLabels, Counter>,
    /// Writes that were answered from an earlier one's record.
    pub queue_repeats: Counter,
    /// Writes that went out without a durable intent, since the store had failed.
    pub queue_not_durable: Counter,
    /// Whether the store takes writes: 1 or 0.
    pub store_writable: Gauge,
    /// Batches that the store refused since the start.
    pub store_refused: Gauge,
    /// Epochs that a write or sync error finished since the start.
    pub store_epochs_failed: Gauge,
    /// Bytes of the store's file.
    pub store_disk_bytes: Gauge,
    /// Bytes in it that count.
    pub store_live_bytes: Gauge,
    /// Reloads of the configuration, by result.
    pub config_reloads: Family<ResultLabels, Counter>,
    /// Whether the last load of the configuration succeeded: 1 or 0.
    pub config_reload_successful: Gauge,
    /// When the configuration was last loaded with success, in seconds since 1970.
    pub config_reload_success_timestamp_seconds: Gauge,
    /// Settings whose configured value waits for a restart.
    pub config_needs_restart: Gauge,
}

/// Labels of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's group.
    pub group: String,
    /// `2xx` and so on.
    pub class: &'static str,
    /// `upstream`, `cache`, `stale`, `queue`, `seawall`.
    pub source: &'static str,
}

/// The group of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupLabels {
    /// The route's group.
    pub group: String,
}

/// One of our listeners.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabels {
    /// `data` or `admin`.
    pub listener: &'static str,
}

/// Labels of attempts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttemptLabels {
    /// The route's group.
    pub group: String,
    /// `success`, `client_error`, `refused`, `server_error`, `timeout`, `cut`, `connect`, `unsent`.
    pub outcome: &'static str,
}

/// A breaker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScopeLabels {
    /// `global`, `<group>:read` or `<group>:write`.
    pub scope: String,
}

/// A breaker's change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransitionLabels {
    /// `global`, `<group>:read` or `<group>:write`.
    pub scope: String,
    /// The new state.
    pub to: &'static str,
}

/// One of a few named results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// Which.
    pub result: &'static str,
}

/// A state of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// Which.
    pub state: &'static str,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// Such as `POST /bookings`.
    pub route: String,
}

/// Seconds from a millisecond to a minute.
fn latency() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

// === impl Metrics ===

impl Metrics {
    /// A new set, all zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("seawall");
        macro_rules! metric {
            ($name:literal, $help:literal, $value:expr) => {{
                let metric = $value;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let requests = metric!("requests", "Requests answered on the data listener", Family::default());
        let request_seconds = metric!(
            "request_seconds",
            "Time from a request's head to its answer's head",
            Family::new_with_constructor(latency as fn() -> Histogram)
        );
        let requests_in_flight = metric!("requests_in_flight", "Requests under way", Gauge::default());
        let callers_left =
            metric!("callers_left", "Callers that left before their answer", Counter::default());
        let connections = metric!("connections", "Connections open", Family::default());
        let connections_refused =
            metric!("connections_refused", "Connections refused at the limit", Family::default());
        let attempts = metric!("upstream_attempts", "Attempts sent upstream by outcome", Family::default());
        let attempt_seconds = metric!(
            "upstream_attempt_seconds",
            "Time from an attempt's start to its head",
            Family::new_with_constructor(latency as fn() -> Histogram)
        );
        let upstream_in_flight =
            metric!("upstream_in_flight", "Calls of the upstream in flight", Gauge::default());
        let upstream_connections =
            metric!("upstream_connections", "Connections to the upstream open", Gauge::default());
        let upstream_connects =
            metric!("upstream_connects", "Connections to the upstream begun by result", Family::default());
        let breaker_state = metric!(
            "breaker_state",
            "Automatic state: 0 closed, 1 ramping, 2 half-open, 3 open",
            Family::default()
        );
        let breaker_override = metric!(
            "breaker_override",
            "Override: 0 auto, 1 observe, 2 forced closed, 3 forced open",
            Family::default()
        );
        let breaker_transitions =
            metric!("breaker_transitions", "Changes of automatic state by the new state", Family::default());
        let breaker_refused = metric!("breaker_refused", "Calls refused by a breaker", Family::default());
        let status_page_indicator = metric!(
            "status_page_indicator",
            "The status page: -1 unknown, 0 none, 1 minor, 2 major, 3 critical, 4 maintenance",
            Gauge::default()
        );
        let status_page_reads =
            metric!("status_page_reads", "Looks at the status page by result", Family::default());
        let limiter_limit =
            metric!("limiter_limit", "Calls of the upstream that may be in flight at once", Gauge::default());
        let limiter_waiting = metric!("limiter_waiting", "Calls that wait for a slot", Gauge::default());
        let limiter_refused =
            metric!("limiter_refused", "Calls that got no slot in time by lane", Family::default());
        let retries = metric!("retries", "Further attempts by result", Family::default());
        let rate_limited = metric!("rate_limited", "Answers 429 of the upstream", Counter::default());
        let rate_waiting = metric!("rate_waiting", "Calls that wait for a rate gate", Gauge::default());
        let rate_refused =
            metric!("rate_refused", "Calls that a rate gate refused by lane", Family::default());
        let cache_reads = metric!("cache_reads", "Reads by what the cache did", Family::default());
        let cache_stale_refused = metric!(
            "cache_stale_refused",
            "Copies that could not be used when one was needed by reason",
            Family::default()
        );
        let cache_unservable = metric!(
            "cache_unservable",
            "Good answers with which an outage could not be served by reason",
            Family::default()
        );
        let cache_stale_age_seconds = metric!(
            "cache_stale_age_seconds",
            "Age of what was served stale",
            Histogram::new([1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0])
        );
        let cache_from_collection = metric!(
            "cache_from_collection",
            "Objects served stale out of a page of their collection",
            Counter::default()
        );
        let cache_entries = metric!("cache_entries", "Copies kept in memory", Gauge::default());
        let cache_bytes = metric!("cache_bytes", "Bytes of copies kept in memory", Gauge::default());
        let cache_disk_up =
            metric!("cache_disk_up", "Whether there is a second tier on disk", Gauge::default());
        let cache_disk_entries = metric!("cache_disk_entries", "Copies on disk", Gauge::default());
        let cache_disk_bytes =
            metric!("cache_disk_bytes", "Bytes of the files of the second tier", Gauge::default());
        let cache_disk_live_bytes =
            metric!("cache_disk_live_bytes", "Bytes in the second tier that count", Gauge::default());
        let cache_disk_to_live_ratio = metric!(
            "cache_disk_to_live_ratio",
            "Bytes of the files of the second tier for each byte that counts",
            Gauge::<f64, AtomicU64>::default()
        );
        let cache_disk_hits = metric!("cache_disk_hits", "Copies read from disk", Counter::default());
        let cache_disk_written = metric!("cache_disk_written", "Copies written to disk", Counter::default());
        let cache_disk_renewed =
            metric!("cache_disk_renewed", "Copies on disk whose time was renewed", Counter::default());
        let cache_disk_dropped =
            metric!("cache_disk_dropped", "What the second tier did not take or gave up", Family::default());
        let cache_warm_state =
            metric!("cache_warm_state", "Warming: 0 nothing, 1 it runs, 2 it pauses", Gauge::default());
        let cache_warm_left = metric!("cache_warm_left", "Targets that wait to be warmed", Gauge::default());
        let cache_warmed = metric!("cache_warmed", "Targets warmed by result", Family::default());
        let queue_depth = metric!(
            "queue_depth",
            "Writes that are known by state, with settled ones that are kept",
            Family::default()
        );
        let queue_oldest_seconds =
            metric!("queue_oldest_seconds", "Age of the oldest unsettled write", Gauge::default());
        let queue_settled = metric!("queue_settled", "Writes settled by outcome", Family::default());
        let queue_accepted =
            metric!("queue_accepted", "Writes accepted with 202 by route", Family::default());
        let queue_repeats =
            metric!("queue_repeats", "Writes answered from an earlier record", Counter::default());
        let queue_not_durable =
            metric!("queue_not_durable", "Writes sent without a durable intent", Counter::default());
        let store_writable = metric!("store_writable", "Whether the store takes writes", Gauge::default());
        let store_refused = metric!("store_refused", "Batches that the store refused", Gauge::default());
        let store_epochs_failed =
            metric!("store_epochs_failed", "Epochs that a write or sync error finished", Gauge::default());
        let store_disk_bytes = metric!("store_disk_bytes", "Bytes of the store's file", Gauge::default());
        let store_live_bytes = metric!("store_live_bytes", "Bytes in the store that count", Gauge::default());
        let config_reloads =
            metric!("config_reloads", "Reloads of the configuration by result", Family::default());
        let config_reload_successful = metric!(
            "config_reload_successful",
            "Whether the last load of the configuration succeeded",
            Gauge::default()
        );
        let config_reload_success_timestamp_seconds = metric!(
            "config_reload_success_timestamp_seconds",
            "When the configuration was last loaded with success",
            Gauge::default()
        );
        let config_needs_restart = metric!(
            "config_needs_restart",
            "Settings whose configured value waits for a restart",
            Gauge::default()
        );
        Arc::new(Self {
            registry,
            requests,
            request_seconds,
            requests_in_flight,
            callers_left,
            connections,
            connections_refused,
            attempts,
            attempt_seconds,
            upstream_in_flight,
            upstream_connections,
            upstream_connects,
            breaker_state,
            breaker_override,
            breaker_transitions,
            breaker_refused,
            status_page_indicator,
            status_page_reads,
            limiter_limit,
            limiter_waiting,
            limiter_refused,
            retries,
            rate_limited,
            rate_waiting,
            rate_refused,
            cache_reads,
            cache_stale_refused,
            cache_unservable,
            cache_stale_age_seconds,
            cache_from_collection,
            cache_entries,
            cache_bytes,
            cache_disk_up,
            cache_disk_entries,
            cache_disk_bytes,
            cache_disk_live_bytes,
            cache_disk_to_live_ratio,
            cache_disk_hits,
            cache_disk_written,
            cache_disk_renewed,
            cache_disk_dropped,
            cache_warm_state,
            cache_warm_left,
            cache_warmed,
            queue_depth,
            queue_oldest_seconds,
            queue_settled,
            queue_accepted,
            queue_repeats,
            queue_not_durable,
            store_writable,
            store_refused,
            store_epochs_failed,
            store_disk_bytes,
            store_live_bytes,
            config_reloads,
            config_reload_successful,
            config_reload_success_timestamp_seconds,
            config_needs_restart,
        })
    }

    /// In the text format 0.0.4.
    pub fn encode(&self) -> String {
        super::encode(&self.registry)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
