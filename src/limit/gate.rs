//! Pure. The gate of one credential: shut by a 429, opened by time, left one at a time.
//!
//! A 429 sets `shut_until` to the greatest of what was told so far: an older answer never shortens it. What told no
//! time, or garbage, counts as 2 s, twice as long each time in a row, at most 15 minutes. Up to 20 % are added, never
//! taken off, so that many proxies do not come back in the same millisecond.
//!
//! Who waits stands in its lane and leaves when it is its turn, at a pace (see `pacing`): live reads before live
//! writes before refreshes before replay; of ten releases one is replay's, so that live traffic cannot starve what was
//! promised with a 202. A wait that cannot end in time is refused at once: the caller has an old copy or a queue.
//!
//! The best of those that wait sleeps until the gate opens; the rest sleep until they are woken by who left before.

use super::pacing::{Learned, Pacing};
use super::{LANES, Moment, index};
use crate::context::Lane;
use std::collections::VecDeque;
use std::time::Duration;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    shut_until: Moment,
    /// How often in a row no usable time was told.
    misses: u32,
    learned: Option<Learned>,
    told: Option<Told>,
    pacing: Pacing,
    waiting: [VecDeque<u64>; LANES],
    /// How many left since replay's last turn.
    since_replay: u32,
    /// The episode that began with the last 429 that counted.
    episode: u64,
}

/// What happens to a gate.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// A call wants to leave and can wait until then. Its number is unique.
    Arrived {
        /// Its number.
        id: u64,
        /// Its lane.
        lane: Lane,
        /// When waiting makes no sense any more.
        until: Moment,
    },
    /// A call that waits looks whether it is its turn.
    Looks {
        /// Its number.
        id: u64,
        /// Its lane.
        lane: Lane,
    },
    /// A call gave up waiting.
    Left {
        /// Its number.
        id: u64,
        /// Its lane.
        lane: Lane,
    },
    /// A 429 came.
    Limited {
        /// The episode in which its request left.
        began: u64,
        /// The number of the next episode, if this begins one.
        next: u64,
        /// Its `Retry-After`, if that made sense.
        wait: Option<Duration>,
        /// From 0 to 1.
        jitter: f64,
    },
    /// An answer told how much is left (`RateLimit-Remaining`, `RateLimit-Reset`).
    Told {
        /// How many calls.
        remaining: u32,
        /// For how long.
        reset: Duration,
    },
    /// An answer that was not a 429 came.
    Answered {
        /// The episode in which its request left.
        began: u64,
    },
}

/// What a step says to who asked, and who is to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// For who asked.
    pub verdict: Verdict,
    /// Who looks again.
    pub wake: Option<u64>,
}

/// What a call is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave now.
    Go,
    /// Look again then, or when woken. `None`: when woken.
    Wait(Option<Moment>),
    /// It cannot leave in time.
    Refused(Duration),
    /// Nothing to tell.
    Noted,
}

/// What is configured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The time between two calls; zero: no pace.
    pub interval: Duration,
    /// How many may leave at once after a rest.
    pub burst: u32,
}

/// A pace that the upstream told.
#[derive(Clone, Copy, Debug)]
struct Told {
    interval: Duration,
    until: Moment,
}

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The wait where none was told.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// How much is added at random at most.
const JITTER: f64 = 0.2;
/// How long a pace that was learned is kept without a further 429.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Below this many calls left, what is told is a pace.
const SCARCE: u32 = 20;
/// Of so many releases one is replay's.
const REPLAY_TURN: u32 = 10;

// === impl Gate ===

impl Gate {
    /// What happens, and what follows from it.
    pub fn step(&mut self, now: Moment, rules: &Rules, input: Input) -> Output {
        match input {
            Input::Arrived { id, lane, until } => self.arrived(now, rules, id, lane, until),
            Input::Looks { id, lane } => self.looks(now, rules, id, lane),
            Input::Left { id, lane } => {
                let was_best = self.best() == Some((lane, id));
                self.waiting[index(lane)].retain(|other| *other != id);
                Output::noted(if was_best { self.best_id() } else { None })
            }
            Input::Limited { began, next, wait, jitter } => self.limited(now, began, next, wait, jitter),
            Input::Told { remaining, reset } => self.told(now, remaining, reset.min(LONGEST)),
            Input::Answered { began } => {
                if began >= self.episode {
                    self.misses = 0;
                }
                Output::noted(None)
            }
        }
    }

