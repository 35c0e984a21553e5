//! Pure. What every healthy call changes in its breaker: how many are in flight, and the window's counts.
//!
//! Two cores that change the same cache line take it from each other at each change, which costs a call more than all
//! the rest of its breaker. So these counts exist [`STRIPES`] times, each on lines of its own, and a thread changes
//! always the same one; who wants a number adds them up. Calls are many and questions are few: a healthy call asks for
//! none.
//!
//! A call leaves the stripe that it came in by, whichever thread it ends on, so that no stripe is ever below nought. A
//! sum is not one moment: it may miss a call that comes while it is made. Where that matters (the cap of a ramp), who
//! comes counts first and asks then ([`Load::enter_within`]).

use super::window::{Counts, Window};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

/// The counts.
pub(super) struct Load([Stripe; STRIPES]);

/// Which of the stripes a call came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u8);

/// On a line of its own: what stands in it changes with every call, what stands beside it is read by every call.
#[repr(align(64))]
pub(super) struct Line<T>(pub(super) T);

#[repr(align(64))]
struct Stripe {
    in_flight: AtomicU32,
    window: Window,
}

const STRIPES: usize = 4;

thread_local! {
    static OWN: Cell<Option<Place>> = const { Cell::new(None) };
}

// === impl Place ===

impl Place {
    /// This thread's: in turn, so that threads that begin together do not share one as long as there are enough.
    fn own() -> Self {
        OWN.with(|own| {
            own.get().unwrap_or_else(|| {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                let place = Self((NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES) as u8);
                own.set(Some(place));
                place
            })
        })
    }
}

// === impl Load ===

impl Load {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Stripe { in_flight: AtomicU32::new(0), window: Window::new() }))
    }

    fn at(&self, place: Place) -> &Stripe {
        &self.0[usize::from(place.0) % STRIPES]
    }

    /// One call more.
    pub(super) fn enter(&self) -> Place {
        let place = Place::own();
        self.at(place).in_flight.fetch_add(1, Ordering::AcqRel);
        place
    }

    /// One call more, if there are then no more than `cap`. Never more, whatever comes at once; of those that come at
    /// once for the last place, none may get it.
    pub(super) fn enter_within(&self, cap: u32) -> Option<Place> {
        let place = self.enter();
        // Each counts before it adds up: of two, at least one sees the other.
        fence(Ordering::SeqCst);
        if self.in_flight() <= cap {
            return Some(place);
        }
        self.leave(place);
        None
    }

    /// One call less.
    pub(super) fn leave(&self, place: Place) {
        self.at(place).in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// Calls that came and have not gone.
    pub(super) fn in_flight(&self) -> u32 {
        self.0.iter().map(|stripe| stripe.in_flight.load(Ordering::Acquire)).sum()
    }

    /// Counts one outcome in the bucket of time with this number.
    pub(super) fn add(&self, place: Place, number: u64, is_failure: bool, is_slow: bool) {
        self.at(place).window.add(number, is_failure, is_slow);
    }

    /// The counts of the bucket with this number and of the others of the window before it.
    pub(super) fn counts(&self, number: u64) -> Counts {
        self.0.iter().map(|stripe| stripe.window.counts(number)).fold(Counts::default(), Counts::plus)
    }

    /// Forgets the window.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|stripe| stripe.window.clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn calls_and_outcomes_of_all_threads_are_added_up() {
        let load = Load::new();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    for index in 0..100 {
                        let place = load.enter();
                        load.add(place, 7, index % 2 == 0, index % 4 == 0);
                    }
                });
            }
        });
        let all = 200 * STRIPES as u32;
        assert_eq!(load.in_flight(), all);
        assert_eq!(load.counts(7), Counts { calls: all, failures: all / 2, slow: all / 4 });
        load.clear();
        assert_eq!(load.counts(7), Counts::default());
        assert_eq!(load.in_flight(), all, "who is in flight is not forgotten with the window");
    }

    #[test]
    fn a_call_may_end_on_another_thread() {
        let load = Load::new();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                let place = load.enter();
                let load = &load;
                scope.spawn(move || load.leave(place));
            }
        });
        assert_eq!(load.in_flight(), 0);
        assert!(load.0.iter().all(|stripe| stripe.in_flight.load(Ordering::Acquire) == 0));
    }

    #[test]
    fn a_cap_is_never_exceeded_by_those_that_come_at_once_and_one_alone_finds_the_last_place() {
        const CAP: u32 = 5;
        let (load, most, barrier) = (Load::new(), AtomicU32::new(0), Barrier::new(2 * STRIPES));
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..5000 {
                        if let Some(place) = load.enter_within(CAP) {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            load.leave(place);
                        }
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!(most <= CAP, "{most}");
        let places: Vec<_> = std::iter::from_fn(|| load.enter_within(CAP)).collect();
        assert_eq!(places.len() as u32, CAP);
    }
}
