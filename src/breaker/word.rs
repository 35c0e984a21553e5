//! Pure. The state word: state, override, generation and probe counters of one breaker in one `AtomicU64`.
//!
//! ```text
//! 63        44 43       26 25    22 21    17 16     12 11    4 3   2 1   0
//! generation   run begins  neutrals failures successes probes mode  state
//! ```
//!
//! Since everything that an admission or a probe's outcome depends on stands in one word, each of them is one
//! compare-and-swap, and none can act on a mixture of two moments. Invariants:
//! * a probe is one bit of `probes`; who sets the bit owns the slot until it settles or is overdue;
//! * every transition and override begins a new generation with no probes and no counts; what belongs to an older
//!   generation changes nothing any more;
//! * a slot's ticket is claimed by exactly one of *its permit* and *its deadline*, so that a probe counts once and
//!   its bit is cleared once, even when the slot is used again in between.
//!
//! A ticket is `generation | tally | due`: unique within a slot, since a slot that was taken away by its deadline is
//! given out again only later than that deadline, and a slot that its permit gave back is not touched by that permit
//! again.

use super::atomic::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};

/// Milliseconds since the breakers were made.
pub(super) type At = u64;

/// The automatic state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Traffic flows.
    Closed,
    /// Traffic flows up to a cap that grows.
    Ramping,
    /// A few probes go through.
    HalfOpen,
    /// Nothing goes through until a wait is over.
    Open,
}

/// The override, orthogonal to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// None: the state decides.
    Auto,
    /// Nothing is refused; what would have opened it is told.
    Observe,
    /// Nothing is refused; outcomes are recorded and the state moves.
    ForcedClosed,
    /// No traffic and no probes.
    ForcedOpen,
}

/// One reading of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

/// What a probe's outcome counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    /// Nothing: it never began, or ended by a cause of our own.
    Nothing,
    /// A failure.
    Failure,
    /// A success.
    Success,
    /// An answer that says nothing about health but that somebody answers.
    Neutral,
}

/// The right to one slot.
pub(super) struct Probe {
    slot: usize,
    ticket: AtomicU64,
}

/// What came of asking for a slot.
pub(super) enum Taken {
    /// The slot is the caller's.
    Probe(Probe),
    /// All slots are in use.
    Full,
    /// The word is no longer the one seen.
    Changed,
}

/// The word and the tickets of its slots.
pub(super) struct Cell {
    word: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

/// Most probes at once.
pub(super) const SLOTS: usize = 8;
/// Most successes or failures that are told apart.
pub(super) const MOST: u32 = 31;

/// In which unit the beginning of a run of successes is kept, in milliseconds.
const RUN_UNIT: u64 = 250;
const NO_RUN: u64 = RUN.mask();

const STATE: Field = Field { shift: 0, bits: 2 };
const MODE: Field = Field { shift: 2, bits: 2 };
const PROBES: Field = Field { shift: 4, bits: 8 };
const SUCCESSES: Field = Field { shift: 12, bits: 5 };
const FAILURES: Field = Field { shift: 17, bits: 5 };
const NEUTRALS: Field = Field { shift: 22, bits: 4 };
const RUN: Field = Field { shift: 26, bits: 18 };
const GENERATION: Field = Field { shift: 44, bits: 20 };

// A ticket shares the place of the generation; 42 bits of milliseconds are 139 years.
const DUE: Field = Field { shift: 0, bits: 42 };
const TALLY: Field = Field { shift: 42, bits: 2 };

#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

// === impl Field ===

impl Field {
    const fn mask(self) -> u64 {
        (1 << self.bits) - 1
    }

    const fn get(self, word: u64) -> u64 {
        (word >> self.shift) & self.mask()
    }

    const fn put(self, word: u64, value: u64) -> u64 {
        (word & !(self.mask() << self.shift)) | ((value & self.mask()) << self.shift)
    }

    /// One more, held at the field's end.
    const fn count(self, word: u64) -> u64 {
        let value = self.get(word);
        if value == self.mask() { word } else { self.put(word, value + 1) }
    }
}

// === impl State ===

impl State {
    /// Its name in metrics, events and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Ramping => "ramping",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Closed,
            1 => Self::Ramping,
            2 => Self::HalfOpen,
            _ => Self::Open,
        }
    }
}

// === impl Mode ===

impl Mode {
    /// Its name in metrics, events and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Observe => "observe",
            Self::ForcedClosed => "forced_closed",
            Self::ForcedOpen => "forced_open",
        }
    }

    fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Auto,
            1 => Self::Observe,
            2 => Self::ForcedClosed,
            _ => Self::ForcedOpen,
        }
    }
}

// === impl Tally ===

impl Tally {
    fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Nothing,
            1 => Self::Failure,
            2 => Self::Success,
            _ => Self::Neutral,
        }
    }
}

// === impl Word ===

impl Word {
    pub(super) fn state(self) -> State {
        State::of(STATE.get(self.0))
    }

    pub(super) fn mode(self) -> Mode {
        Mode::of(MODE.get(self.0))
    }

