//! Pure. What happened in the last ten buckets (of one second each, by default): exact counts. A breaker has several of
//! these, which `load` adds up.
//!
//! Ten buckets in a ring, each stamped with the number of the bucket of time that it counts for, so that a bucket that
//! is used again is emptied by the first who counts in it, and one that nobody used is not counted although nobody
//! emptied it. Stamp and count change together in one word; there is no lock and no allocation, and reading costs
//! the same whatever the rate.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many buckets make the window.
pub(super) const BUCKETS: usize = 10;

/// The window.
pub(super) struct Window {
    buckets: [Bucket; BUCKETS],
}

/// What is in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// All but the neutral.
    pub(super) calls: u32,
    /// Those that failed.
    pub(super) failures: u32,
    /// Those that were slow, failed or not.
    pub(super) slow: u32,
}

struct Bucket {
    /// `stamp (32) | calls (32)`
    calls: AtomicU64,
    /// `stamp (32) | failures (16) | slow (16)`
    bad: AtomicU64,
}

// === impl Counts ===

impl Counts {
    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            failures: self.failures.saturating_add(other.failures),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

// === impl Window ===

impl Window {
    pub(super) fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| Bucket { calls: AtomicU64::new(0), bad: AtomicU64::new(0) }) }
    }

    /// Counts one call in the bucket of time with this number.
    pub(super) fn add(&self, number: u64, is_failure: bool, is_slow: bool) {
        let stamp = number as u32;
        let bucket = &self.buckets[(number % BUCKETS as u64) as usize];
        bump(&bucket.calls, stamp, |calls| calls.saturating_add(1));
        if is_failure || is_slow {
            bump(&bucket.bad, stamp, |bad| {
                let failures = (bad >> 16) as u16;
                let slow = bad as u16;
                u32::from(failures.saturating_add(u16::from(is_failure))) << 16
                    | u32::from(slow.saturating_add(u16::from(is_slow)))
            });
        }
    }

    /// The counts of the bucket with this number and the nine before it.
    pub(super) fn counts(&self, number: u64) -> Counts {
        let mut counts = Counts::default();
        let is_inside = |stamp: u32| (number as u32).wrapping_sub(stamp) < BUCKETS as u32;
        for bucket in &self.buckets {
            // The failures are written last and read first: whoever is among them is among the calls too, and a
            // share is never above one.
            let (stamp, bad) = split(bucket.bad.load(Ordering::Acquire));
            if is_inside(stamp) {
                counts.failures += bad >> 16;
                counts.slow += bad & 0xFFFF;
            }
            let (stamp, calls) = split(bucket.calls.load(Ordering::Acquire));
            if is_inside(stamp) {
                counts.calls = counts.calls.saturating_add(calls);
            }
        }
        counts
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.calls.store(0, Ordering::Release);
            bucket.bad.store(0, Ordering::Release);
        }
    }
}

fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

fn bump(word: &AtomicU64, stamp: u32, one_more: impl Fn(u32) -> u32) {
    let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |found| {
        let (found_stamp, count) = split(found);
        // Newer: this thread slept for a whole turn of the ring. Its call is no longer in the window.
        if found_stamp != stamp && stamp.wrapping_sub(found_stamp) > u32::MAX / 2 {
            return None;
        }
        let count = one_more(if found_stamp == stamp { count } else { 0 });
        Some(u64::from(stamp) << 32 | u64::from(count))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_leaves_the_window_after_ten_buckets() {
        let window = Window::new();
        window.add(100, true, true);
        window.add(105, false, false);
        assert_eq!(window.counts(109), Counts { calls: 2, failures: 1, slow: 1 });
        assert_eq!(window.counts(110), Counts { calls: 1, failures: 0, slow: 0 });
        assert_eq!(window.counts(115), Counts::default());
        assert_eq!(window.counts(100 + (1 << 20)), Counts::default(), "an old bucket never comes back");
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_list(steps in prop::collection::vec((0u64..6, any::<bool>(), any::<bool>()), 1..200)) {
            let window = Window::new();
            let mut list = Vec::new();
            let mut number = 50;
            for (wait, is_failure, is_slow) in steps {
                number += wait;
                window.add(number, is_failure, is_slow);
                list.push((number, is_failure, is_slow));
                let inside = || list.iter().filter(|(at, ..)| number - at < BUCKETS as u64);
                prop_assert_eq!(window.counts(number), Counts {
                    calls: inside().count() as u32,
                    failures: inside().filter(|(_, is_failure, _)| *is_failure).count() as u32,
                    slow: inside().filter(|(_, _, is_slow)| *is_slow).count() as u32,
                });
            }
        }
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let window = Window::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..10_000u64 {
                        window.add(100 + index % 3, index % 2 == 0, index % 4 == 0);
                    }
                });
            }
        });
        assert_eq!(window.counts(103), Counts { calls: 40_000, failures: 20_000, slow: 10_000 });
    }
}
