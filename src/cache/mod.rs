//! Reads: answered from the last good copy when it is fresh, or when Flexport cannot answer.
//!
//! What it is by RFC 9111: the store is partitioned by whose data it is, so inside a partition it is a private
//! cache. [`policy`](self) decides, purely; an entry's freshness is always worked out from the entry, never by an
//! eviction. On a cacheable route a fixed list of request fields goes upstream, and all of them are in the key:
//! what is not keyed cannot change the answer, so nobody can poison it.
//!
//! Invariants:
//! - The last good copy is never replaced by an error, a cut body or an answer that cannot be kept.
//! - A fill that began before an invalidation may answer its callers, is not kept, and is joined by nobody who came
//!   after (see `invalidate`).
//! - A caller that leaves, or is slow, never ends a fill or holds it up (see `flight` and `flow`).
//! - A caller sees the clean end of an answer that is kept only when it is kept; one that is cut never looks whole.
//! - An answer that the upstream gave is replaced by a stale copy or by nothing.
//! - A token that the upstream refused sees no copy (see `refusals`); in the strict profile copies are everybody's.
//!
//! Failure: with no copy that may be used, and no page that holds the object (see `objects`), an answer of the upstream's
//! passes through as it came, and an error stays an error; `front::rescue` makes the answer.

mod answer;
mod counters;
mod coverage;
mod disk;
mod entry;
mod fetch;
mod flight;
mod flow;
mod invalidate;
mod key;
mod layer;
mod ledger;
mod list;
mod memory;
mod objects;
mod policy;
mod refusals;
mod rest;
mod selection;
mod service;
mod tier;
mod warm;

pub use counters::Stats;
pub use coverage::{Ages, Coverage, PartitionCoverage, RouteCoverage, ShipmentCoverage};
pub use disk::{DiskOptions, DiskStats, Which};
pub use layer::CacheLayer;
pub use list::{Copy, Freshness, Query};
pub use service::{CacheFuture, CacheService};
pub use tier::{Purged, Tier};
pub use warm::{
    LineError, MAX_WARM_CONCURRENCY, MAX_WARM_TARGETS, WARM_CONCURRENCY, WarmError, WarmFailure, WarmOrder,
    WarmPause, WarmStatus, WarmWhat, Warmer, targets as warm_targets,
};

use crate::clock::Clock;
use crate::config::Settings;
use crate::config::raw::Profile;
use crate::context::{GroupHealth, PendingWrites, Settled, SettledWrite};
use crate::ids::PartitionId;
use crate::task::Tasks;
use crate::telemetry::Metrics;
use counters::Counters;
use disk::Disk;
use entry::Confirmed;
use flight::Flights;
use invalidate::Marks;
use ledger::Ledger;
use memory::Memory;
use objects::Objects;
use refusals::Refusals;
use rest::Rests;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Refreshes in the background at once.
const REFRESHES: usize = 32;
/// Whose data it is in the strict profile: everybody's.
pub const EVERYBODY: PartitionId = PartitionId([0; 16]);

/// The copies, and what is known about them. One for the process.
pub struct Cache {
    memory: Memory,
    objects: Objects,
    flights: Arc<Flights>,
    marks: Marks,
    refusals: Refusals,
    counters: Counters,
    refreshes: Arc<Semaphore>,
    rests: Rests,
    /// When the upstream last confirmed anything, in Unix seconds.
    newest: AtomicI64,
    /// The second tier, and what outlives the process besides.
    disk: Option<Arc<Disk>>,
    ledger: Option<Ledger>,
    /// How often copies were deleted by hand: a fill that began before is not kept.
    purges: AtomicU64,
    started: Instant,
    /// By the profile at start: the store cannot change its partitions on a reload.
    is_strict: bool,
    clock: Clock,
    tasks: Tasks,
    pending: Arc<dyn PendingWrites>,
    health: Arc<dyn GroupHealth>,
}

// === impl Cache ===

impl Cache {
    /// A cache without copies in memory. Of the settings it takes what only a restart changes: the memory's bound and
    /// the profile. Without a tier, nothing outlives the process.
    pub fn new(
        settings: &Settings,
        clock: Clock,
        metrics: &Metrics,
        tasks: Tasks,
        pending: Arc<dyn PendingWrites>,
        health: Arc<dyn GroupHealth>,
        tier: Option<Tier>,
    ) -> Arc<Self> {
        let opened = tier::start(tier, clock, metrics, &tasks);
        let cache = Arc::new(Self {
            memory: Memory::new(settings.cache.memory.0),
            objects: Objects::new(),
            flights: Flights::new(),
            marks: opened.marks,
            refusals: opened.refusals,
            counters: Counters::new(metrics),
            refreshes: Arc::new(Semaphore::new(REFRESHES)),
            rests: Rests::new(),
            newest: AtomicI64::new(i64::MIN),
            disk: opened.disk,
            ledger: opened.ledger,
            purges: AtomicU64::new(0),
            started: Instant::now(),
            is_strict: settings.profile == Profile::Strict,
            clock,
            tasks,
            pending,
            health,
        });
        cache.run_ledger();
        cache
    }

    /// What it did and what it holds.
    pub fn stats(&self) -> Stats {
        let (keys, bytes) = self.memory.size();
        self.counters.size(keys, bytes);
        let newest = self.newest.load(Ordering::Relaxed);
        let age = (newest != i64::MIN)
            .then(|| u64::try_from(self.clock.now().as_second().saturating_sub(newest)).unwrap_or(0));
        let disk = self.disk.as_ref().map(|disk| disk.stats());
        self.counters.stats(keys, bytes, age, disk)
    }

    fn now(&self) -> Confirmed {
        Confirmed { at: self.clock.now(), monotonic: Instant::now() }
    }

    fn partition(&self, own: Option<PartitionId>) -> Option<PartitionId> {
        if self.is_strict { Some(EVERYBODY) } else { own }
    }
}

impl Settled for Cache {
    fn settled(&self, write: &SettledWrite) {
        let partition = if self.is_strict { EVERYBODY } else { write.partition };
        self.marks.path(partition, &write.path);
        for path in &write.also {
            self.marks.path(partition, path);
        }
        for tag in &write.route.queue.invalidates {
            self.marks.tag(partition, tag);
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

#[cfg(test)]
mod tests;