    pub(super) fn generation(self) -> u32 {
        GENERATION.get(self.0) as u32
    }

    /// Probes in flight.
    pub(super) fn probes(self) -> u32 {
        PROBES.get(self.0).count_ones()
    }

    pub(super) fn successes(self) -> u32 {
        SUCCESSES.get(self.0) as u32
    }

    pub(super) fn failures(self) -> u32 {
        FAILURES.get(self.0) as u32
    }

    pub(super) fn neutrals(self) -> u32 {
        NEUTRALS.get(self.0) as u32
    }

    /// How long ago, in milliseconds, the present run of successes began; `None` when the last outcome failed.
    pub(super) fn run(self, now: At) -> Option<u64> {
        let begin = RUN.get(self.0);
        let units = (now / RUN_UNIT).wrapping_sub(begin) & RUN.mask();
        (begin != NO_RUN).then_some(units * RUN_UNIT)
    }

    /// The word of a new generation in this state, under this override.
    pub(super) fn enter(self, state: State, mode: Mode) -> Self {
        let generation = GENERATION.get(self.0).wrapping_add(1);
        let mut word = GENERATION.put(0, generation);
        word = RUN.put(word, NO_RUN);
        word = STATE.put(word, state as u64);
        Self(MODE.put(word, mode as u64))
    }

    fn take(self, limit: u32) -> Option<(Self, usize)> {
        if self.probes() >= limit {
            return None;
        }
        let probes = PROBES.get(self.0);
        let slot = probes.trailing_ones() as usize;
        (slot < SLOTS).then(|| (Self(PROBES.put(self.0, probes | (1 << slot))), slot))
    }

    fn free(self, slot: usize) -> Self {
        Self(PROBES.put(self.0, PROBES.get(self.0) & !(1 << slot)))
    }

    fn tally(self, tally: Tally, now: At) -> Self {
        Self(match tally {
            Tally::Nothing => self.0,
            Tally::Failure => RUN.put(FAILURES.count(self.0), NO_RUN),
            Tally::Neutral => NEUTRALS.count(self.0),
            Tally::Success => {
                let word = SUCCESSES.count(self.0);
                let begin = (now / RUN_UNIT) & RUN.mask();
                // The one moment in eighteen hours that looks like "no run" is moved by a quarter of a second.
                let begin = if begin == NO_RUN { NO_RUN - 1 } else { begin };
                if RUN.get(word) == NO_RUN { RUN.put(word, begin) } else { word }
            }
        })
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Word")
            .field("state", &self.state())
            .field("mode", &self.mode())
            .field("generation", &self.generation())
            .field("probes", &self.probes())
            .field("successes", &self.successes())
            .field("failures", &self.failures())
            .field("neutrals", &self.neutrals())
            .finish_non_exhaustive()
    }
}

// === impl Cell ===

