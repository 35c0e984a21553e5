//! Pure. The automatic machine of one breaker: when it trips, how long it waits, when it closes.
//!
//! ```text
//!            trip                      wait over
//!  Closed ─────────────► Open{until} ─────────────► HalfOpen ◄── forced_open lifted
//!    ▲                    ▲   ▲                      │    │
//!    │ ramp over   relapse│   └──────────────────────┘    │ probes passed
//!    └───────────────── Ramping ◄─────────────────────────┘
//! ```
//!
//! Everything here is a function of its arguments: time, settings, counts and the roll of a die are given. What runs
//! at once is the matter of [`super::word`] and [`super::scope`].

use super::classify::Fault;
use super::window::{BUCKETS, Counts};
use super::word::{self, At, Mode, State, Tally, Word};
use crate::config::raw;
use std::fmt;
use std::time::Duration;

/// The settings of one breaker as its machine uses them, held inside what the state word can count.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tuning {
    pub(super) bucket: u64,
    pub(super) min_calls: u32,
    pub(super) failure_share: f64,
    pub(super) row: u32,
    pub(super) row_span: u64,
    pub(super) slow_share: f64,
    pub(super) slow: Duration,
    pub(super) open_wait: u64,
    pub(super) open_wait_max: u64,
    pub(super) retry_after_max: u64,
    /// Probes at once.
    pub(super) probes: u32,
    pub(super) successes: u32,
    pub(super) failures: u32,
    pub(super) quiet_span: u64,
    pub(super) ramp: u64,
    /// Most calls in flight, of which a ramp allows a share.
    pub(super) limiter_max: u32,
    /// From the start of a probe's attempt to when it is overdue.
    pub(super) probe_limit: u64,
}

/// What a breaker stops or lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The way to Flexport.
    Global,
    /// The reads of a group.
    Read,
    /// The writes of a group: probed one at a time, and only when its reads are well.
    Write,
}

/// The automatic state with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Ramping,
    HalfOpen,
    Open { until: At },
}

/// A breaker's slow-moving part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Machine {
    pub(super) phase: Phase,
    /// Since when.
    pub(super) since: At,
    /// Why it is in this phase.
    pub(super) cause: Cause,
    /// When and why it last opened by itself.
    pub(super) trip: Option<(At, Cause)>,
    /// How many times the open wait has doubled, plus one.
    level: u32,
    /// Since when it has been healthy: closed or ramping.
    healthy_since: Option<At>,
}

/// What makes the machine move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Input {
    /// It must open: from closed or ramping by its counts, from half-open by its probes. Not before `not_before`.
    Trip {
        /// Why.
        cause: Cause,
        /// What a 503 asked for.
        not_before: At,
    },
    /// The open wait is over.
    WaitOver,
    /// The probes have shown that it works, or the ramp is at its end.
    Passed(Cause),
    /// An earlier run ended in an outage.
    Resume,
    /// An operator changed the override.
    Override {
        /// From this.
        from: Mode,
        /// To this.
        to: Mode,
    },
}

/// What counts say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It must open again.
    Reopen(Cause),
    /// It takes the next step to closed.
    Pass(Cause),
}

/// Why a breaker is in its state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cause {
    /// It has not moved since the start.
    Start,
    /// An earlier run ended in an outage.
    Resumed,
    /// Too large a share of calls failed.
    Failures(Counts),
    /// Too many failed in a row.
    Row {
        /// How many.
        count: u32,
        /// In which time.
        span: u64,
    },
    /// Too large a share of calls was slow.
    Slow(Counts),
    /// Failures in many groups at once.
    Everywhere {
        /// In how many groups.
        groups: u32,
        /// All calls of all groups.
        counts: Counts,
    },
    /// Probes failed.
    ProbesFailed(u32),
    /// Too many failed in the ramp.
    Relapse {
        /// How many failed.
        failures: u32,
        /// Of how many.
        calls: u32,
    },
    /// The open wait was over.
    WaitOver,
    /// Enough probes succeeded.
    Successes(u32),
    /// A run of successes over a long time.
    Run(u64),
    /// Enough answers that say nothing else than that somebody answers.
    Answers(u32),
    /// The ramp came to its end.
    RampOver,
    /// The override was changed.
    Override {
        /// To this.
        to: Mode,
    },
}

/// What is known of failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// How many.
    pub(super) count: u32,
    /// From the first to the last.
    pub(super) span: u64,
}

