//! One breaker: the atomic word, the counts, and the machine behind a lock that only transitions take.
//!
//! Admission and recording are lock-free. When they find that the machine must move they call `step`, which takes
//! the lock, looks whether the word still belongs to the generation that the decision was made in, prepares what the
//! next state reads (`open_until`, the ramp's counts), and only then swaps the word; so nobody sees a new state with
//! an old state's data. Events leave after the swap, outside the lock.

use super::classify::{Fault, Verdict};
use super::load::{Line, Load, Place};
use super::overrides::Override;
use super::patience::Patience;
use super::permit::{Kind, Permit};
use super::state::{self, Cause, Decided, Input, Machine, Phase, Role, Row, Tuning, elapsed};
use super::window::{BUCKETS, Counts};
use super::word::{At, Cell, Mode, State, Taken, Tally, Word};
use crate::clock::{self, Clock};
use crate::config::raw;
use crate::event::{self, Kind as EventKind};
use crate::telemetry::{Metrics, ScopeLabels, TransitionLabels};
use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What all breakers have in common.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) bus: event::Bus,
    /// Counts transitions and changes of overrides.
    pub(super) changes: watch::Sender<u64>,
    pub(super) base: Instant,
    /// The last tick: the time, as nearly as a success must be counted.
    ticked: AtomicU64,
    /// Whether the file holds overrides that are over.
    pub(super) is_untidy: AtomicBool,
}

/// One breaker.
pub(super) struct Scope {
    pub(super) name: Arc<str>,
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Cell,
    tuning: ArcSwap<Tuning>,
    /// Those settings that each call needs.
    pub(super) hot: Hot,
    role: Role,
    /// Of a group's writes: its reads.
    reads: Option<&'static Scope>,
    load: Load,
    /// From when on a caller that leaves says something.
    pub(super) patience: Line<Patience>,
    /// Read while open.
    open_until: AtomicU64,
    /// What a 503 asked for.
    not_before: AtomicU64,
    /// When the override ends.
    override_until: AtomicU64,
    /// The end of the override that was told, or was near when it was set.
    told_until: AtomicU64,
    /// Whether the override came to its end by its time, and may still be in the file.
    is_lifted: AtomicBool,
    /// Failures in a row: `count (12) | when the first was (52)`.
    row: AtomicU64,
    last_failure: AtomicU64,
    /// The last failure or slow call: as long as there is none in the window, successes need not look at it.
    last_bad: AtomicU64,
    /// Successes in a row.
    run: AtomicU32,
    /// Of a group's writes, while half-open: when it began, or when a write that makes nothing new last asked.
    canary_at: AtomicU64,
    /// How many wait for room in the ramp, and by what they are woken.
    waiting: AtomicU32,
    room: Notify,
    ramp_since: AtomicU64,
    ramp_successes: AtomicU32,
    ramp_failures: AtomicU32,
    /// When, while observed, it was last told that it would have opened.
    observed: AtomicU64,
    recent: [AtomicU64; RECENT],
    next_recent: AtomicUsize,
    machine: Mutex<Machine>,
    counters: Counters,
}

/// What each call needs of [`Tuning`], without a guard. Each may be of other settings than the other for a moment.
pub(super) struct Hot {
    /// Of the window, in milliseconds.
    bucket: AtomicU64,
    /// In nanoseconds.
    slow: AtomicU64,
}

/// What a call is, as far as admission cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// It makes something new, so it is no canary.
    pub(super) creates: bool,
    /// It is a probe of our own: it decides nothing where there is traffic.
    pub(super) is_active_probe: bool,
    /// It has waited for its turn in a ramp.
    pub(super) has_queued: bool,
}

/// A place among those who wait for room in a ramp; left when it is dropped.
pub(super) struct Queued<'a>(&'a Scope);

/// Why a breaker keeps a call back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is open, or its probes are all out.
    Open(Duration),
    /// The ramp is full.
    Ramp,
}

struct Counters {
    refused: Counter,
    state: Gauge,
    mode: Gauge,
    /// By the new state.
    transitions: [Counter; 4],
}

enum Step {
    Admit(Kind),
    AdmitWithin(u32),
    Again,
    Refuse(Refusal),
}

/// A change that is told after the lock is free.
struct Move {
    from: Word,
    to: Word,
    cause: Cause,
}

/// What an operator sees of one breaker.
#[derive(Clone, Debug, Serialize)]
pub struct ScopeStatus {
    /// `global`, `<group>:read` or `<group>:write`.
    pub scope: Arc<str>,
    /// The automatic state.
    pub state: State,
    /// What an operator set.
    #[serde(rename = "override")]
    pub forced: Option<Override>,
    /// Since when it is in its state.
    pub since: Timestamp,
    /// When probing begins; only while open.
    pub until: Option<Timestamp>,
    /// What the window holds.
    pub window: WindowStatus,
    /// Failures without a success between them.
    pub consecutive_failures: u32,
    /// While half-open.
    pub probes: Probes,
    /// Calls that hold its permits.
    pub in_flight: u32,
    /// The last outcomes that had a part in a decision, newest first; ten at most.
    pub last: Vec<DecidingOutcome>,
    /// Why it is in its state.
    pub why: String,
    /// When and why it last opened by itself.
    pub trip: Option<Trip>,
}