impl Cell {
    /// Closed, without an override.
    pub(super) fn new() -> Self {
        Self { word: AtomicU64::new(RUN.put(0, NO_RUN)), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    pub(super) fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Puts `next` in the place of `seen`; tells whether `seen` was still there.
    pub(super) fn replace(&self, seen: Word, next: Word) -> bool {
        self.word.compare_exchange(seen.0, next.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes a slot in the state of `seen`. Until it begins, a probe that is due counts as nothing.
    pub(super) fn take(&self, seen: Word, limit: u32, due: At) -> Taken {
        let Some((next, slot)) = seen.take(limit) else { return Taken::Full };
        if !self.replace(seen, next) {
            return Taken::Changed;
        }
        let ticket = GENERATION.put(ticket(due, Tally::Nothing), u64::from(seen.generation()));
        // Between the two steps a new generation may have begun and given the slot to another: its ticket stays, and
        // ours, which is of an older generation, would have no effect anyway.
        let _ = self.slots[slot].fetch_update(Ordering::AcqRel, Ordering::Acquire, |found| {
            let age = GENERATION.get(ticket).wrapping_sub(GENERATION.get(found)) & GENERATION.mask();
            (found == 0 || age < GENERATION.mask() / 2).then_some(ticket)
        });
        Taken::Probe(Probe { slot, ticket: AtomicU64::new(ticket) })
    }

    /// Sets when a probe is due and what it then counts as.
    pub(super) fn renew(&self, probe: &Probe, due: At, tally: Tally) {
        let old = probe.ticket.load(Ordering::Acquire);
        if old == 0 {
            return;
        }
        let new = GENERATION.put(ticket(due, tally), GENERATION.get(old));
        let slot = &self.slots[probe.slot];
        let is_mine = slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok();
        probe.ticket.store(if is_mine { new } else { 0 }, Ordering::Release);
    }

    /// Ends a probe: its slot is free and its outcome counted, in one step. `None` when it was overdue, has settled
    /// before, or belongs to an older generation.
    pub(super) fn settle(&self, probe: &Probe, tally: Tally, now: At) -> Option<Word> {
        let ticket = probe.ticket.swap(0, Ordering::AcqRel);
        self.claim(probe.slot, ticket, tally, now)
    }

    /// Ends every probe of this generation that is due. The word after the last of them that counts.
    pub(super) fn expire(&self, now: At) -> Option<Word> {
        let mut after = None;
        let seen = self.load();
        for (index, slot) in self.slots.iter().enumerate() {
            if PROBES.get(seen.0) & (1 << index) == 0 {
                continue;
            }
            let ticket = slot.load(Ordering::Acquire);
            let is_present = GENERATION.get(ticket) == GENERATION.get(seen.0);
            if ticket != 0 && is_present && now >= DUE.get(ticket) {
                after = self.claim(index, ticket, Tally::of(TALLY.get(ticket)), now).or(after);
            }
        }
        after
    }

    /// Whoever swaps the ticket out is the one who clears the bit.
    fn claim(&self, slot: usize, ticket: u64, tally: Tally, now: At) -> Option<Word> {
        if ticket == 0
            || self.slots[slot].compare_exchange(ticket, 0, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return None;
        }
        let step = |word: u64| {
            let is_present = GENERATION.get(word) == GENERATION.get(ticket);
            is_present.then(|| Word(word).free(slot).tally(tally, now).0)
        };
        let before = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).ok()?;
        step(before).map(Word)
    }
}

fn ticket(due: At, tally: Tally) -> u64 {
    // A ticket of nought would mean "none".
    TALLY.put(DUE.put(0, due.max(1)), tally as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_open() -> Cell {
        let cell = Cell::new();
        let seen = cell.load();
        assert!(cell.replace(seen, seen.enter(State::HalfOpen, Mode::Auto)));
        cell
    }

    fn probe(cell: &Cell, due: At) -> Option<Probe> {
        match cell.take(cell.load(), 3, due) {
            Taken::Probe(probe) => Some(probe),
            Taken::Full | Taken::Changed => None,
        }
    }

    #[test]
    fn no_more_probes_than_the_limit_are_out_at_once() {
        let cell = half_open();
        let probes: Vec<_> = (0..3).map(|_| probe(&cell, 10).unwrap()).collect();
        assert!(probe(&cell, 10).is_none());
        assert_eq!(cell.settle(&probes[1], Tally::Success, 5).unwrap().successes(), 1);
        assert!(probe(&cell, 10).is_some());
    }

    #[test]
    fn a_probe_that_is_due_frees_its_slot_once_and_its_late_outcome_counts_nothing() {
        let cell = half_open();
        let first = probe(&cell, 10).unwrap();
        cell.renew(&first, 20, Tally::Failure);
        assert!(cell.expire(19).is_none());
        let word = cell.expire(20).unwrap();
        assert_eq!((word.probes(), word.failures()), (0, 1));
        let second = probe(&cell, 60).unwrap();
        assert!(cell.settle(&first, Tally::Success, 21).is_none());
        cell.renew(&first, 22, Tally::Success);
        assert!(
            cell.expire(30).is_none(),
            "an overdue permit cannot move the deadline of the slot's next owner"
        );
        assert_eq!(cell.load().probes(), 1);
        assert_eq!(cell.settle(&second, Tally::Nothing, 31).unwrap().probes(), 0);
        assert!(cell.settle(&second, Tally::Success, 31).is_none());
    }

    #[test]
    fn what_is_of_an_older_generation_changes_nothing() {
        let cell = half_open();
        let old = probe(&cell, 10).unwrap();
        let seen = cell.load();
        assert!(cell.replace(seen, seen.enter(State::HalfOpen, Mode::Auto)));
        assert_eq!(cell.load().probes(), 0);
        let _new = probe(&cell, 10).unwrap();
        assert!(cell.settle(&old, Tally::Failure, 5).is_none());
        let word = cell.load();
        assert_eq!((word.probes(), word.failures()), (1, 0));
    }

    #[test]
    fn a_run_of_successes_begins_anew_after_a_failure() {
        let word = Word(RUN.put(0, NO_RUN));
        assert_eq!(word.run(0), None);
        let word = word.tally(Tally::Success, 1000).tally(Tally::Success, 20_000);
        assert_eq!(word.run(31_000), Some(30_000));
        let word = word.tally(Tally::Failure, 40_000);
        assert_eq!(word.run(41_000), None);
        assert_eq!(word.tally(Tally::Success, 50_000).run(51_000), Some(1000));
    }

    #[test]
    fn counts_stop_at_their_end_and_do_not_run_into_their_neighbours() {
        let mut word = Word(0).enter(State::HalfOpen, Mode::ForcedClosed);
        for _ in 0..100 {
            word = word.tally(Tally::Success, 1).tally(Tally::Failure, 1).tally(Tally::Neutral, 1);
        }
        assert_eq!((word.successes(), word.failures(), word.neutrals()), (MOST, MOST, 15));
        assert_eq!((word.state(), word.mode(), word.probes()), (State::HalfOpen, Mode::ForcedClosed, 0));
    }
}