/// After how long without a failure a row of failures is forgotten.
pub(super) const ROW_KEPT: u64 = 600_000;
/// The longest row that is told from a longer one.
pub(super) const ROW_MOST: u32 = 0xFFF;
/// A minute of health lowers the level by one.
const HEALTHY_MINUTE: u64 = 60_000;
/// Answers of Flexport's own that close, though none says more than that it answers.
const ANSWERS: u32 = 10;
/// Successes that close a breaker of writes, unless its row names another number.
const WRITE_SUCCESSES: u32 = 2;
const WRITE_PROBES: u32 = 1;
const RAMP_SUCCESSES: u32 = 20;
const RAMP_FAILURES: u32 = 10;
const RAMP_QUIET: u64 = 300_000;
const RAMP_FIRST_SHARE: f64 = 0.1;
const RAMP_LEAST: u32 = 2;
const JITTER: f64 = 0.3;
const PROBE_GRACE: Duration = Duration::from_secs(5);
const EVERYWHERE_SHARE: f64 = 0.8;
const EVERYWHERE_CALLS: u32 = 50;
const EVERYWHERE_GROUPS: u32 = 2;

// === impl Tuning ===

impl Tuning {
    /// The settings of one breaker: its own row before those of all.
    pub(super) fn of(
        scope: &str,
        role: Role,
        settings: &raw::Breaker,
        limiter_max: u32,
        attempt_limit: Duration,
    ) -> Self {
        let row = settings.row(scope);
        let own = row.map(|row| row.over(settings));
        let mut tuning = Self::new(own.as_ref().unwrap_or(settings), limiter_max, attempt_limit);
        match role {
            Role::Global | Role::Read => {}
            Role::Write => {
                tuning.probes = WRITE_PROBES;
                if row.is_none_or(|row| row.half_open_successes.is_none()) {
                    tuning.successes = WRITE_SUCCESSES;
                }
            }
        }
        tuning
    }

    fn new(settings: &raw::Breaker, limiter_max: u32, attempt_limit: Duration) -> Self {
        Self {
            bucket: (millis(*settings.window) / BUCKETS as u64).max(1),
            min_calls: settings.min_calls.max(1),
            failure_share: settings.failure_share,
            // Longer rows than can be counted never open it.
            row: if settings.consecutive_failures > ROW_MOST {
                u32::MAX
            } else {
                settings.consecutive_failures.max(1)
            },
            row_span: millis(*settings.consecutive_span),
            slow_share: settings.slow_share,
            slow: *settings.slow,
            open_wait: millis(*settings.open_wait).max(1),
            open_wait_max: millis(*settings.open_wait_max).max(1),
            retry_after_max: millis(*settings.retry_after_max),
            probes: settings.half_open_probes.clamp(1, word::SLOTS as u32),
            successes: settings.half_open_successes.clamp(1, word::MOST),
            failures: settings.half_open_failures.clamp(1, word::MOST),
            quiet_span: millis(*settings.quiet_span),
            ramp: millis(*settings.ramp),
            limiter_max,
            probe_limit: millis(attempt_limit.saturating_add(PROBE_GRACE)).max(1),
        }
    }

    /// The length of the window.
    pub(super) fn window(&self) -> u64 {
        self.bucket * BUCKETS as u64
    }

    /// The open wait of a level, from 1. The roll is in 0..1.
    fn wait(&self, level: u32, roll: f64) -> u64 {
        let doubled = self.open_wait.saturating_mul(1u64 << level.saturating_sub(1).min(32));
        let wait = doubled.min(self.open_wait_max);
        wait + (wait as f64 * JITTER * roll.clamp(0.0, 1.0)) as u64
    }

    /// The level from which on the wait grows no more.
    fn top_level(&self) -> u32 {
        (1..=33).find(|level| self.open_wait << (level - 1) >= self.open_wait_max).unwrap_or(33)
    }
}

// === decisions ===

/// Whether the counts of a closed or ramping breaker open it.
pub(super) fn trips(counts: Counts, row: Row, tuning: &Tuning) -> Option<Cause> {
    if row.count >= tuning.row && row.span >= tuning.row_span {
        return Some(Cause::Row { count: row.count, span: row.span });
    }
    if counts.calls < tuning.min_calls {
        return None;
    }
    let reaches = |part: u32, share: f64| part > 0 && f64::from(part) >= share * f64::from(counts.calls);
    if reaches(counts.failures, tuning.failure_share) {
        return Some(Cause::Failures(counts));
    }
    reaches(counts.slow, tuning.slow_share).then_some(Cause::Slow(counts))
}