/// An opening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trip {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// The counts of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WindowStatus {
    /// All but the neutral.
    pub calls: u32,
    /// Those that failed.
    pub failures: u32,
    /// Those that were slow.
    pub slow: u32,
}

/// The counts of the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// Under way.
    pub in_flight: u32,
    /// Since it is half-open.
    pub successes: u32,
    /// Since it is half-open.
    pub failures: u32,
}

/// An outcome that had a part in a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecidingOutcome {
    /// When.
    pub at: Timestamp,
    /// `success`, `slow`, `answer`, `connect`, `head_timeout`, `cut`, `body_broken`, `probe_overdue`, `status_503`.
    pub outcome: String,
}

const RECENT: usize = 10;
/// What a refusal names when nothing better is known.
const SOON: Duration = Duration::from_secs(1);
/// The longest that is named for a forced breaker: an operator may lift it at any time.
const FORCED_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long, in milliseconds, half-open writes are kept for those that make nothing new.
const CANARY_WAIT: u64 = 3000;
const NEVER: u64 = u64::MAX;
/// How long before its end an override is told, in milliseconds.
const ENDS_SOON: u64 = 600_000;
const ROW_SHIFT: u32 = 52;

// === impl Hot ===

impl Hot {
    fn new(tuning: &Tuning) -> Self {
        let hot = Self { bucket: AtomicU64::new(1), slow: AtomicU64::new(0) };
        hot.set(tuning);
        hot
    }

