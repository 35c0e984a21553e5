//! The one source of wall time.
//!
//! Freshness, ages, audit stamps and retention need a calendar; everything else uses `tokio::time::Instant`. In
//! production the clock reads the system's. In tests it is an anchor plus tokio's time, so that a paused runtime
//! moves freshness, windows, buckets and back-off together. A wall clock may jump: who compares two of its
//! readings must treat a negative difference as "unknown", never as "younger".

use jiff::Timestamp;
use tokio::time::Instant;

/// Gives wall time. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    System,
    Anchored {
        wall: Timestamp,
        at: Instant,
    },
    #[cfg(test)]
    Hand(&'static std::sync::atomic::AtomicI64),
}

// === impl Clock ===

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `wall` now and moves with tokio's time. Needs a tokio runtime when it is paused.
    pub fn anchored(wall: Timestamp) -> Self {
        Self(Source::Anchored { wall, at: Instant::now() })
    }

    /// A clock that shows what a test sets, in seconds since 1970: it may jump.
    #[cfg(test)]
    pub(crate) fn hand(seconds: &'static std::sync::atomic::AtomicI64) -> Self {
        Self(Source::Hand(seconds))
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        match self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place")]
            Source::System => Timestamp::now(),
            Source::Anchored { wall, at } => wall
                .checked_add(
                    jiff::SignedDuration::try_from(at.elapsed()).unwrap_or(jiff::SignedDuration::MAX),
                )
                .unwrap_or(Timestamp::MAX),
            #[cfg(test)]
            Source::Hand(seconds) => {
                Timestamp::from_second(seconds.load(std::sync::atomic::Ordering::Relaxed)).unwrap_or_default()
            }
        }
    }
}

/// The time from `earlier` to `later`; zero when the clock went back in between.
pub fn since(later: Timestamp, earlier: Timestamp) -> std::time::Duration {
    std::time::Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// `at` plus `span`, held at the end of time.
pub fn after(at: Timestamp, span: std::time::Duration) -> Timestamp {
    jiff::SignedDuration::try_from(span)
        .ok()
        .and_then(|span| at.checked_add(span).ok())
        .unwrap_or(Timestamp::MAX)
}

/// `at` less `span`, held at the beginning of time.
pub fn before(at: Timestamp, span: std::time::Duration) -> Timestamp {
    jiff::SignedDuration::try_from(span)
        .ok()
        .and_then(|span| at.checked_sub(span).ok())
        .unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn an_anchored_clock_moves_with_tokio() {
        let clock = Clock::anchored(Timestamp::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(since(clock.now(), Timestamp::UNIX_EPOCH), Duration::from_secs(90));
    }

    #[test]
    fn a_clock_that_went_back_gives_no_negative_age() {
        let later = after(Timestamp::UNIX_EPOCH, Duration::from_secs(5));
        assert_eq!(since(Timestamp::UNIX_EPOCH, later), Duration::ZERO);
    }
}