    /// Until when nothing may leave; `None` when it is open.
    pub fn shut_for(&self, now: Moment) -> Option<Duration> {
        self.shut_until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Whether it can be forgotten: a new one would do the same.
    pub fn is_idle(&self, now: Moment) -> bool {
        now >= self.shut_until
            && (self.learned.is_none() || now >= self.shut_until + REMEMBERED)
            && self.told.is_none_or(|told| now >= told.until)
            && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    fn arrived(&mut self, now: Moment, rules: &Rules, id: u64, lane: Lane, until: Moment) -> Output {
        let ahead: usize = self.waiting[..=index(lane)].iter().map(VecDeque::len).sum();
        let opens = self.opens_at(now, rules);
        if opens <= now && ahead == 0 && (self.best_id().is_none() || self.since_replay + 1 < REPLAY_TURN) {
            return self.leave(now, rules, lane);
        }
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let turn = opens.max(now).saturating_add(self.interval(now.max(opens), rules).saturating_mul(ahead));
        if turn > until {
            return Output { verdict: Verdict::Refused(turn.saturating_sub(now)), wake: None };
        }
        self.waiting[index(lane)].push_back(id);
        self.looks(now, rules, id, lane)
    }

    fn looks(&mut self, now: Moment, rules: &Rules, id: u64, lane: Lane) -> Output {
        if self.best() != Some((lane, id)) {
            return Output { verdict: Verdict::Wait(None), wake: None };
        }
        let opens = self.opens_at(now, rules);
        if opens > now {
            return Output { verdict: Verdict::Wait(Some(opens)), wake: None };
        }
        self.waiting[index(lane)].pop_front();
        self.leave(now, rules, lane)
    }

    fn leave(&mut self, now: Moment, rules: &Rules, lane: Lane) -> Output {
        let interval = self.interval(now, rules);
        self.pacing.leaves(now, interval);
        if let Some(learned) = &mut self.learned {
            learned.leaves(now);
        }
        self.since_replay = if lane == Lane::Replay { 0 } else { self.since_replay.saturating_add(1) };
        Output { verdict: Verdict::Go, wake: self.best_id() }
    }

    fn limited(&mut self, now: Moment, began: u64, next: u64, wait: Option<Duration>, jitter: f64) -> Output {
        let is_new = began >= self.episode;
        let wait = wait.unwrap_or_else(|| {
            let wait = FIRST_WAIT.saturating_mul(1 << self.misses.min(16));
            // Those that were under way at the same time say the same thing once.
            self.misses += u32::from(is_new);
            wait
        });
        let wait = wait.min(LONGEST);
        let wait = wait + wait.mul_f64(JITTER * jitter.clamp(0.0, 1.0));
        self.shut_until = self.shut_until.max(now + wait);
        match &mut self.learned {
            Some(learned) if is_new => learned.limited(now, self.shut_until),
            Some(learned) => learned.postpone(self.shut_until),
            None => self.learned = Some(Learned::guess(self.shut_until)),
        }
        if is_new {
            self.episode = next;
        }
        Output::noted(None)
    }

    fn told(&mut self, now: Moment, remaining: u32, reset: Duration) -> Output {
        if reset.is_zero() || remaining > SCARCE {
            self.told = None;
        } else if remaining == 0 {
            self.shut_until = self.shut_until.max(now + reset);
        } else {
            self.told = Some(Told { interval: reset / remaining, until: now + reset });
        }
        Output::noted(None)
    }

    fn interval(&self, now: Moment, rules: &Rules) -> Duration {
        let told = self.told.filter(|told| now < told.until).map_or(Duration::ZERO, |told| told.interval);
        let learned = self
            .learned
            .filter(|_| now < self.shut_until + REMEMBERED)
            .map_or(Duration::ZERO, |learned| learned.interval(now));
        rules.interval.max(told).max(learned)
    }

    fn opens_at(&self, now: Moment, rules: &Rules) -> Moment {
        let interval = self.interval(now, rules);
        let burst = if interval > rules.interval { 1 } else { rules.burst };
        self.shut_until.max(self.pacing.earliest(interval, burst))
    }

    fn best_id(&self) -> Option<u64> {
        self.best().map(|(_, id)| id)
    }

    fn best(&self) -> Option<(Lane, u64)> {
        let first = |lane: Lane| self.waiting[index(lane)].front().map(|id| (lane, *id));
        let replay = first(Lane::Replay).filter(|_| self.since_replay + 1 >= REPLAY_TURN);
        replay.or_else(|| super::IN_TURN.into_iter().find_map(first))
    }
}

// === impl Output ===

impl Output {
    fn noted(wake: Option<u64>) -> Self {
        Self { verdict: Verdict::Noted, wake }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Rules = Rules { interval: Duration::ZERO, burst: 1 };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limited(gate: &mut Gate, now: Moment, wait: Option<u64>) {
        let next = gate.episode + 1;
        gate.step(now, &FREE, Input::Limited { began: gate.episode, next, wait: wait.map(s), jitter: 0.0 });
    }

    fn arrive(gate: &mut Gate, now: Moment, id: u64, lane: Lane, until: Moment) -> Verdict {
        gate.step(now, &FREE, Input::Arrived { id, lane, until }).verdict
    }

    #[test]
    fn a_429_shuts_it_until_retry_after_and_an_older_one_never_shortens_it() {
        let mut gate = Gate::default();
        assert_eq!(arrive(&mut gate, s(1), 1, Lane::LiveRead, s(3)), Verdict::Go);
        limited(&mut gate, s(1), Some(7));
        limited(&mut gate, s(2), Some(1));
        assert_eq!(gate.shut_for(s(7)), Some(s(1)));
        assert_eq!(gate.shut_for(s(8)), None);
        assert_eq!(
            arrive(&mut gate, s(2), 2, Lane::LiveRead, s(4)),
            Verdict::Refused(s(6)),
            "refused at once"
        );
        assert_eq!(arrive(&mut gate, s(7), 3, Lane::LiveRead, s(9)), Verdict::Wait(Some(s(8))));
        assert_eq!(gate.step(s(8), &FREE, Input::Looks { id: 3, lane: Lane::LiveRead }).verdict, Verdict::Go);
    }

    #[test]
    fn without_a_usable_time_the_wait_doubles_to_fifteen_minutes_and_an_answer_resets_it() {
        let mut gate = Gate::default();
        let mut now = s(0);
        for expected in [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            limited(&mut gate, now, None);
            assert_eq!(gate.shut_for(now), Some(s(expected)));
            now += s(expected);
        }
        gate.step(now, &FREE, Input::Answered { began: gate.episode });
        limited(&mut gate, now, None);
        assert_eq!(gate.shut_for(now), Some(s(2)));
        // A day is not what a rate limit means.
        limited(&mut gate, now, Some(86_400));
        assert_eq!(gate.shut_for(now), Some(s(900)));
    }

    #[test]
    fn jitter_only_ever_adds_and_at_most_a_fifth() {
        for (jitter, expected) in [(0.0, 10_000), (0.5, 11_000), (1.0, 12_000), (9.0, 12_000), (-1.0, 10_000)]
        {
            let mut gate = Gate::default();
            gate.step(s(0), &FREE, Input::Limited { began: 0, next: 1, wait: Some(s(10)), jitter });
            assert_eq!(gate.shut_for(s(0)), Some(Duration::from_millis(expected)));
        }
    }

    #[test]
    fn those_that_wait_leave_one_by_one_in_the_order_of_their_lanes() {
        let mut gate = Gate::default();
        limited(&mut gate, s(0), Some(2));
        let lanes = [Lane::Replay, Lane::Refresh, Lane::LiveWrite, Lane::LiveRead, Lane::LiveRead];
        for (id, lane) in lanes.into_iter().enumerate() {
            let verdict = arrive(&mut gate, s(1), id as u64, lane, s(60));
            assert!(matches!(verdict, Verdict::Wait(_)), "{lane:?}");
        }
        assert_eq!(gate.waiting(), 5);
        let (mut now, mut left) = (s(1), Vec::new());
        while let Some((lane, id)) = gate.best() {
            match gate.step(now, &FREE, Input::Looks { id, lane }).verdict {
                Verdict::Go => left.push((id, now)),
                Verdict::Wait(Some(at)) => {
                    assert!(at > now);
                    now = at;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(left.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 4, 2, 1, 0]);
        assert!(left.windows(2).all(|pair| pair[1].1 >= pair[0].1 + Duration::from_millis(50)), "{left:?}");
    }

    #[test]
    fn one_of_ten_releases_is_replays_however_many_live_calls_wait() {
        let mut gate = Gate::default();
        limited(&mut gate, s(0), Some(1));
        arrive(&mut gate, s(0), 1000, Lane::Replay, s(600));
        arrive(&mut gate, s(0), 1001, Lane::Replay, s(600));
        for id in 0..40 {
            arrive(&mut gate, s(0), id, Lane::LiveRead, s(600));
        }
        let (mut now, mut order) = (s(1), Vec::new());
        while let Some((lane, id)) = gate.best() {
            match gate.step(now, &FREE, Input::Looks { id, lane }).verdict {
                Verdict::Go => order.push(id),
                Verdict::Wait(Some(at)) => now = at,
                other => panic!("{other:?}"),
            }
        }
        let places: Vec<_> = (0..order.len()).filter(|place| order[*place] >= 1000).collect();
        assert_eq!(places, [9, 19]);
    }

    #[test]
    fn who_leaves_wakes_the_next_and_who_gives_up_too() {
        let mut gate = Gate::default();
        limited(&mut gate, s(0), Some(2));
        for id in 1..=3 {
            arrive(&mut gate, s(1), id, Lane::LiveRead, s(60));
        }
        let lane = Lane::LiveRead;
        assert_eq!(gate.step(s(1), &FREE, Input::Left { id: 1, lane }).wake, Some(2));
        let out = gate.step(s(2), &FREE, Input::Looks { id: 2, lane });
        assert_eq!(out, Output { verdict: Verdict::Go, wake: Some(3) });
        assert_eq!(gate.step(s(2), &FREE, Input::Left { id: 3, lane }).wake, None);
    }

    #[test]
    fn what_the_upstream_tells_paces_only_when_little_is_left() {
        let mut gate = Gate::default();
        gate.step(s(0), &FREE, Input::Told { remaining: 500, reset: s(60) });
        assert!(gate.is_idle(s(0)));
        gate.step(s(0), &FREE, Input::Told { remaining: 10, reset: s(20) });
        assert_eq!(arrive(&mut gate, s(1), 1, Lane::LiveRead, s(1)), Verdict::Go);
        assert_eq!(arrive(&mut gate, s(1), 2, Lane::LiveRead, s(9)), Verdict::Wait(Some(s(3))));
        gate.step(s(1), &FREE, Input::Left { id: 2, lane: Lane::LiveRead });
        gate.step(s(1), &FREE, Input::Told { remaining: 0, reset: s(20) });
        assert_eq!(gate.shut_for(s(1)), Some(s(20)));
        assert!(gate.is_idle(s(21)));
    }

    #[test]
    fn a_configured_rate_is_kept_without_any_429() {
        let rules = Rules { interval: Duration::from_millis(100), burst: 2 };
        let mut gate = Gate::default();
        let mut verdicts = Vec::new();
        for id in 0..3 {
            let input = Input::Arrived { id, lane: Lane::LiveRead, until: s(20) };
            verdicts.push(gate.step(s(10), &rules, input).verdict);
        }
        assert_eq!(verdicts, [Verdict::Go, Verdict::Go, Verdict::Wait(Some(Duration::from_millis(10_100)))]);
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_loses_nobody() {
        let mut gate = Gate::default();
        limited(&mut gate, s(5), Some(7));
        assert!(matches!(arrive(&mut gate, s(5), 1, Lane::LiveRead, s(60)), Verdict::Wait(Some(_))));
        let out = gate.step(s(100_000), &FREE, Input::Looks { id: 1, lane: Lane::LiveRead });
        assert_eq!(out.verdict, Verdict::Go);
        assert!(gate.is_idle(s(200_000)));
    }
}
