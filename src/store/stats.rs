//! Counters of the store and the picture that [`Health`] gives of them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How a store is, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Whether a commit may be expected to succeed now.
    pub writable: bool,
    /// Why nothing can be written, where that is so.
    pub failed: Option<String>,
    /// Whether the volume is below its watermark.
    pub low_space: bool,
    /// How long the committer has been at one thing; a long time means a hanging disk.
    pub busy: Duration,
    /// Whether sled wrote blob files, which it never syncs: an alarm.
    pub blobs: bool,
    /// Bytes of keys and sealed values.
    pub live_bytes: u64,
    /// Bytes of the database file.
    pub disk_bytes: u64,
    /// Bytes free on the volume when last asked.
    pub free_bytes: u64,
    /// The epoch that counts.
    pub epoch: u64,
    /// Epochs that a write or sync error finished.
    pub epochs_finished_by_error: u64,
    /// Epochs that were left for space.
    pub rotations: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Batches refused.
    pub refused: u64,
    /// Values that could not be unsealed.
    pub undecryptable: u64,
    /// Batches waiting for the committer.
    pub waiting: u64,
    /// Seconds of one durable write (batch, flush, sync).
    pub sync_seconds: Histogram,
    /// Batches made durable by one sync.
    pub group_size: Histogram,
}

/// A histogram: `counts[i]` observations were at most `bounds[i]`; the last count has no bound. Not cumulative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds.
    pub bounds: &'static [f64],
    /// One count for each bound and one more.
    pub counts: Vec<u64>,
    /// The sum of all observations.
    pub sum: f64,
}

const SYNC_BOUNDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const GROUP_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

pub(super) struct Stats {
    started: Instant,
    /// Milliseconds since `started`, plus one; zero while idle.
    busy_since: AtomicU64,
    pub(super) failed: Mutex<Option<String>>,
    pub(super) is_low: AtomicBool,
    pub(super) has_blobs: AtomicBool,
    pub(super) live_bytes: AtomicU64,
    pub(super) disk_bytes: AtomicU64,
    pub(super) free_bytes: AtomicU64,
    pub(super) finished_by_error: AtomicU64,
    pub(super) rotations: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) undecryptable: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) sync: Counts,
    pub(super) group: Counts,
}

pub(super) struct Counts {
    bounds: &'static [f64],
    slots: Vec<AtomicU64>,
    /// In millionths.
    sum: AtomicU64,
}

// === impl Stats ===

impl Stats {
    pub(super) fn new() -> Stats {
        Stats {
            started: Instant::now(),
            busy_since: AtomicU64::new(0),
            failed: Mutex::new(None),
            is_low: AtomicBool::new(false),
            has_blobs: AtomicBool::new(false),
            live_bytes: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            finished_by_error: AtomicU64::new(0),
            rotations: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            undecryptable: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            sync: Counts::new(SYNC_BOUNDS),
            group: Counts::new(GROUP_BOUNDS),
        }
    }

    pub(super) fn set_busy(&self, is_busy: bool) {
        self.busy_since.store(if is_busy { self.now() } else { 0 }, Relaxed);
    }

    pub(super) fn set_failed(&self, reason: Option<String>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub(super) fn health(&self, epoch: Option<u64>, stall_after: Duration) -> Health {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let low_space = self.is_low.load(Relaxed);
        let busy = match self.busy_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        };
        Health {
            writable: failed.is_none() && !low_space && busy < stall_after && epoch.is_some(),
            failed,
            low_space,
            busy,
            blobs: self.has_blobs.load(Relaxed),
            live_bytes: self.live_bytes.load(Relaxed),
            disk_bytes: self.disk_bytes.load(Relaxed),
            free_bytes: self.free_bytes.load(Relaxed),
            epoch: epoch.unwrap_or(0),
            epochs_finished_by_error: self.finished_by_error.load(Relaxed),
            rotations: self.rotations.load(Relaxed),
            batches: self.batches.load(Relaxed),
            refused: self.refused.load(Relaxed),
            undecryptable: self.undecryptable.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            sync_seconds: self.sync.snapshot(),
            group_size: self.group.snapshot(),
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }
}

// === impl Counts ===

impl Counts {
    fn new(bounds: &'static [f64]) -> Counts {
        Counts {
            bounds,
            slots: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, value: f64) {
        let slot = self.bounds.partition_point(|bound| *bound < value);
        self.slots[slot].fetch_add(1, Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Relaxed);
    }

    fn snapshot(&self) -> Histogram {
        Histogram {
            bounds: self.bounds,
            counts: self.slots.iter().map(|count| count.load(Relaxed)).collect(),
            sum: self.sum.load(Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_falls_under_its_bound() {
        let counts = Counts::new(GROUP_BOUNDS);
        for value in [1.0, 2.0, 3.0, 64.0, 65.0] {
            counts.observe(value);
        }
        let seen = counts.snapshot();
        assert_eq!(seen.counts, [1, 1, 1, 0, 0, 0, 1, 1]);
        assert!((seen.sum - 135.0).abs() < 1e-6);
    }
}
