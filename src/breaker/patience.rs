//! Pure. From when on a caller that leaves before the head says something of Flexport: three times what nearly all
//! healthy calls of the group take.
//!
//! A caller that leaves early may be impatient, or the upstream may hang. `slow` alone cannot tell: callers with a
//! limit of 5 s would hide a hung upstream from it for ever. So the time to the head below which 99 of 100 healthy
//! calls stay is estimated, one step per call: up by an eighth when a call took longer, down by a 1024th when it did
//! not; the two balance where about one call in 128 takes longer. No list, no lock; a step that another thread
//! overwrites is no loss.
//!
//! Until there are [`ENOUGH`] calls, and for groups so fast that anybody's patience is long, it is `slow` or
//! [`LEAST`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// `calls, up to ENOUGH (8) | estimate in nanoseconds (56)`
pub(super) struct Patience(AtomicU64);

/// Calls before the estimate counts.
const ENOUGH: u64 = 100;
/// Below this nobody's leaving means anything: a scheduler, a collector or a retry takes as long.
const LEAST: Duration = Duration::from_secs(1);
const TIMES: u32 = 3;
const SHIFT: u32 = 56;
const MASK: u64 = (1 << SHIFT) - 1;

// === impl Patience ===

impl Patience {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A healthy call took this long to its head.
    pub(super) fn learn(&self, head_after: Duration) {
        let took = u64::try_from(head_after.as_nanos()).unwrap_or(MASK).min(MASK);
        let found = self.0.load(Ordering::Relaxed);
        let (calls, estimate) = (found >> SHIFT, found & MASK);
        let next = if calls == 0 {
            took
        } else if took > estimate {
            took.min(estimate + estimate / 8 + 1)
        } else {
            estimate - estimate / 1024
        };
        self.0.store((calls + 1).min(ENOUGH) << SHIFT | next, Ordering::Relaxed);
    }

    /// Who leaves later than this without a head has waited too long. Never above `slow`.
    pub(super) fn limit(&self, slow: Duration) -> Duration {
        let found = self.0.load(Ordering::Relaxed);
        if found >> SHIFT < ENOUGH {
            return slow;
        }
        Duration::from_nanos(found & MASK).saturating_mul(TIMES).max(LEAST).min(slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_few_calls_say_nothing() {
        let patience = Patience::new();
        assert_eq!(patience.limit(SLOW), SLOW);
        for _ in 0..99 {
            patience.learn(Duration::from_millis(20));
        }
        assert_eq!(patience.limit(SLOW), SLOW);
        patience.learn(Duration::from_millis(20));
        assert_eq!(patience.limit(SLOW), LEAST);
    }

    #[test]
    fn it_finds_the_time_that_one_call_in_a_hundred_exceeds() {
        let patience = Patience::new();
        // Spread evenly over 0..1 s, in an order that is not that of size.
        for index in 0..20_000u64 {
            patience.learn(Duration::from_millis(index * 617 % 1000));
        }
        let found = patience.limit(SLOW).as_secs_f64() / 3.0;
        assert!((0.85..=1.0).contains(&found), "{found}");
    }

    #[test]
    fn a_group_that_becomes_slower_or_faster_is_followed_and_slow_is_the_most() {
        let patience = Patience::new();
        let learn = |millis, times| (0..times).for_each(|_| patience.learn(Duration::from_millis(millis)));
        learn(20, 200);
        learn(2000, 200);
        assert_eq!(patience.limit(SLOW), Duration::from_secs(6));
        learn(9000, 200);
        assert_eq!(patience.limit(SLOW), SLOW);
        learn(20, 20_000);
        assert_eq!(patience.limit(SLOW), LEAST);
    }
}
