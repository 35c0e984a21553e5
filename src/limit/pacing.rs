//! Pure. How fast calls follow each other: GCRA (ITU-T I.371), and a rate that is learned where none is told.
//!
//! Flexport documents no rate limit and promises no `RateLimit-*` fields, so all that is known after a 429 is how
//! fast we were. A credential that was limited starts again below that and speeds up slowly; the first time, when
//! nothing is known, it starts slow and doubles. Without this all that waited for the gate would leave in the same
//! millisecond, and most of it would be limited again.
//!
//! Moments are spans since the start of the process.

use super::Moment;
use std::time::Duration;

/// Lets calls leave one `interval` apart, and `burst` of them at once after a rest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pacing {
    /// When the next call would be due if none had been early.
    due: Moment,
}

/// A rate found out by being limited.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    /// Calls a second at `since`.
    base: f64,
    /// When the credential was free to send again.
    since: Moment,
    /// Whether nothing is known yet: then the rate doubles each second.
    is_guess: bool,
    second: Moment,
    count: u32,
    last: u32,
}

/// Calls a second, the first time that a credential may send again.
const FIRST: f64 = 10.0;
/// What is left of the rate that was too much.
const DECREASE: f64 = 0.7;
/// How much of it comes back each second.
const GROWTH: f64 = 0.05;
/// One call in two seconds is slow enough for any limit whose wait is told in seconds.
const LEAST: f64 = 0.5;
/// Above this there is nothing to pace.
const MOST: f64 = 1000.0;
const SECOND: Duration = Duration::from_secs(1);

// === impl Pacing ===

impl Pacing {
    /// When the next call may leave.
    pub fn earliest(&self, interval: Duration, burst: u32) -> Moment {
        self.due.saturating_sub(interval.saturating_mul(burst.saturating_sub(1)))
    }

    /// A call leaves.
    pub fn leaves(&mut self, now: Moment, interval: Duration) {
        self.due = self.due.max(now) + interval;
    }
}

// === impl Learned ===

impl Learned {
    /// Nothing is known but that there is a limit.
    pub fn guess(since: Moment) -> Self {
        Self { base: FIRST, since, is_guess: true, second: since, count: 0, last: 0 }
    }

    /// The time between two calls.
    pub fn interval(&self, now: Moment) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate(now))
    }

    fn rate(&self, now: Moment) -> f64 {
        let seconds = now.saturating_sub(self.since).as_secs_f64();
        let rate = if self.is_guess {
            self.base * seconds.min(20.0).exp2()
        } else {
            self.base * (1.0 + GROWTH * seconds)
        };
        rate.clamp(LEAST, MOST)
    }

    /// A call leaves.
    pub fn leaves(&mut self, now: Moment) {
        if now >= self.second + SECOND * 2 {
            (self.second, self.last, self.count) = (now, 0, 0);
        } else if now >= self.second + SECOND {
            (self.second, self.last, self.count) = (self.second + SECOND, self.count, 0);
        }
        self.count += 1;
    }

    /// It was too fast, and may send again at `since`.
    pub fn limited(&mut self, now: Moment, since: Moment) {
        let seen = f64::from(self.last.max(self.count));
        let rate = self.rate(now).min(seen.max(LEAST)) * DECREASE;
        *self = Self { base: rate.max(LEAST), since, is_guess: false, second: since, count: 0, last: 0 };
    }

    /// The gate stays shut until then after all.
    pub fn postpone(&mut self, since: Moment) {
        self.since = self.since.max(since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_leaves_at_once_and_then_one_an_interval() {
        let (mut pacing, interval) = (Pacing::default(), ms(100));
        let mut now = ms(10_000);
        let mut left = Vec::new();
        for _ in 0..6 {
            now = now.max(pacing.earliest(interval, 3));
            pacing.leaves(now, interval);
            left.push(now.as_millis() - 10_000);
        }
        assert_eq!(left, [0, 0, 0, 100, 200, 300]);
    }

    #[test]
    fn a_learned_rate_is_below_what_was_too_much_and_grows_slowly() {
        let mut learned = Learned::guess(ms(0));
        assert_eq!(learned.interval(ms(0)), ms(100));
        assert_eq!(learned.interval(ms(1000)), ms(50));
        for call in 0..60 {
            learned.leaves(ms(2000 + call * 16));
        }
        learned.limited(ms(3000), ms(10_000));
        let rate = |now| 1.0 / learned.interval(ms(now)).as_secs_f64();
        assert!((41.5..42.5).contains(&rate(10_000)), "0.7 of the 60 that left in the last second");
        assert!((62.5..63.5).contains(&rate(20_000)), "half as much again after ten seconds");
    }
}