/// Whether what the groups see together opens `global`: then it is not one group that is ill.
pub(super) fn trips_everywhere(failing_groups: u32, counts: Counts) -> Option<Cause> {
    let is_everywhere = failing_groups >= EVERYWHERE_GROUPS
        && counts.calls >= EVERYWHERE_CALLS
        && f64::from(counts.failures) >= EVERYWHERE_SHARE * f64::from(counts.calls);
    is_everywhere.then_some(Cause::Everywhere { groups: failing_groups, counts })
}

/// What the counts of a half-open breaker's word decide: a lucky call closes nothing, and a quiet route that only
/// succeeds closes all the same.
pub(super) fn probed(word: Word, last: Tally, now: At, tuning: &Tuning) -> Option<Verdict> {
    if word.failures() >= tuning.failures {
        return Some(Verdict::Reopen(Cause::ProbesFailed(word.failures())));
    }
    if word.successes() >= tuning.successes {
        return Some(Verdict::Pass(Cause::Successes(word.successes())));
    }
    if word.neutrals() >= ANSWERS {
        return Some(Verdict::Pass(Cause::Answers(word.neutrals())));
    }
    // From one success to another: the first of a run is no time away from itself.
    let run = word.run(now).filter(|_| last == Tally::Success && word.successes() >= 2)?;
    (run >= tuning.quiet_span).then_some(Verdict::Pass(Cause::Run(run)))
}

/// How many calls may be in flight when a ramp has lasted this long.
pub(super) fn ramp_cap(elapsed: u64, tuning: &Tuning) -> u32 {
    let part = if tuning.ramp == 0 { 1.0 } else { (elapsed as f64 / tuning.ramp as f64).min(1.0) };
    let share = RAMP_FIRST_SHARE + (1.0 - RAMP_FIRST_SHARE) * part;
    ((share * f64::from(tuning.limiter_max)) as u32).max(RAMP_LEAST)
}

/// What a ramp's counts decide. `quiet` is the time since its beginning or its last failure. Ten failing calls mean
/// a relapse only where they are a quarter of all: a busy route always has some.
pub(super) fn ramped(
    successes: u32,
    failures: u32,
    elapsed: u64,
    quiet: u64,
    tuning: &Tuning,
) -> Option<Verdict> {
    let is_mostly_well = u64::from(failures) * 3 < u64::from(successes);
    if failures >= RAMP_FAILURES && !is_mostly_well {
        let calls = successes.saturating_add(failures);
        return Some(Verdict::Reopen(Cause::Relapse { failures, calls }));
    }
    let is_over =
        elapsed >= tuning.ramp && ((successes >= RAMP_SUCCESSES && is_mostly_well) || quiet >= RAMP_QUIET);
    is_over.then_some(Verdict::Pass(Cause::RampOver))
}

/// The automatic state after an override was changed. What was forced open is probed before it carries traffic
/// again; what is only observed refuses nothing, and counts from nought.
pub(super) fn after_override(phase: Phase, from: Mode, to: Mode) -> Phase {
    match (from, to) {
        (Mode::ForcedOpen, Mode::Auto | Mode::ForcedClosed) => Phase::HalfOpen,
        (_, Mode::Observe) => Phase::Closed,
        (Mode::Auto | Mode::Observe | Mode::ForcedClosed, Mode::Auto | Mode::ForcedClosed)
        | (_, Mode::ForcedOpen) => phase,
    }
}

// === impl Phase ===

impl Phase {
    pub(super) fn state(self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Ramping => State::Ramping,
            Self::HalfOpen => State::HalfOpen,
            Self::Open { until: _ } => State::Open,
        }
    }
}

// === impl Machine ===

impl Machine {
    pub(super) fn new(now: At) -> Self {
        Self {
            phase: Phase::Closed,
            since: now,
            cause: Cause::Start,
            trip: None,
            level: 0,
            healthy_since: Some(now),
        }
    }

