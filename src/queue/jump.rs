//! Pure. Notices that the wall clock jumped forward, so that this alone gives no write up, and forgets none.
//!
//! Ages are told by the wall clock, since they last over restarts. A clock that was set wrong for a moment would
//! expire every write at once, and forget every answer by which a repeat is recognised. So each look compares it with
//! the span that passed by the monotonic clock, and after a jump nothing is old for an hour: time for a person to set
//! it right, or for the writes to be sent. At a start there is no earlier look: the newest time in the store stands for
//! it. A machine that was off for long is thus taken for a clock that jumped, which costs an hour and loses nothing.

use super::pace::Moment;
use jiff::Timestamp;
use std::time::Duration;

/// How far ahead of the monotonic clock the wall clock may run between two looks; and how long a jump counts.
const JUMP: Duration = Duration::from_secs(3600);

/// The last look at both clocks.
#[derive(Debug)]
pub(super) struct Sight {
    wall: Timestamp,
    moment: Moment,
    expires_from: Moment,
}

/// What a look shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// How far the wall clock jumped since the last look.
    pub jump: Option<Duration>,
    /// Whether writes may expire.
    pub may_expire: bool,
}

// === impl Sight ===

impl Sight {
    /// The first look, at the queue's start. `newest`: the newest time that the store knows of.
    pub(super) fn new(wall: Timestamp, newest: Option<Timestamp>) -> Self {
        let ahead = newest.map_or(Duration::ZERO, |newest| crate::clock::since(wall, newest));
        let expires_from = if ahead > JUMP { JUMP } else { Moment::ZERO };
        Self { wall, moment: Moment::ZERO, expires_from }
    }

    /// Whether the start counts as a jump.
    pub(super) fn is_jump(&self) -> bool {
        self.expires_from > self.moment
    }

    /// A further look.
    pub(super) fn look(&mut self, wall: Timestamp, moment: Moment) -> Look {
        let passed = moment.saturating_sub(self.moment);
        let ahead = crate::clock::since(wall, self.wall).saturating_sub(passed);
        self.wall = wall;
        self.moment = moment;
        let jump = (ahead > JUMP).then_some(ahead);
        if jump.is_some() {
            self.expires_from = moment + JUMP;
        }
        Look { jump, may_expire: moment >= self.expires_from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_forward_expires_nothing_for_an_hour() {
        let at = |seconds| crate::clock::after(Timestamp::UNIX_EPOCH, Duration::from_secs(seconds));
        let moment = Duration::from_secs;
        let mut sight = Sight::new(at(0), None);
        assert_eq!(sight.look(at(7200), moment(7200)), Look { jump: None, may_expire: true });
        let look = sight.look(at(1_000_000), moment(7205));
        assert!(look.jump.is_some() && !look.may_expire);
        assert_eq!(sight.look(at(1_000_005), moment(7210)), Look { jump: None, may_expire: false });
        // Back again is no jump.
        assert_eq!(sight.look(at(7215), moment(7215)), Look { jump: None, may_expire: false });
        assert_eq!(sight.look(at(10_805), moment(10_805)), Look { jump: None, may_expire: true });
    }

    #[test]
    fn a_start_far_ahead_of_what_the_store_saw_is_a_jump() {
        let at = |seconds| crate::clock::after(Timestamp::UNIX_EPOCH, Duration::from_secs(seconds));
        let moment = Duration::from_secs;
        let mut sight = Sight::new(at(1_000_000), Some(at(0)));
        assert!(sight.is_jump());
        assert_eq!(sight.look(at(1_000_005), moment(5)), Look { jump: None, may_expire: false });
        assert_eq!(sight.look(at(1_003_605), moment(3605)), Look { jump: None, may_expire: true });
        // A newest time that lies ahead is none.
        assert!(!Sight::new(at(0), Some(at(1_000_000))).is_jump());
        assert!(!Sight::new(at(3600), Some(at(0))).is_jump());
    }
}
