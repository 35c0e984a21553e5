//! Pure. A token bucket, one for all callers or one for each, as behind `rate_limit`.

use std::collections::HashMap;

use jiff::Timestamp;

/// Callers for whom a bucket of their own is kept; above that, idle ones are forgotten.
const CALLERS_KEPT: usize = 4096;

/// The buckets of one fault.
#[derive(Debug, PartialEq)]
pub(super) struct Buckets {
    per_second: f64,
    burst: f64,
    /// Whether each bearer token has its own.
    is_per_token: bool,
    levels: HashMap<String, Level>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Level {
    left: f64,
    at: Timestamp,
}

/// What a caller is told about its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) struct Quota {
    pub(in crate::sim) limit: u64,
    pub(in crate::sim) remaining: u64,
    /// Seconds until the bucket is full, or the window over.
    pub(in crate::sim) reset: u64,
}

/// Whether there was something left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Taken(Quota),
    Empty { quota: Quota, retry_after: u64 },
}

// === impl Buckets ===

impl Buckets {
    pub(super) fn new(per_second: f64, burst: u64, is_per_token: bool) -> Self {
        Self { per_second, burst: burst as f64, is_per_token, levels: HashMap::new() }
    }

    /// Takes one for a caller.
    pub(super) fn take(&mut self, now: Timestamp, token: Option<&str>) -> Take {
        let key = if self.is_per_token { token.unwrap_or_default() } else { "" };
        if self.levels.len() >= CALLERS_KEPT && !self.levels.contains_key(key) {
            let (per_second, burst) = (self.per_second, self.burst);
            self.levels.retain(|_, level| level.filled(now, per_second, burst).left < burst);
        }
        let full = Level { left: self.burst, at: now };
        let level = self.levels.entry(key.to_owned()).or_insert(full);
        *level = level.filled(now, self.per_second, self.burst);
        let is_empty = level.left < 1.0;
        if !is_empty {
            level.left -= 1.0;
        }
        let quota = Quota {
            limit: self.burst as u64,
            remaining: level.left as u64,
            reset: ((self.burst - level.left) / self.per_second).ceil() as u64,
        };
        if is_empty {
            let retry_after = (((1.0 - level.left) / self.per_second).ceil() as u64).max(1);
            return Take::Empty { quota, retry_after };
        }
        Take::Taken(quota)
    }
}

// === impl Level ===

impl Level {
    fn filled(self, now: Timestamp, per_second: f64, burst: f64) -> Self {
        // A clock that went back fills nothing.
        let elapsed = now.duration_since(self.at).as_secs_f64().max(0.0);
        Self { left: (self.left + elapsed * per_second).min(burst), at: now }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_empties_and_fills_again() {
        let start: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let mut buckets = Buckets::new(2.0, 3, false);
        let left = |take| match take {
            Take::Taken(quota) => Some(quota.remaining),
            Take::Empty { retry_after, .. } => {
                assert_eq!(retry_after, 1);
                None
            }
        };
        let taken: Vec<_> = (0..4).map(|_| left(buckets.take(start, Some("a")))).collect();
        assert_eq!(taken, [Some(2), Some(1), Some(0), None]);
        let later = start + Duration::from_millis(500);
        assert_eq!(left(buckets.take(later, Some("b"))), Some(0), "one for all");
        assert_eq!(left(buckets.take(start, None)), None, "a clock that went back fills nothing");
        let mut own = Buckets::new(1.0, 1, true);
        assert!(left(own.take(start, Some("a"))).is_some() && left(own.take(start, Some("b"))).is_some());
        assert!(left(own.take(start, Some("a"))).is_none());
    }
}