    /// The machine after this input; `None` when the input has no meaning in its phase.
    pub(super) fn step(mut self, now: At, input: Input, tuning: &Tuning, roll: f64) -> Option<Self> {
        let (phase, cause) = match (input, self.phase) {
            (Input::Trip { cause, not_before }, Phase::Closed | Phase::Ramping | Phase::HalfOpen) => {
                self.level = (self.recovered(now) + 1).min(tuning.top_level());
                self.healthy_since = None;
                let longest = now.saturating_add(tuning.retry_after_max);
                let until = now.saturating_add(tuning.wait(self.level, roll)).max(not_before.min(longest));
                self.trip = Some((now, cause));
                (Phase::Open { until }, cause)
            }
            (Input::Resume, _) => {
                self.healthy_since = None;
                (Phase::HalfOpen, Cause::Resumed)
            }
            (Input::WaitOver, Phase::Open { until }) if now >= until => (Phase::HalfOpen, Cause::WaitOver),
            (Input::Passed(cause), Phase::HalfOpen) => {
                self.healthy_since = Some(now);
                (Phase::Ramping, cause)
            }
            (Input::Passed(cause), Phase::Ramping) => (Phase::Closed, cause),
            (Input::Override { from, to }, phase) => {
                let next = after_override(phase, from, to);
                if next.state() == phase.state() {
                    // The state stands; its since and cause do too.
                    return Some(self);
                }
                self.level = self.recovered(now);
                self.healthy_since = matches!(next, Phase::Closed).then_some(now);
                (next, Cause::Override { to })
            }
            (Input::Trip { .. }, Phase::Open { .. })
            | (Input::WaitOver, _)
            | (Input::Passed(_), Phase::Closed | Phase::Open { .. }) => return None,
        };
        Some(Self { phase, cause, since: now, ..self })
    }

    /// The level less one for each healthy minute.
    fn recovered(&self, now: At) -> u32 {
        let minutes = self.healthy_since.map_or(0, |since| now.saturating_sub(since) / HEALTHY_MINUTE);
        self.level.saturating_sub(u32::try_from(minutes).unwrap_or(u32::MAX))
    }
}

// === impl Cause ===

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("nothing has happened since the start"),
            Self::Resumed => {
                f.write_str("an earlier run ended in an outage, so a few calls go through as probes")
            }
            Self::Failures(counts) => {
                write!(f, "{} of {} calls failed in the window", counts.failures, counts.calls)
            }
            Self::Row { count, span } => write!(f, "{count} calls failed in a row within {}", seconds(*span)),
            Self::Slow(counts) => {
                write!(f, "{} of {} calls in the window were slow", counts.slow, counts.calls)
            }
            Self::Everywhere { groups, counts } => {
                let Counts { calls, failures, slow: _ } = counts;
                write!(f, "{failures} of {calls} calls failed, in {groups} groups at once")
            }
            Self::ProbesFailed(count) => write!(f, "{count} probes failed"),
            Self::Relapse { failures, calls } => {
                write!(f, "{failures} of {calls} calls failed after the recovery")
            }
            Self::WaitOver => f.write_str("the wait is over, a few calls go through as probes"),
            Self::Successes(count) => write!(f, "{count} probes succeeded"),
            Self::Run(span) => write!(f, "only successes for {}", seconds(*span)),
            Self::Answers(count) => write!(f, "{count} probes were answered in time"),
            Self::RampOver => f.write_str("the calls after the recovery went well"),
            Self::Override { to } => write!(f, "the override was set to {}", to.as_str()),
        }
    }
}

/// For messages.
fn seconds(millis: u64) -> String {
    format!("{:.1} s", millis as f64 / 1000.0)
}

/// In milliseconds; for ever is very long.
pub(super) fn millis(span: Duration) -> u64 {
    (span.as_secs().saturating_mul(1000).saturating_add(u64::from(span.subsec_millis()))).min(u64::MAX / 4)
}

/// From `earlier` to `later`; nought when a thread was slower than another.
pub(super) fn elapsed(later: At, earlier: At) -> u64 {
    later.saturating_sub(earlier)
}

// === recent outcomes ===

/// An outcome in eight bytes, so that the last ten are kept without a lock: `at (40) | kind (8) | status (16)`.
pub(super) fn pack(at: At, outcome: Decided) -> u64 {
    let (kind, status) = match outcome {
        Decided::Success => (1, 0),
        Decided::Slow => (2, 0),
        Decided::Answer => (3, 0),
        Decided::Failure(Fault::Connect) => (4, 0),
        Decided::Failure(Fault::HeadTimeout) => (5, 0),
        Decided::Failure(Fault::Cut) => (6, 0),
        Decided::Failure(Fault::Body) => (7, 0),
        Decided::Failure(Fault::Overdue) => (8, 0),
        Decided::Failure(Fault::Status(status)) => (9, status),
    };
    (at & 0xFF_FFFF_FFFF) << 24 | kind << 16 | u64::from(status)
}