    fn set(&self, tuning: &Tuning) {
        self.bucket.store(tuning.bucket.max(1), Ordering::Release);
        self.slow.store(u64::try_from(tuning.slow.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// How long a bucket of the window is, in milliseconds.
    pub(super) fn bucket(&self) -> u64 {
        self.bucket.load(Ordering::Acquire)
    }

    /// A head after this is slow.
    pub(super) fn slow(&self) -> Duration {
        Duration::from_nanos(self.slow.load(Ordering::Acquire))
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(clock: Clock, bus: event::Bus) -> Self {
        Self {
            clock,
            bus,
            changes: watch::Sender::new(0),
            base: Instant::now(),
            ticked: AtomicU64::new(0),
            is_untidy: AtomicBool::new(false),
        }
    }

    pub(super) fn tick(&self, now: At) {
        self.ticked.store(now, Ordering::Release);
    }

    /// Now, on the breakers' scale. It begins above nought, so that nought can mean "never".
    pub(super) fn now(&self) -> At {
        self.at(Instant::now())
    }

    /// When it last ticked; nought when it never did.
    pub(super) fn ticked(&self) -> At {
        self.ticked.load(Ordering::Acquire)
    }

    pub(super) fn at(&self, instant: Instant) -> At {
        state::millis(instant.saturating_duration_since(self.base)) + 1
    }

    fn wall(&self, now: At, at: At) -> Timestamp {
        let present = self.clock.now();
        if at >= now {
            clock::after(present, Duration::from_millis(at - now))
        } else {
            let age = jiff::SignedDuration::from_millis(i64::try_from(now - at).unwrap_or(i64::MAX));
            present.checked_sub(age).unwrap_or(Timestamp::MIN)
        }
    }
}

// === impl Scope ===

impl Scope {
    pub(super) fn new(
        name: Arc<str>,
        role: Role,
        tuning: Tuning,
        reads: Option<&'static Self>,
        shared: Arc<Shared>,
        metrics: &Metrics,
    ) -> Self {
        let now = shared.now();
        let counters = Counters::new(&name, metrics);
        Self {
            name,
            cell: Cell::new(),
            hot: Hot::new(&tuning),
            tuning: ArcSwap::from_pointee(tuning),
            role,
            reads,
            load: Load::new(),
            patience: Line(Patience::new()),
            open_until: AtomicU64::new(0),
            not_before: AtomicU64::new(0),
            override_until: AtomicU64::new(NEVER),
            told_until: AtomicU64::new(NEVER),
            is_lifted: AtomicBool::new(false),
            row: AtomicU64::new(0),
            last_failure: AtomicU64::new(0),
            last_bad: AtomicU64::new(0),
            run: AtomicU32::new(0),
            canary_at: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            room: Notify::new(),
            ramp_since: AtomicU64::new(0),
            ramp_successes: AtomicU32::new(0),
            ramp_failures: AtomicU32::new(0),
            observed: AtomicU64::new(0),
            recent: std::array::from_fn(|_| AtomicU64::new(0)),
            next_recent: AtomicUsize::new(0),
            machine: Mutex::new(Machine::new(now)),
            counters,
            shared,
        }
    }

    // --- admission ---

    /// Asks for a permit. One that is closed needs no look at the clock.
    #[inline]
    pub(super) fn admit(&'static self, ask: Ask) -> Result<Permit, Refusal> {
        let word = self.cell.load();
        if word.mode() == Mode::Auto && word.state() == State::Closed {
            let kind = if ask.is_active_probe { Kind::Silent } else { Kind::Normal };
            return Ok(self.permit(word, kind, self.load.enter()));
        }
        self.admit_otherwise(ask)
    }

    fn permit(&'static self, word: Word, kind: Kind, place: Place) -> Permit {
        Permit { scope: self, generation: word.generation(), place, kind }
    }

    #[cold]
    fn admit_otherwise(&'static self, ask: Ask) -> Result<Permit, Refusal> {
        let now = self.shared.now();
        let tuning = self.tuning.load();
        loop {
            let word = self.cell.load();
            let step = match word.mode() {
                Mode::Auto => self.ask(word, now, ask, &tuning),
                Mode::Observe | Mode::ForcedClosed | Mode::ForcedOpen if self.lift_if_over(now) => {
                    Step::Again
                }
                Mode::ForcedOpen => Step::Refuse(Refusal::Open(self.forced_retry(now))),
                Mode::Observe | Mode::ForcedClosed => match self.ask(word, now, ask, &tuning) {
                    Step::AdmitWithin(_) => Step::Admit(Kind::Normal),
                    Step::Refuse(_) => Step::Admit(Kind::Silent),
                    step @ (Step::Admit(_) | Step::Again) => step,
                },
            };
            let refusal = match step {
                Step::Admit(kind) => return Ok(self.permit(word, kind, self.load.enter())),
                // Nobody overtakes who waits, and what has no room takes no place even for a moment.
                Step::AdmitWithin(cap)
                    if self.load.in_flight() >= cap
                        || !ask.has_queued && self.waiting.load(Ordering::Acquire) > 0 =>
                {
                    Refusal::Ramp
                }
                Step::AdmitWithin(cap) => {
                    let kind = if ask.is_active_probe { Kind::Silent } else { Kind::Normal };
                    if let Some(place) = self.load.enter_within(cap) {
                        return Ok(self.permit(word, kind, place));
                    }
                    Refusal::Ramp
                }
                Step::Again => continue,
                Step::Refuse(refusal) => refusal,
            };
            self.counters.refused.inc();
            return Err(refusal);
        }
    }

    fn ask(&self, word: Word, now: At, ask: Ask, tuning: &Tuning) -> Step {
        match word.state() {
            State::Closed if ask.is_active_probe => Step::Admit(Kind::Silent),
            State::Closed => Step::Admit(Kind::Normal),
            State::Ramping => {
                let ramp = elapsed(now, self.ramp_since.load(Ordering::Acquire));
                Step::AdmitWithin(state::ramp_cap(ramp, tuning))
            }
            State::Open => {
                let until = self.open_until.load(Ordering::Acquire);
                if now < until {
                    return Step::Refuse(Refusal::Open(Duration::from_millis(until - now)));
                }
                if !self.may_probe() {
                    return Step::Refuse(Refusal::Open(self.reads_retry(now)));
                }
                self.step(word, now, Input::WaitOver);
                Step::Again
            }
            State::HalfOpen => {
                if let Err(wait) = self.lets_create(word, now, ask) {
                    return Step::Refuse(Refusal::Open(wait));
                }
                if !ask.creates && self.role == Role::Write {
                    self.canary_at.fetch_max(now, Ordering::AcqRel);
                }
                // Until its attempt begins it has the same time to come to it.
                let due = now.saturating_add(tuning.probe_limit);
                match self.cell.take(word, tuning.probes, due) {
                    Taken::Probe(probe) => Step::Admit(Kind::Probe(probe)),
                    Taken::Changed => Step::Again,
                    Taken::Full if self.expire_probes(now) => Step::Again,
                    Taken::Full => Step::Refuse(Refusal::Open(SOON)),
                }
            }
        }
    }

    /// Whether a call that has waited since it got this permit may still be made. What began to refuse meanwhile
    /// refuses it, too; what only moved on to more traffic does not.
    pub(super) fn still_admits(&self, permit: &Permit, now: At) -> Result<(), Refusal> {
        let word = self.cell.load();
        if word.generation() == permit.generation {
            return Ok(());
        }
        let retry = match (word.mode(), word.state()) {
            (Mode::Observe | Mode::ForcedClosed, _) | (Mode::Auto, State::Closed | State::Ramping) => {
                return Ok(());
            }
            (Mode::ForcedOpen, _) => self.forced_retry(now),
            (Mode::Auto, State::Open | State::HalfOpen) => self.retry_hint(now),
        };
        self.counters.refused.inc();
        Err(Refusal::Open(retry))
    }

    /// What `admit` would say, without taking a permit.
    pub(super) fn peek(&self, now: At, ask: Ask) -> Result<(), Duration> {
        let tuning = self.tuning.load();
        let word = self.cell.load();
        match word.mode() {
            Mode::ForcedOpen if now < self.override_until.load(Ordering::Acquire) => {
                return Err(self.forced_retry(now));
            }
            Mode::ForcedOpen | Mode::Observe | Mode::ForcedClosed => return Ok(()),
            Mode::Auto => {}
        }
        match word.state() {
            State::Closed => Ok(()),
            State::Ramping => {
                let ramp = elapsed(now, self.ramp_since.load(Ordering::Acquire));
                let is_free = self.load.in_flight() < state::ramp_cap(ramp, &tuning);
                is_free.then_some(()).ok_or(SOON)
            }
            State::Open => {
                let until = self.open_until.load(Ordering::Acquire);
                if now < until {
                    return Err(Duration::from_millis(until - now));
                }
                self.may_probe().then_some(()).ok_or_else(|| self.reads_retry(now))
            }
            State::HalfOpen => {
                self.lets_create(word, now, ask)?;
                (word.probes() < tuning.probes).then_some(()).ok_or(SOON)
            }
        }
    }

    /// A group's writes are probed only when its reads are well: closed or ramping by themselves, whatever an
    /// override says, or with their last two successful.
    fn may_probe(&self) -> bool {
        self.reads.as_ref().is_none_or(|reads| match reads.state() {
            State::Closed | State::Ramping => true,
            State::HalfOpen | State::Open => reads.run.load(Ordering::Acquire) >= 2,
        })
    }

    /// Half-open writes are tried by what can be undone: what makes something new waits until one of those has
    /// succeeded, or none has asked for a while.
    fn lets_create(&self, word: Word, now: At, ask: Ask) -> Result<(), Duration> {
        if !ask.creates {
            return Ok(());
        }
        if !self.may_probe() {
            return Err(self.reads_retry(now));
        }
        let free_at = self.canary_at.load(Ordering::Acquire).saturating_add(CANARY_WAIT);
        if self.role != Role::Write || word.successes() > 0 || now >= free_at {
            return Ok(());
        }
        Err(Duration::from_millis(free_at - now))
    }

    fn reads_retry(&self, now: At) -> Duration {
        self.reads.as_ref().map_or(SOON, |reads| reads.retry_hint(now))
    }

    /// When it makes sense to ask a breaker that is not closed again.
    pub(super) fn retry_hint(&self, now: At) -> Duration {
        match self.state() {
            State::Open => {
                Duration::from_millis(elapsed(self.open_until.load(Ordering::Acquire), now)).max(SOON)
            }
            State::Closed | State::Ramping | State::HalfOpen => SOON,
        }
    }

    fn forced_retry(&self, now: At) -> Duration {
        let rest = elapsed(self.override_until.load(Ordering::Acquire), now);
        Duration::from_millis(rest).clamp(SOON, FORCED_RETRY_MAX)
    }

    /// A refusal in this breaker's name that was decided elsewhere.
    pub(super) fn count_refusal(&self) {
        self.counters.refused.inc();
    }

    // --- questions ---

    pub(super) fn state(&self) -> State {
        self.cell.load().state()
    }

    pub(super) fn mode(&self) -> Mode {
        self.cell.load().mode()
    }

    /// Closed and ramping carry traffic; open and half-open are a known outage.
    pub(super) fn is_out(&self) -> bool {
        is_outage(self.state())
    }

    pub(super) fn shows_failures(&self, now: At) -> bool {
        let word = self.cell.load();
        if word.state() != State::Closed || word.mode() == Mode::ForcedOpen {
            return true;
        }
        let last = self.last_failure.load(Ordering::Acquire);
        last != 0 && elapsed(now, last) < self.tuning.load().window() && self.counts(now).failures > 0
    }

    /// Whether the outcome of a probe would be of use.
    pub(super) fn wants_probe(&self, now: At) -> bool {
        match self.state() {
            State::HalfOpen => true,
            State::Open => now >= self.open_until.load(Ordering::Acquire),
            State::Closed | State::Ramping => false,
        }
    }

    pub(super) fn counts(&self, now: At) -> Counts {
        self.load.counts(now / self.hot.bucket())
    }

    // --- outcomes ---

    /// Counts an outcome, when the permit still means something.
    pub(super) fn record(&self, permit: &Permit, verdict: Verdict, retry_after: Option<Duration>, now: At) {
        let word = self.cell.load();
        if word.generation() != permit.generation {
            return;
        }
        match (word.state(), &permit.kind) {
            (State::Closed | State::Ramping, Kind::Normal) => {
                self.heed(verdict, retry_after, now);
                self.sample(word, permit.place, verdict, now);
            }
            (State::HalfOpen, Kind::Probe(probe)) => {
                let (tally, decided) = match verdict {
                    Verdict::Success => (Tally::Success, Decided::Success),
                    Verdict::Answer => (Tally::Neutral, Decided::Answer),
                    // What is closed by slow calls is opened by them again.
                    Verdict::Slow | Verdict::Hung => (Tally::Failure, Decided::Slow),
                    Verdict::Failure { fault, is_slow: _ } => (Tally::Failure, Decided::Failure(fault)),
                    // The slot stays until the permit is dropped: a further attempt may still tell something.
                    Verdict::Neutral => return,
                };
                if let Some(after) = self.cell.settle(probe, tally, now) {
                    self.heed(verdict, retry_after, now);
                    self.remember(now, decided);
                    match tally {
                        Tally::Success => drop(self.run.fetch_add(1, Ordering::AcqRel)),
                        Tally::Failure => self.run.store(0, Ordering::Release),
                        Tally::Neutral | Tally::Nothing => {}
                    }
                    self.judge_probes(after, tally, now);
                }
            }
            (State::Closed | State::Ramping, Kind::Probe(_) | Kind::Silent)
            | (State::HalfOpen, Kind::Normal | Kind::Silent)
            | (State::Open, Kind::Normal | Kind::Probe(_) | Kind::Silent) => {}
        }
    }

    /// A 503 may say how long it will last.
    fn heed(&self, verdict: Verdict, retry_after: Option<Duration>, now: At) {
        if let (Verdict::Failure { fault: Fault::Status(503), is_slow: _ }, Some(wait)) =
            (verdict, retry_after)
        {
            self.not_before.fetch_max(now.saturating_add(state::millis(wait)), Ordering::AcqRel);
        }
    }

    /// Frees what the permit holds.
    pub(super) fn give_back(&self, permit: &Permit) {
        self.load.leave(permit.place);
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.room.notify_one();
        }
        if let Kind::Probe(probe) = &permit.kind {
            self.cell.settle(probe, Tally::Nothing, self.shared.now());
        }
    }

    fn sample(&self, word: Word, place: Place, verdict: Verdict, now: At) {
        let bucket = self.hot.bucket();
        let number = now / bucket;
        let is_ramping = word.state() == State::Ramping;
        let mut row = Row { count: 0, span: 0 };
        match verdict {
            Verdict::Answer | Verdict::Neutral => return,
            Verdict::Hung => {
                // Without a head nothing shows that the row of failures is at its end.
                self.load.add(place, number, false, true);
                self.last_bad.store(now, Ordering::Release);
                self.remember(now, Decided::Slow);
            }
            Verdict::Success | Verdict::Slow => {
                let is_slow = verdict == Verdict::Slow;
                self.load.add(place, number, false, is_slow);
                if self.row.load(Ordering::Relaxed) != 0 {
                    self.row.store(0, Ordering::Release);
                }
                if is_slow {
                    self.last_bad.store(now, Ordering::Release);
                    self.remember(now, Decided::Slow);
                } else if is_ramping {
                    self.ramp_successes.fetch_add(1, Ordering::AcqRel);
                }
            }
            Verdict::Failure { fault, is_slow } => {
                self.load.add(place, number, true, is_slow);
                row = self.lengthen_row(now);
                self.last_failure.store(now, Ordering::Release);
                self.last_bad.store(now, Ordering::Release);
                self.remember(now, Decided::Failure(fault));
                if is_ramping {
                    self.ramp_failures.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        let last_bad = self.last_bad.load(Ordering::Acquire);
        let is_bad_inside = last_bad != 0 && elapsed(now, last_bad) < bucket * BUCKETS as u64;
        if is_bad_inside || is_ramping {
            self.judge(word, row, is_bad_inside);
        }
    }

    /// Whether the counts make it move: as of this very moment, at whatever moment the last was counted.
    #[cold]
    fn judge(&self, word: Word, row: Row, is_bad_inside: bool) {
        let now = self.shared.now();
        let tuning = self.tuning.load();
        if is_bad_inside && let Some(cause) = state::trips(self.counts(now), row, &tuning) {
            self.trip(word, now, cause);
        } else if word.state() == State::Ramping {
            self.judge_ramp(word, now, &tuning);
        }
    }

    fn lengthen_row(&self, now: At) -> Row {
        let is_old = elapsed(now, self.last_failure.load(Ordering::Acquire)) > state::ROW_KEPT;
        let longer = |row: u64| {
            let count = if is_old { 0 } else { row >> ROW_SHIFT };
            let first = if count == 0 { now } else { row & (u64::MAX >> (64 - ROW_SHIFT)) };
            (count + 1).min(u64::from(state::ROW_MOST)) << ROW_SHIFT | first
        };
        let before = self.row.fetch_update(Ordering::AcqRel, Ordering::Acquire, |row| Some(longer(row)));
        let row = longer(before.unwrap_or_else(|row| row));
        let first = row & (u64::MAX >> (64 - ROW_SHIFT));
        Row { count: (row >> ROW_SHIFT) as u32, span: elapsed(now, first) }
    }

    fn remember(&self, now: At, decided: Decided) {
        let index = self.next_recent.fetch_add(1, Ordering::AcqRel) % RECENT;
        self.recent[index].store(state::pack(now, decided), Ordering::Release);
    }

    // --- transitions ---

    /// Opens, or, when it is only observed, tells that it would have.
    pub(super) fn trip(&self, word: Word, now: At, cause: Cause) {
        match word.mode() {
            Mode::Observe => self.would_open(now, cause),
            Mode::Auto | Mode::ForcedClosed | Mode::ForcedOpen => {
                let not_before = self.not_before.load(Ordering::Acquire);
                self.step(word, now, Input::Trip { cause, not_before });
            }
        }
    }

    fn judge_probes(&self, word: Word, last: Tally, now: At) {
        let verdict = state::probed(word, last, now, &self.tuning.load());
        self.follow(word, now, verdict);
    }

    fn judge_ramp(&self, word: Word, now: At, tuning: &Tuning) {
        let since = self.ramp_since.load(Ordering::Acquire);
        let quiet_since = since.max(self.last_failure.load(Ordering::Acquire));
        let verdict = state::ramped(
            self.ramp_successes.load(Ordering::Acquire),
            self.ramp_failures.load(Ordering::Acquire),
            elapsed(now, since),
            elapsed(now, quiet_since),
            tuning,
        );
        self.follow(word, now, verdict);
    }

    fn follow(&self, word: Word, now: At, verdict: Option<state::Verdict>) {
        match verdict {
            Some(state::Verdict::Reopen(cause)) => self.trip(word, now, cause),
            Some(state::Verdict::Pass(cause)) => self.step(word, now, Input::Passed(cause)),
            None => {}
        }
    }

    /// Ends probes that are due; tells whether that changed anything.
    fn expire_probes(&self, now: At) -> bool {
        let before = self.cell.load();
        let Some(after) = self.cell.expire(now) else { return false };
        let last = if after.failures() > before.failures() {
            self.run.store(0, Ordering::Release);
            self.remember(now, Decided::Failure(Fault::Overdue));
            Tally::Failure
        } else if after.successes() > before.successes() {
            self.run.fetch_add(after.successes() - before.successes(), Ordering::AcqRel);
            self.remember(now, Decided::Success);
            Tally::Success
        } else {
            Tally::Neutral
        };
        self.judge_probes(after, last, now);
        true
    }

    /// Joins those who wait for room in a ramp.
    pub(super) fn queue_up(&self) -> Queued<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Queued(self)
    }

    /// What happens by time alone.
    pub(super) fn tick(&self, now: At) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            // The ramp has grown, or is at its end.
            self.room.notify_waiters();
        }
        self.lift_if_over(now);
        let word = self.cell.load();
        if word.mode() == Mode::ForcedOpen {
            return;
        }
        match word.state() {
            State::Open if self.wants_probe(now) && self.may_probe() => self.step(word, now, Input::WaitOver),
            State::HalfOpen => drop(self.expire_probes(now)),
            State::Ramping => self.judge_ramp(word, now, &self.tuning.load()),
            State::Open | State::Closed => {}
        }
    }

    /// Moves the machine, if the word still belongs to the generation of `seen`.
    fn step(&self, seen: Word, now: At, input: Input) {
        let moved = {
            let mut machine = self.machine();
            // Generations change under this lock only.
            if self.cell.load().generation() != seen.generation() {
                return;
            }
            self.advance(&mut machine, now, input)
        };
        if let Some(moved) = moved {
            let reason = moved.cause.to_string();
            self.announce(&moved, &reason);
        }
    }

    /// Sets an override, or with [`Mode::Auto`] ends it. The same mode again only moves its end.
    pub(super) fn force(&self, to: Mode, until: Option<At>, now: At, reason: &str) {
        let moved = {
            let mut machine = self.machine();
            let until = until.unwrap_or(NEVER);
            // Who sets a short one needs not be told that it is short.
            let is_near = elapsed(until, now) <= ENDS_SOON;
            self.told_until.store(if is_near { until } else { NEVER }, Ordering::Release);
            self.override_until.store(until, Ordering::Release);
            let from = self.cell.load().mode();
            if from == to {
                return;
            }
            self.advance(&mut machine, now, Input::Override { from, to })
        };
        if let Some(moved) = moved {
            self.announce(&moved, reason);
        }
    }

    /// Begins half-open, since an earlier run ended in an outage, or with a forced opening that is over by now.
    pub(super) fn begin_half_open(&self, now: At) {
        let mut machine = self.machine();
        self.advance(&mut machine, now, Input::Resume);
        self.counters.state.set(State::HalfOpen as i64);
    }

    fn lift_if_over(&self, now: At) -> bool {
        let is_over = || now >= self.override_until.load(Ordering::Acquire);
        if !is_over() {
            return false;
        }
        let moved = {
            let mut machine = self.machine();
            let from = self.cell.load().mode();
            if from == Mode::Auto || !is_over() {
                return false;
            }
            self.override_until.store(NEVER, Ordering::Release);
            self.is_lifted.store(true, Ordering::Release);
            self.shared.is_untidy.store(true, Ordering::Release);
            self.advance(&mut machine, now, Input::Override { from, to: Mode::Auto })
        };
        if let Some(moved) = moved {
            tracing::warn!(
                target: "seawall::audit",
                scope = %self.name,
                mode = moved.from.mode().as_str(),
                actor = "ttl",
                "breaker override ended by its time"
            );
            self.announce(&moved, "the override's time is over");
        }
        true
    }

    /// Whether the override ends within ten minutes and nobody was told yet; asked again, no.
    pub(super) fn ends_soon(&self, now: At) -> bool {
        let until = self.override_until.load(Ordering::Acquire);
        if until == NEVER || elapsed(until, now) > ENDS_SOON || self.mode() == Mode::Auto {
            return false;
        }
        self.told_until.swap(until, Ordering::AcqRel) != until
    }

    /// Whether its override is over by its time since it was last asked. Not when there is a new one: that stays.
    pub(super) fn take_lifted(&self) -> bool {
        self.is_lifted.swap(false, Ordering::AcqRel) && self.mode() == Mode::Auto
    }

    /// What was taken could not be made durable.
    pub(super) fn put_lifted_back(&self) {
        self.is_lifted.store(true, Ordering::Release);
    }

    /// Under the machine's lock.
    fn advance(&self, machine: &mut Machine, now: At, input: Input) -> Option<Move> {
        let tuning = self.tuning.load();
        let next = machine.step(now, input, &tuning, fastrand::f64())?;
        loop {
            let from = self.cell.load();
            let mode = match input {
                Input::Override { from: _, to } => to,
                Input::Trip { .. } | Input::WaitOver | Input::Passed(_) | Input::Resume => from.mode(),
            };
            if next.phase != machine.phase || next.phase == Phase::HalfOpen {
                self.prepare(next.phase, from.state(), now);
            }
            let to = from.enter(next.phase.state(), mode);
            // A probe may come or go in between.
            if self.cell.replace(from, to) {
                *machine = next;
                return Some(Move { from, to, cause: next.cause });
            }
        }
    }

    /// What the next state reads, before anybody can see it.
    fn prepare(&self, next: Phase, from: State, now: At) {
        match next {
            Phase::Open { until } => {
                self.run.store(0, Ordering::Release);
                self.open_until.store(until, Ordering::Release);
            }
            Phase::HalfOpen => {
                self.run.store(0, Ordering::Release);
                self.canary_at.store(now, Ordering::Release);
                self.forget();
            }
            Phase::Ramping => {
                self.ramp_since.store(now, Ordering::Release);
                self.ramp_successes.store(0, Ordering::Release);
                self.ramp_failures.store(0, Ordering::Release);
                self.not_before.store(0, Ordering::Release);
                self.forget();
            }
            Phase::Closed if from == State::Ramping => {}
            Phase::Closed => self.forget(),
        }
    }

    fn forget(&self) {
        self.load.clear();
        self.row.store(0, Ordering::Release);
        self.last_bad.store(0, Ordering::Release);
        self.last_failure.store(0, Ordering::Release);
    }

    /// The settings in force.
    pub(super) fn tuning(&self) -> Guard<Arc<Tuning>> {
        self.tuning.load()
    }

    /// Puts other settings into force. State, override and counts stay, and so does the end of a wait that has begun;
    /// but when the window has another length, its numbers mean other times.
    pub(super) fn tune(&self, settings: &raw::Breaker, limiter_max: u32, attempt_limit: Duration) {
        let tuning = Tuning::of(&self.name, self.role, settings, limiter_max, attempt_limit);
        let bucket = tuning.bucket;
        self.hot.set(&tuning);
        if self.tuning.swap(Arc::new(tuning)).bucket != bucket {
            self.load.clear();
        }
    }

    fn would_open(&self, now: At, cause: Cause) {
        let before = self.observed.load(Ordering::Acquire);
        let is_due = before == 0 || elapsed(now, before) >= self.tuning.load().window();
        if is_due && self.observed.compare_exchange(before, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.forget();
            tracing::warn!(scope = %self.name, %cause, "breaker would have opened");
            self.shared.bus.tell(EventKind::Breaker {
                scope: self.name.to_string(),
                from: Mode::Observe.as_str().to_owned(),
                to: "would_open".to_owned(),
                reason: cause.to_string(),
            });
        }
    }

    fn announce(&self, moved: &Move, reason: &str) {
        let label = |word: Word| match word.mode() {
            Mode::Auto => word.state().as_str(),
            mode @ (Mode::Observe | Mode::ForcedClosed | Mode::ForcedOpen) => mode.as_str(),
        };
        let (from, to) = (moved.from.state(), moved.to.state());
        // Two moves may be told in the other order than they were made; what the gauges show must be the present.
        self.counters.show(self.cell.load());
        if from != to {
            self.counters.transitions[to as usize].inc();
        }
        if is_outage(from) != is_outage(to) {
            self.shared.is_untidy.store(true, Ordering::Release);
        }
        let (from, to, scope) = (label(moved.from), label(moved.to), &self.name);
        if moved.to.state() == State::Open || moved.to.mode() != moved.from.mode() {
            tracing::warn!(%scope, from, to, state = moved.to.state().as_str(), reason, "breaker changed");
        } else {
            tracing::info!(%scope, from, to, state = moved.to.state().as_str(), reason, "breaker changed");
        }
        self.shared.bus.tell(EventKind::Breaker {
            scope: scope.to_string(),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: reason.to_owned(),
        });
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- status ---

    /// How long it has been in its state.
    pub(super) fn since(&self) -> At {
        self.machine().since
    }

    pub(super) fn word(&self) -> Word {
        self.cell.load()
    }

    pub(super) fn status(&self, now: At, forced: Option<Override>) -> ScopeStatus {
        let machine = *self.machine();
        let word = self.cell.load();
        let counts = self.counts(now);
        let mut last: Vec<_> =
            self.recent.iter().filter_map(|packed| state::unpack(packed.load(Ordering::Acquire))).collect();
        last.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        ScopeStatus {
            scope: self.name.clone(),
            state: machine.phase.state(),
            forced,
            since: self.shared.wall(now, machine.since),
            until: match machine.phase {
                Phase::Open { until } => Some(self.shared.wall(now, until)),
                Phase::Closed | Phase::Ramping | Phase::HalfOpen => None,
            },
            window: WindowStatus { calls: counts.calls, failures: counts.failures, slow: counts.slow },
            consecutive_failures: (self.row.load(Ordering::Acquire) >> ROW_SHIFT) as u32,
            probes: Probes {
                in_flight: word.probes(),
                successes: if word.state() == State::HalfOpen { word.successes() } else { 0 },
                failures: if word.state() == State::HalfOpen { word.failures() } else { 0 },
            },
            in_flight: self.load.in_flight(),
            last: last
                .into_iter()
                .map(|(at, decided)| DecidingOutcome {
                    at: self.shared.wall(now, at),
                    outcome: decided.to_string(),
                })
                .collect(),
            why: machine.cause.to_string(),
            trip: machine
                .trip
                .map(|(at, cause)| Trip { at: self.shared.wall(now, at), reason: cause.to_string() }),
        }
    }

    /// What the status would be after an override.
    pub(super) fn status_after(&self, now: At, forced: Option<Override>) -> ScopeStatus {
        let machine = *self.machine();
        let (from, to) = (self.mode(), forced.as_ref().map_or(Mode::Auto, |forced| forced.mode));
        let next = if from == to { machine.phase } else { state::after_override(machine.phase, from, to) };
        let mut status = self.status(now, forced);
        if next.state() != machine.phase.state() {
            status.state = next.state();
            status.since = self.shared.clock.now();
            status.until = None;
            status.why = Cause::Override { to }.to_string();
        }
        status
    }
}

fn is_outage(state: State) -> bool {
    match state {
        State::Open | State::HalfOpen => true,
        State::Closed | State::Ramping => false,
    }
}

// === impl Queued ===

impl Queued<'_> {
    /// Ends when there may be room.
    pub(super) fn room(&self) -> Notified<'_> {
        self.0.room.notified()
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        // A wake-up that came to this one may be another's.
        self.0.room.notify_one();
    }
}

// === impl Counters ===

impl Counters {
    fn new(scope: &str, metrics: &Metrics) -> Self {
        let labels = ScopeLabels { scope: scope.to_owned() };
        let transitions = [State::Closed, State::Ramping, State::HalfOpen, State::Open].map(|to| {
            let labels = TransitionLabels { scope: scope.to_owned(), to: to.as_str() };
            metrics.breaker_transitions.get_or_create(&labels).clone()
        });
        Self {
            refused: metrics.breaker_refused.get_or_create(&labels).clone(),
            state: metrics.breaker_state.get_or_create(&labels).clone(),
            mode: metrics.breaker_override.get_or_create(&labels).clone(),
            transitions,
        }
    }

    fn show(&self, word: Word) {
        self.state.set(word.state() as i64);
        self.mode.set(word.mode() as i64);
    }
}
