//! Every interleaving of the steps on the breaker's state word (`src/breaker/word.rs`), by loom.
//!
//! Each check is one sentence of what the word promises; a check that can fail in any order panics with that order.
//! `LOOM_MAX_PREEMPTIONS` widens the search (default here: 3).

#[path = "../../src/breaker/word.rs"]
#[allow(dead_code, reason = "the word has more uses than these checks")]
mod word;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use std::sync::atomic::Ordering;
use word::{Cell, Mode, Probe, State, Taken, Tally};

fn main() {
    check("no more probes than the limit are out at once, and all slots come back", limit);
    check("a probe counts once, whether its permit or its deadline ends it", once);
    check("what belongs to an older generation changes nothing", generations);
    check("an overdue permit moves nothing of the slot's next owner", next_owner);
    check("of two transitions from one reading, one happens", transitions);
}

fn check(sentence: &str, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
    println!("ok: {sentence}");
}

fn half_open() -> Arc<Cell> {
    let cell = Cell::new();
    let seen = cell.load();
    assert!(cell.replace(seen, seen.enter(State::HalfOpen, Mode::Auto)));
    Arc::new(cell)
}

fn take(cell: &Cell, limit: u32, due: u64) -> Option<Probe> {
    loop {
        match cell.take(cell.load(), limit, due) {
            Taken::Probe(probe) => return Some(probe),
            Taken::Full => return None,
            Taken::Changed => thread::yield_now(),
        }
    }
}

fn limit() {
    let cell = half_open();
    let out = Arc::new(AtomicUsize::new(0));
    let run = |cell: Arc<Cell>, out: Arc<AtomicUsize>| {
        if let Some(probe) = take(&cell, 1, 100) {
            assert_eq!(out.fetch_add(1, Ordering::AcqRel), 0, "two at once");
            out.fetch_sub(1, Ordering::AcqRel);
            assert!(cell.settle(&probe, Tally::Success, 1).is_some());
        }
    };
    let other = {
        let (cell, out) = (cell.clone(), out.clone());
        thread::spawn(move || run(cell, out))
    };
    run(cell.clone(), out);
    other.join().unwrap();
    let word = cell.load();
    assert_eq!(word.probes(), 0);
    assert!(word.successes() >= 1);
}

fn once() {
    let cell = half_open();
    let probe = take(&cell, 1, 10).unwrap();
    cell.renew(&probe, 20, Tally::Failure);
    let expiring = {
        let cell = cell.clone();
        thread::spawn(move || cell.expire(20).is_some())
    };
    let settled = cell.settle(&probe, Tally::Success, 20).is_some();
    let expired = expiring.join().unwrap();
    assert!(settled ^ expired, "it ended {} times", u8::from(settled) + u8::from(expired));
    let word = cell.load();
    assert_eq!((word.probes(), word.successes() + word.failures()), (0, 1));
}

fn generations() {
    let cell = half_open();
    let moving = {
        let cell = cell.clone();
        thread::spawn(move || {
            loop {
                let seen = cell.load();
                if cell.replace(seen, seen.enter(State::HalfOpen, Mode::Auto)) {
                    return;
                }
            }
        })
    };
    let before = cell.load().generation();
    let probe = take(&cell, 1, 100);
    moving.join().unwrap();
    let present = cell.load().generation();
    if let Some(probe) = probe {
        let is_counted = cell.settle(&probe, Tally::Failure, 1).is_some();
        let word = cell.load();
        assert_eq!(word.generation(), present);
        assert_eq!(word.failures(), u32::from(is_counted));
        assert_eq!(word.probes(), 0);
        assert!(is_counted || before != present);
    }
    // And the slot is there for the new generation.
    assert!(take(&cell, 1, 100).is_some());
}

fn next_owner() {
    let cell = half_open();
    let first = take(&cell, 1, 10).unwrap();
    cell.renew(&first, 20, Tally::Failure);
    let late = {
        let cell = cell.clone();
        thread::spawn(move || {
            // It is overdue, and does not know yet.
            cell.renew(&first, 1000, Tally::Success);
            cell.settle(&first, Tally::Success, 21).is_some()
        })
    };
    let is_expired = cell.expire(20).is_some();
    let second = take(&cell, 1, 60);
    let was_late = late.join().unwrap();
    assert!(!(is_expired && was_late), "one probe counted twice");
    let word = cell.load();
    assert_eq!(word.probes(), u32::from(second.is_some()));
    if let Some(second) = second {
        assert!(cell.expire(59).is_none(), "its deadline is its own");
        assert!(cell.settle(&second, Tally::Nothing, 59).is_some());
    }
    let word = cell.load();
    assert_eq!((word.probes(), word.successes() + word.failures()), (0, 1));
}

fn transitions() {
    let cell = half_open();
    let seen = cell.load();
    let other = {
        let cell = cell.clone();
        thread::spawn(move || cell.replace(seen, seen.enter(State::Open, Mode::Auto)))
    };
    let mine = cell.replace(seen, seen.enter(State::Ramping, Mode::Auto));
    let other = other.join().unwrap();
    assert!(mine ^ other);
    assert_eq!(cell.load().state(), if mine { State::Ramping } else { State::Open });
}
