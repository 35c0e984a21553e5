//! Pure. How many calls the upstream bears at once, found out by additive increase and multiplicative decrease.
//!
//! Each success while at least half of the slots are used adds 1/limit, so a full round of them adds one. A sign of
//! congestion (429, 503, 504, 408, no connection, no head in time) leaves 70 %, once for all calls that were under
//! way at that time: those say the same thing again.
//!
//! Not gradient or Vegas, which read congestion from latency: simulated with harmless changes of latency, such as a
//! slow list endpoint, they refused half of the good traffic.

/// See the module.
#[derive(Debug, Clone)]
pub struct Adaptive {
    limit: f64,
    min: u32,
    max: u32,
    /// How often it was decreased.
    epoch: u32,
}

/// What is left after a decrease.
const DECREASE: f64 = 0.7;

// === impl Adaptive ===

impl Adaptive {
    /// Begins with `start`; stays from `min` to `max`.
    pub fn new(start: u32, min: u32, max: u32) -> Self {
        let max = max.max(1);
        let min = min.clamp(1, max);
        Self { limit: f64::from(start.clamp(min, max)), min, max, epoch: 0 }
    }

    /// How many calls at once.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a u32")]
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Into which epoch a call begins that begins now.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether a success would make it grow.
    pub fn grows_at(&self, in_flight: u32) -> bool {
        self.limit() < self.max && u64::from(in_flight) * 2 >= u64::from(self.limit())
    }

    /// A call succeeded while so many were in flight, itself counted.
    pub fn succeeded(&mut self, in_flight: u32) {
        if self.grows_at(in_flight) {
            self.limit = (self.limit + 1.0 / self.limit).min(f64::from(self.max));
        }
    }

    /// A call that began in `epoch` met congestion.
    pub fn congested(&mut self, epoch: u32) {
        if epoch == self.epoch {
            self.epoch = self.epoch.wrapping_add(1);
            self.limit = (self.limit * DECREASE).max(f64::from(self.min));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_one_a_round_only_while_it_is_used() {
        let mut adaptive = Adaptive::new(16, 2, 128);
        for _ in 0..1000 {
            adaptive.succeeded(7);
        }
        assert_eq!(adaptive.limit(), 16, "half is not used");
        for _ in 0..17 {
            adaptive.succeeded(16);
        }
        assert_eq!(adaptive.limit(), 17);
        for _ in 0..100_000 {
            adaptive.succeeded(128);
        }
        assert_eq!(adaptive.limit(), 128);
        assert!(!adaptive.grows_at(128));
    }

    #[test]
    fn many_failures_of_one_moment_decrease_it_once_and_never_below_the_least() {
        let mut adaptive = Adaptive::new(100, 2, 128);
        let epoch = adaptive.epoch();
        for _ in 0..50 {
            adaptive.congested(epoch);
        }
        assert_eq!(adaptive.limit(), 70);
        for _ in 0..50 {
            adaptive.congested(adaptive.epoch());
        }
        assert_eq!(adaptive.limit(), 2);
    }

    #[test]
    fn impossible_settings_still_let_one_through() {
        assert_eq!(Adaptive::new(16, 2, 1).limit(), 1);
        assert_eq!(Adaptive::new(0, 0, 0).limit(), 1);
    }
}