/// The other way; `None` for a place that was never used.
pub(super) fn unpack(word: u64) -> Option<(At, Decided)> {
    let outcome = match (word >> 16) & 0xFF {
        1 => Decided::Success,
        2 => Decided::Slow,
        3 => Decided::Answer,
        4 => Decided::Failure(Fault::Connect),
        5 => Decided::Failure(Fault::HeadTimeout),
        6 => Decided::Failure(Fault::Cut),
        7 => Decided::Failure(Fault::Body),
        8 => Decided::Failure(Fault::Overdue),
        9 => Decided::Failure(Fault::Status(word as u16)),
        _ => return None,
    };
    Some((word >> 24, outcome))
}

/// An outcome that had a part in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// Of a probe.
    Success,
    /// Any.
    Slow,
    /// Of a probe: neutral, in time.
    Answer,
    /// Any.
    Failure(Fault),
}

// === impl Decided ===

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Slow => f.write_str("slow"),
            Self::Answer => f.write_str("answer"),
            Self::Failure(fault) => fault.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning() -> Tuning {
        Tuning::new(&raw::Breaker::default(), 128, Duration::from_secs(30))
    }

    fn counts(calls: u32, failures: u32, slow: u32) -> Counts {
        Counts { calls, failures, slow }
    }

    const NO_ROW: Row = Row { count: 0, span: 0 };

    fn open(machine: Machine, now: At, roll: f64) -> (Machine, u64) {
        let trip = Input::Trip { cause: Cause::Start, not_before: 0 };
        let machine = machine.step(now, trip, &tuning(), roll).unwrap();
        let Phase::Open { until } = machine.phase else { panic!("{machine:?}") };
        (machine, until - now)
    }

    fn recover(machine: Machine, now: At) -> Machine {
        let machine = machine.step(now, Input::WaitOver, &tuning(), 0.0).unwrap();
        let machine = machine.step(now, Input::Passed(Cause::Successes(5)), &tuning(), 0.0).unwrap();
        machine.step(now, Input::Passed(Cause::RampOver), &tuning(), 0.0).unwrap()
    }

    #[test]
    fn half_of_twenty_calls_opens_and_nineteen_are_not_judged() {
        assert_eq!(trips(counts(19, 19, 0), NO_ROW, &tuning()), None);
        assert_eq!(trips(counts(20, 9, 0), NO_ROW, &tuning()), None);
        assert!(matches!(trips(counts(20, 10, 0), NO_ROW, &tuning()), Some(Cause::Failures(_))));
        assert_eq!(trips(counts(100, 49, 0), NO_ROW, &tuning()), None);
    }

    #[test]
    fn four_fifths_slow_open() {
        assert_eq!(trips(counts(20, 0, 15), NO_ROW, &tuning()), None);
        assert!(matches!(trips(counts(20, 0, 16), NO_ROW, &tuning()), Some(Cause::Slow(_))));
    }

    #[test]
    fn eight_failures_in_a_row_open_only_when_they_span_two_seconds() {
        let row = |count, span| trips(counts(0, 0, 0), Row { count, span }, &tuning());
        assert_eq!(row(8, 1999), None);
        assert_eq!(row(7, 60_000), None);
        assert!(matches!(row(8, 2000), Some(Cause::Row { .. })));
    }

    #[test]
    fn global_opens_when_four_fifths_fail_in_two_groups() {
        assert_eq!(trips_everywhere(1, counts(100, 100, 0)), None);
        assert_eq!(trips_everywhere(2, counts(49, 49, 0)), None);
        assert_eq!(trips_everywhere(2, counts(50, 39, 0)), None);
        assert!(trips_everywhere(2, counts(50, 40, 0)).is_some());
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_jitter_is_at_most_three_tenths() {
        let mut machine = Machine::new(0);
        let mut now = 0;
        for expected in [5000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            let (_, longest) = open(machine, now, 1.0);
            assert_eq!(longest, expected + expected * 3 / 10);
            let (opened, wait) = open(machine, now, 0.0);
            assert_eq!(wait, expected);
            now += wait;
            machine = recover(opened, now);
        }
    }

    #[test]
    fn the_level_falls_by_one_each_healthy_minute_and_never_by_closing() {
        let mut machine = Machine::new(0);
        let mut now = 0;
        for _ in 0..4 {
            let (opened, wait) = open(machine, now, 0.0);
            now += wait;
            machine = recover(opened, now);
        }
        assert_eq!(open(machine, now, 0.0).1, 60_000, "closing alone heals nothing");
        assert_eq!(open(machine, now + 59_999, 0.0).1, 60_000);
        assert_eq!(open(machine, now + 60_000, 0.0).1, 40_000);
        assert_eq!(open(machine, now + 120_000, 0.0).1, 20_000);
        assert_eq!(open(machine, now + 3_600_000, 0.0).1, 5000);
    }

    #[test]
    fn retry_after_lengthens_the_wait_up_to_five_minutes() {
        let until = |not_before| {
            let input = Input::Trip { cause: Cause::Start, not_before };
            match Machine::new(0).step(1000, input, &tuning(), 0.0).unwrap().phase {
                Phase::Open { until } => until,
                phase => panic!("{phase:?}"),
            }
        };
        assert_eq!(until(2000), 6000);
        assert_eq!(until(121_000), 121_000);
        assert_eq!(until(10_000_000), 301_000);
    }

    #[test]
    fn what_was_forced_open_is_probed_first() {
        for phase in [Phase::Closed, Phase::Ramping, Phase::HalfOpen, Phase::Open { until: 99 }] {
            assert_eq!(after_override(phase, Mode::ForcedOpen, Mode::Auto), Phase::HalfOpen);
            assert_eq!(after_override(phase, Mode::ForcedClosed, Mode::Auto), phase);
            assert_eq!(after_override(phase, Mode::Auto, Mode::ForcedOpen), phase);
            assert_eq!(after_override(phase, Mode::Auto, Mode::Observe), Phase::Closed);
        }
    }

    #[test]
    fn a_ramp_grows_from_a_tenth_to_all_and_is_never_below_two() {
        let tuning = tuning();
        assert_eq!(ramp_cap(0, &tuning), 12);
        assert_eq!(ramp_cap(15_000, &tuning), 70);
        assert_eq!(ramp_cap(30_000, &tuning), 128);
        assert_eq!(ramp_cap(90_000, &tuning), 128);
        assert_eq!(ramp_cap(0, &Tuning { limiter_max: 4, ..tuning }), 2);
    }

    #[test]
    fn a_ramp_ends_with_twenty_successes_or_five_quiet_minutes_and_ten_failures_end_it_the_other_way() {
        let tuning = tuning();
        let over = Some(Verdict::Pass(Cause::RampOver));
        assert_eq!(ramped(100, 0, 29_999, 29_999, &tuning), None);
        assert_eq!(ramped(19, 0, 30_000, 30_000, &tuning), None);
        assert_eq!(ramped(20, 0, 30_000, 30_000, &tuning), over);
        assert_eq!(ramped(20, 7, 30_000, 30_000, &tuning), None);
        assert_eq!(ramped(0, 0, 300_000, 300_000, &tuning), over);
        assert!(matches!(ramped(20, 10, 1000, 0, &tuning), Some(Verdict::Reopen(_))));
        assert_eq!(ramped(5000, 10, 1000, 0, &tuning), None, "one in five hundred is no relapse");
    }

    #[test]
    fn outcomes_come_back_as_they_were_packed() {
        for outcome in [
            Decided::Success,
            Decided::Slow,
            Decided::Answer,
            Decided::Failure(Fault::Connect),
            Decided::Failure(Fault::HeadTimeout),
            Decided::Failure(Fault::Cut),
            Decided::Failure(Fault::Body),
            Decided::Failure(Fault::Overdue),
            Decided::Failure(Fault::Status(599)),
        ] {
            assert_eq!(unpack(pack(123_456, outcome)), Some((123_456, outcome)));
        }
        assert_eq!(unpack(0), None);
    }

    #[test]
    fn every_input_either_moves_the_machine_or_has_no_meaning() {
        let tuning = tuning();
        for input in [Input::WaitOver, Input::Passed(Cause::Run(1))] {
            assert!(Machine::new(0).step(1, input, &tuning, 0.0).is_none());
        }
        let (open, _) = open(Machine::new(0), 0, 0.0);
        assert!(open.step(4999, Input::WaitOver, &tuning, 0.0).is_none(), "not before its time");
        let again = Input::Trip { cause: Cause::Start, not_before: 0 };
        assert!(open.step(1, again, &tuning, 0.0).is_none());
    }
}
