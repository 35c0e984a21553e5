//! Pure. How many attempts may be further ones: a share of the first ones of the last ten seconds, and some a second.
//!
//! First attempts are counted by one atomic addition, without a clock; what happened within the last ten seconds is
//! found out when a retry asks. Moments are spans since the start.

use std::collections::VecDeque;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub struct Budget {
    /// How many first attempts there had been by then, about one entry a second in which a retry asked.
    seen: VecDeque<(Duration, u64)>,
    /// When retries were decided.
    spent: VecDeque<Duration>,
}

/// What is configured.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The share of first attempts.
    pub share: f64,
    /// Retries a second that are there in any case.
    pub per_second: u32,
}

/// How far back it looks.
const WINDOW: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(1);

// === impl Budget ===

impl Default for Budget {
    fn default() -> Self {
        Self { seen: VecDeque::from([(Duration::ZERO, 0)]), spent: VecDeque::new() }
    }
}

impl Budget {
    /// Spends one retry, if there is one. `firsts` is how many first attempts there have been since the start.
    pub fn spend(&mut self, now: Duration, firsts: u64, terms: Terms) -> bool {
        let from = now.saturating_sub(WINDOW);
        while self.spent.front().is_some_and(|at| *at < from) {
            self.spent.pop_front();
        }
        while self.seen.get(1).is_some_and(|(at, _)| *at <= from) {
            self.seen.pop_front();
        }
        if self.seen.back().is_none_or(|(at, _)| now >= *at + STEP) {
            self.seen.push_back((now, firsts));
        }
        let (since, before) = self.seen.front().copied().unwrap_or((now, firsts));
        let span = now.saturating_sub(since);
        // Nobody asked for a while: the average since then.
        let part = if span > WINDOW { WINDOW.as_secs_f64() / span.as_secs_f64() } else { 1.0 };
        #[expect(clippy::cast_precision_loss, reason = "a count of calls within seconds")]
        let firsts = firsts.saturating_sub(before) as f64 * part;
        #[expect(clippy::cast_precision_loss, reason = "a count of retries within seconds")]
        let after = (self.spent.len() + 1) as f64;
        let is_granted = after <= firsts * terms.share + f64::from(terms.per_second) * WINDOW.as_secs_f64();
        if is_granted {
            self.spent.push_back(now);
        }
        is_granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { share: 0.1, per_second: 1 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn at_two_hundred_a_second_that_all_fail_it_grants_a_tenth_and_ten_in_any_ten_seconds() {
        let mut budget = Budget::default();
        let mut granted = Vec::new();
        for call in 1..=200 * 40_u64 {
            let now = ms(call * 5);
            if budget.spend(now, call, TERMS) {
                granted.push(now);
            }
        }
        for end in (10..=40).map(|second| ms(second * 1000)) {
            let within = granted.iter().filter(|at| **at <= end && **at + WINDOW > end).count();
            assert!((150..=240).contains(&within), "{within} in the 10 s before {end:?}");
        }
    }

    #[test]
    fn a_trickle_has_one_a_second_and_a_long_silence_saves_up_no_more() {
        let mut budget = Budget::default();
        let granted = (0..50).filter(|call| budget.spend(ms(1000 + call), *call, TERMS)).count();
        assert!((10..=15).contains(&granted), "{granted}");
        let granted = (0..50).filter(|call| budget.spend(ms(10_000_000 + call), 50 + call, TERMS)).count();
        assert!((10..=15).contains(&granted), "{granted}");
    }

    #[test]
    fn without_terms_there_is_none() {
        let mut budget = Budget::default();
        assert!(!budget.spend(ms(5), 1000, Terms { share: 0.0, per_second: 0 }));
    }
}
